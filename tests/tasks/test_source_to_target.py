"""Pairs to a model that writes from sources: finetuning, writing, measuring, refusals."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.formats.open import open_folder
from llmctl.inference.decoding import batches
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain
from llmctl.tasks.pretraining import resolve
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.tensors import read_tensors
from tests.language_models import DATA, MODEL, TRAINING
from tests.run import llmctl, one_sentence

NOUNS = ["ship", "cow", "tide", "lamp", "road", "king"]
VERBS = ["sails", "sleeps", "rises", "burns", "bends", "waits"]
FAST = ("--set", "training.precision=fp32", "--set", "training.device=cpu")
LEARNING = ("--set", "training.max_steps=400", "--set", "training.batch_size=16",
            "--set", "training.optimiser=muon", "--set", "training.muon_learning_rate=0.05",
    "--set", "training.learning_rate=5e-3", "--set", "dropout=0",
            *FAST)  # fmt: skip
SHORT = ("--set", "training.max_steps=2", "--set", "training.batch_size=4", *FAST)

Run = Callable[..., Result]


def pairs(count: int) -> list[tuple[str, str]]:
    """A language in which the verb comes first, in capitals."""
    generator = random.Random(0)
    found = []
    for _ in range(count):
        noun, verb = generator.choice(NOUNS), generator.choice(VERBS)
        adjective = generator.choice(["old", "red", "tall"])
        found.append((f"the {adjective} {noun} {verb}", f"{verb.upper()} {noun} {adjective}"))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in both layouts."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = pairs(300)
    lines = [json.dumps({"source": source, "target": target}) for source, target in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train.xx").write_text("".join(f"{source}\n" for source, _ in rows))
    with gzip.open(folder / "train.yy.gz", "wt") as file:
        file.write("".join(f"{target}\n" for _, target in rows))
    both = {text for row in rows for text in row}
    (folder / "both.txt").write_text("".join(f"{text}\n" for text in sorted(both)))
    (folder / "few.xx").write_text("".join(f"{source}\n" for source, _ in rows[:40]))
    (folder / "few.yy").write_text("".join(f"{target}\n" for _, target in rows[:40]))
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Workspace:
    """With a small GPT that has read both sides."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    config = TokenizeConfig(
        tokenizer="bpe", vocab_size=330, document="line", validation=0.1, workers=1
    )
    tokenize(workspace, [str(place / "both.txt")], config, name="both")
    layers = {"model": MODEL, "data": DATA, "training": TRAINING}
    pretrain(workspace, resolve("gpt", "nano", layers), shards_name="both", name="gpt")
    return workspace


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> Run:
    def invoke(command: str, *words: object, code: int = 0) -> Result:
        given = [command, "-w", str(workspace.root), *map(str, words)]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture(scope="module")
def translators(run: Run, place: Path) -> dict[str, str]:
    """The names of a run of each style."""
    names = {}
    for style in ("decoder", "prefix"):
        names[style] = f"translator-{style}"
        data = (
            ("--data", place / "train.xx", "--target", place / "train.yy.gz")
            if style == "decoder"
            else ("--data", place / "pairs.jsonl")
        )
        run("finetune", "--from", "gpt", "--task", "seq2seq", "--style", style, *data,
            "--name", names[style], *LEARNING)  # fmt: skip
    return names


def error(result: Result) -> str:
    assert "Traceback" not in result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return message.removeprefix("error: ")


@pytest.mark.parametrize("style", ["decoder", "prefix"])
def test_a_small_addition_learns_pairs_too(run: Run, workspace: Workspace, place: Path, style: str):
    name = f"added-{style}"
    run("finetune", "--from", "gpt", "--task", "seq2seq", "--style", style, "--method", "lora",
        "--data", place / "pairs.jsonl", "--name", name, *LEARNING)  # fmt: skip
    folder = workspace.root / "runs" / name
    assert read_tensors(folder / "adapter" / "adapter_model.safetensors")
    pretrained, tuned = (
        read_tensors(workspace.root / "runs" / run_name / "model" / "model.safetensors")
        for run_name in ("gpt", name)
    )
    prefix = "encoder." if style == "decoder" else ""
    unchanged = "transformer.wpe.weight"
    assert torch.equal(tuned[prefix + unchanged], pretrained[unchanged])
    changed = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(tuned[prefix + changed], pretrained[changed])
    result = run("eval", "--from", name, "--data", place / "few.xx", "--target", place / "few.yy",
                 "--json", "--set", "resamples=20", "--set", "num_beams=1")  # fmt: skip
    row = json.loads(result.stdout)["results"]["model"]
    # A prefix leans on a GPT of twelve steps, of which all but the addition stays as it is.
    assert row["token_accuracy"] > 0.5 if style == "decoder" else row["loss"] < 4.5


