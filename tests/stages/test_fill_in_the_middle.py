"""Fill-in-the-middle from end to end: a decoder writes what the text behind asks for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llmctl.formats.open import open_folder
from llmctl.stages.evaluate import Files, prepare_evaluation
from llmctl.stages.generate import open_generation
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain
from llmctl.tasks.evaluation import EvaluateConfig
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.pretraining import resolve
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import learned
from tests.language_models import Notes
from tests.once import own_copy
from tests.run import llmctl, one_sentence

GIVEN = {"S": "s", "F": "f", "C": "c"}
"""What is asked for by what."""
SHAPE = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "num_kv_heads": 2, "max_positions": 64}
TRAINING = {"max_steps": 100, "batch_size": 16, "precision": "fp32", "learning_rate": 1e-2}


def make(root: Path) -> None:
    generator = random.Random(0)
    lines = []
    for _ in range(600):
        gift, name = generator.choice([*GIVEN.items()])
        lines.append(f"({name})[{gift}]")
    (root / "lines.txt").write_text("\n".join(lines) + "\n")
    place = Workspace(root / "w")
    for name, fim in (("plain", False), ("fim", True)):
        config = TokenizeConfig(
            tokenizer="characters", document="line", split="tail", fim=fim, workers=1
        )
        tokenize(place, [str(root / "lines.txt")], config, name=name)
    for share in (0.0, 0.9):
        layers = {
            "model": SHAPE,
            "objective": {"fim": share},
            "data": {"sequence_length": 32, "eval_batches": 1, "document_mask": True},
            "training": TRAINING if share else {**TRAINING, "max_steps": 2},
        }
        name = "filler" if share else "untaught"
        pretrain(place, resolve("llama", "nano", layers), shards_name="fim", name=name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_copy(tmp_path_factory, "fim", make)


def test_the_middle_is_what_the_text_behind_asks_for(root: Path):
    config = GenerateConfig(max_new_tokens=12, device="cpu")
    generation = open_generation(Workspace(root / "w"), "filler", config)
    prompts = [Prompt("(", gift, f")[{gift}]") for gift in GIVEN]
    written = [answer.completions[0] for answer in generation.answers(prompts)]
    assert [completion.text for completion in written] == [*GIVEN.values()]
    assert {completion.finish for completion in written} == {"eos"}


def test_the_command_prints_the_whole_text(root: Path):
    words = ("generate", "--from", "filler", "--max-new-tokens", "12")
    shown = llmctl(root / "w", *words, "--prompt", "(", "--suffix", ")[S]")
    assert shown.stdout == "(s)[S]\n"
    asked = [{"prompt": "(", "suffix": ")[F]"}, {"prompt": "(c"}]
    path = root / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    found = json.loads(llmctl(root / "w", *words, "--prompt-file", path, "--json").stdout)
    filled, continued = found["answers"]
    assert (filled["suffix"], filled["completions"][0]["text"]) == (")[F]", "f")
    assert "suffix" not in continued


def test_a_model_that_never_learned_it_is_refused_by_name(root: Path):
    asked = ("--prompt", "(", "--suffix", ")[S]")
    failed = llmctl(root / "w", "generate", "--from", "untaught", *asked, code=3)
    assert "untaught has not learned to fill in the middle" in one_sentence(failed)
    failed = llmctl(root / "w", "generate", "--from", "filler", "--suffix", "x", code=2)
    assert "--suffix goes with --prompt" in one_sentence(failed)
    failed = llmctl(
        root / "w", "pretrain", "--arch", "gpt", "--preset", "nano", "--shards", "plain",
        "--set", "objective.fim=0.5", code=3,
    )  # fmt: skip
    assert "no tokens for prefix, suffix and middle" in one_sentence(failed)


def test_the_folder_says_what_was_learned(root: Path):
    for name, share in (("filler", 0.9), ("untaught", 0.0)):
        folder = open_folder(root / "w" / "runs" / name / "model")
        assert folder.fields["llmctl_fim"] == share
    summary = Workspace(root / "w").get("run", "filler").manifest.summary["fim"]
    # Those that rows cut may be too short; a PSM without a prefix looks like an SPM.
    assert 0.6 < summary["share"] < 0.95
    assert 0.45 < summary["spm_share"] < 0.75
    assert summary["batches"] == 64
    assert "fim" not in Workspace(root / "w").get("run", "untaught").manifest.summary


def test_eval_measures_middles_beside_what_comes_before(root: Path):
    config = EvaluateConfig(device="cpu", baselines=False)
    report, _, _ = prepare_evaluation(Workspace(root / "w"), "filler", Files(), config).run()
    found = report.facts["middles"]
    # In "(s)[S]" the middle is told by what is behind it.
    assert 0 < found["both_sides"] < found["before_alone"]
    difference = found["difference"]
    assert difference["difference"] == pytest.approx(found["both_sides"] - found["before_alone"])
    assert difference["low"] <= difference["difference"] <= difference["high"]
    shown = llmctl(
        root / "w", "eval", "--from", "filler", "--device", "cpu", "--set", "baselines=false"
    ).stdout
    assert f"{found['both_sides']:.4f} with both sides known" in shown
    report, _, _ = prepare_evaluation(Workspace(root / "w"), "untaught", Files(), config).run()
    assert "middles" not in report.facts


@pytest.mark.reference
def test_a_coder_of_others_is_asked_as_transformers_would(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = learned("bpe").extended(["<fim_prefix>", "<fim_middle>", "<fim_suffix>"])
    tokenizer.save(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_embd=16, n_layer=1, n_head=2, n_positions=64,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    reporter = Notes()
    generation = open_generation(
        Workspace(tmp_path / "w"), str(tmp_path), GenerateConfig(device="cpu"), reporter=reporter
    )
    ids = generation.encode(Prompt("def add(", "row 1", "return a + b"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ids == theirs("<fim_prefix>def add(<fim_suffix>return a + b<fim_middle>")["input_ids"]
    (note,) = reporter.notes
    assert "nothing in its folder says whether" in note