@pytest.mark.parametrize("style", ["decoder", "prefix"])
def test_a_language_is_learned_and_measured(
    run: Run, place: Path, translators: dict[str, str], style: str
):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    report = json.loads(
        run("eval", "--from", translators[style], "--data", place / "few.xx",
            "--target", place / "few.yy", "--json", "--set", "resamples=50").stdout
    )  # fmt: skip
    rows = report["results"]
    assert rows["model"]["chrf"] > 90
    assert rows["model"]["token_accuracy"] > 0.9
    assert rows["copy of the source"]["chrf"] < 40
    assert set(rows) == {"model", "copy of the source", "first 3 words"}
    assert set(report["differences"]) == set(rows) - {"model"}
    assert len(report["shown"]) == 10
    for example in report["shown"]:
        assert set(example) == {"at", "source", "reference", "written"}
    shown = run("eval", "--from", translators[style], "--data", place / "few.xx",
                "--target", place / "few.yy", "--set", "resamples=50")  # fmt: skip
    assert "BLEU nrefs:1" in shown.stdout
    assert "copy of the source" in shown.stdout
    assert "up to date" in shown.stderr


def test_both_layouts_give_the_same_pairs(run: Run, place: Path):
    for data in (
        ("--data", place / "pairs.jsonl"),
        ("--data", place / "train.xx", "--target", place / "train.yy.gz"),
    ):
        told = run("finetune", "--from", "gpt", "--task", "seq2seq", *data, "--dry-run", *SHORT)
        plan = json.loads(told.stdout)["plan"]
        assert plan["train_examples"] + plan["validation_examples"] == 300
        assert plan["llmctl_target_words"] == 3


@pytest.mark.parametrize("style", ["decoder", "prefix"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_stopped_translation_goes_on(
    run: Run,
    place: Path,
    translators: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    style: str,
    suffix: str,
):
    """What was written stays, what was half-written is written again, and nothing differs."""
    monkeypatch.setattr(batches, "PROMPT_BATCHES_AHEAD", 2)
    words = ("generate", "--from", translators[style], "--source", place / "few.xx", "--num-beams",
             "2", "--max-new-tokens", "8", "--set", "batch_size=8")  # fmt: skip
    whole = tmp_path / f"whole{suffix}"
    run(*words, "--output", whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 40
    stopped = tmp_path / f"again{suffix}"
    from llmctl.stages import generate_source

    written = 0
    plain = generate_source._line

    def failing(*arguments: Any, **options: Any) -> str:
        nonlocal written
        written += 1
        if written == 21:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(generate_source, "_line", failing)
    run(*words, "--output", stopped, code=130)
    assert not stopped.exists()
    (partial,) = tmp_path.glob(f".again{suffix}.*.partial")
    assert partial.read_bytes() == b"".join(lines[:16])
    with partial.open("ab") as file:
        file.write(lines[16][:3])
    monkeypatch.setattr(generate_source, "_line", plain)
    result = run(*words, "--output", stopped)
    assert "going on behind 16 of 40 sources" in result.stderr
    assert stopped.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*.partial"))


def test_prompts_are_sources(run: Run, translators: dict[str, str]):
    for name in translators.values():
        result = run("generate", "--from", name, "--prompt", "the old ship sails")
        assert "the old ship" not in result.stdout
        assert "ship" in result.stdout


def test_blank_sources_get_blank_lines(run: Run, translators: dict[str, str], tmp_path: Path):
    (tmp_path / "s.xx").write_text("the red cow sleeps\n\n  \nthe old lamp burns\n")
    run("generate", "--from", translators["decoder"], "--source", tmp_path / "s.xx",
        "--output", tmp_path / "t.yy")  # fmt: skip
    first, *blank, last = (tmp_path / "t.yy").read_text().splitlines()
    assert first
    assert blank == ["", ""]
    assert last


def test_a_run_goes_on_from_its_folder_and_can_learn_more(
    run: Run, place: Path, workspace: Workspace, translators: dict[str, str]
):
    folder = open_folder(workspace.path("run", translators["decoder"]) / "model")
    assert folder.kind == "seq2seq"
    assert folder.writes_from_source == "decoder"
    run("finetune", "--from", translators["decoder"], "--task", "seq2seq",
        "--data", place / "pairs.jsonl", "--name", "more", *SHORT)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        (("--freeze-encoder",), lambda name: name.startswith("body.")),
        (("--freeze-layers", "1"), lambda name: "embedding" in name or "body.blocks.0" in name),
        ((), lambda name: False),
    ],
    ids=["encoder", "one layer", "nothing"],
)
def test_what_is_frozen_stays(
    run: Run,
    place: Path,
    workspace: Workspace,
    options: tuple[str, ...],
    frozen: Callable[[str], bool],
):
    run("finetune", "--from", "gpt", "--task", "seq2seq", "--data", place / "pairs.jsonl",
        "--name", "frozen", "--force", *options, *SHORT)  # fmt: skip
    before = open_folder(workspace.path("run", "gpt") / "model").causal_lm()
    after = open_folder(workspace.path("run", "frozen") / "model").seq2seq()
    theirs = before.state_dict()
    for name, tensor in after.body.state_dict().items():  # type: ignore[attr-defined]
        same = bool((tensor == theirs[f"body.{name}"]).all())
        if frozen(f"body.{name}"):
            assert same, name
        elif "weight" in name and "position" not in name:
            assert not same, name


def test_random_weights_learn_beside(run: Run, place: Path):
    told = run("finetune", "--from", "scratch", "--like", "gpt", "--task", "seq2seq", "--data",
               place / "pairs.jsonl", "--name", "from-nothing", "--json", *SHORT)  # fmt: skip
    assert json.loads(told.stdout)["steps"] == 2


REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("--data", "{}/train.xx"), 3, "--target FILE"),
    (("--data", "{}/train.xx", "--target", "{}/few.yy"), 3, "few.yy has 40"),
    (("--data", "{}/train.xx", "--target", "{}/none.yy"), 3, "--target"),
    (("--data", "{}/pairs.jsonl", "--source-column", "sorce"), 3, "did you mean"),
    (("--data", "{}/pairs.jsonl", "--label-column", "x"), 2, "--task classify"),
    (("--data", "{}/pairs.jsonl", "--style", "prefix", "--freeze-encoder"), 2, "--freeze-encoder"),
    (("--data", "{}/pairs.jsonl", "--set", "data.max_source=9999"), 2, "at most"),
    (("--data", "{}/pairs.jsonl", "--set", "model.cross_attention=maybe"), 2, "cross_attention"),
]


@pytest.mark.parametrize(("words", "code", "expected"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_finetuning_refuses(
    run: Run, place: Path, words: tuple[str, ...], code: int, expected: str
):
    given = [word.format(place) for word in words]
    result = run("finetune", "--from", "gpt", "--task", "seq2seq", *given, *SHORT, code=code)
    assert expected in error(result)


def test_one_sequence_is_refused_where_there_is_a_decoder(
    run: Run, place: Path, translators: dict[str, str]
):
    words = ("--task", "seq2seq", "--style", "prefix", "--data", place / "pairs.jsonl", *SHORT)
    said = error(run("finetune", "--from", translators["decoder"], *words, code=2))
    assert "--style prefix puts both texts into one sequence" in said
    assert "leave --style out" in said


def test_what_writing_and_measuring_refuse(
    run: Run, place: Path, translators: dict[str, str], tmp_path: Path
):
    name = translators["decoder"]
    out = ("--output", tmp_path / "out.txt")
    few = place / "few.xx"
    assert "--output" in error(run("generate", "--from", name, "--source", few, code=2))
    result = run("generate", "--from", "gpt", "--source", few, *out, code=2)
    assert "--task seq2seq" in error(result)
    (tmp_path / "empty.xx").write_text("")
    result = run("generate", "--from", name, "--source", tmp_path / "empty.xx", *out, code=3)
    assert "no" in error(result)
    assert not (tmp_path / "out.txt").exists()
    assert "--data FILE" in error(run("eval", "--from", name, code=2))
    assert "--target" in error(run("eval", "--from", name, "--data", few, code=3))
    result = run("eval", "--from", name, "--data", few, "--target", place / "few.yy",
                 "--compare", "gpt", code=2)  # fmt: skip
    assert "gpt was not finetuned with --task seq2seq" in error(result)


def test_an_encoder_is_refused(tiny_workspace: Path, place: Path):
    result = llmctl(tiny_workspace, "finetune", "--from", "tiny", "--task", "seq2seq",
                    "--data", place / "pairs.jsonl", code=3)  # fmt: skip
    assert "doesn't write text" in one_sentence(result)
