"""Finetuning decoders: a classifier, answers, and what trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.compression.config import CompressConfig
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.formats.open import open_folder
from llmctl.reporting.reporter import Reporter
from llmctl.stages.compress.stage import Compression
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune, outline
from llmctl.tasks.finetuning import resolve, scale_lr_by_width
from llmctl.tasks.requests import FinetuneRequest
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace


@pytest.fixture
def workspace(decoder_workspace: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may add to."""
    return Workspace(Path(shutil.copytree(decoder_workspace, tmp_path / "workspace")))


def plan(
    place: Workspace, start: str, data: Path, config: Any, like: str | None = None, **how: Any
) -> dict[str, Any]:
    how.setdefault("reporter", Reporter())
    return outline(place, FinetuneRequest(config, start, data, like), **how)


class Notes(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def quick(**training: Any) -> dict[str, Any]:
    return {"training": {"precision": "fp32", **training}}


def tensors(workspace: Workspace, run: str) -> dict[str, torch.Tensor]:
    return load_file(workspace.path("run", run) / "model" / "model.safetensors")


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_a_decoder_becomes_a_classifier_that_every_command_takes(
    workspace: Workspace, labelled_file: Path, arch: str
):
    layers = quick(epochs=12, learning_rate=1e-2)
    run, _ = finetune(
        workspace, f"tiny-{arch}", labelled_file, resolve("classify", layers), name="subjects"
    )
    assert run.manifest.summary["validation"]["accuracy"] > 0.8
    words = ["eval", "-w", str(workspace.root), "--from", "subjects", "--data", str(labelled_file)]
    measured = CliRunner().invoke(app, [*words, "--no-baselines", "--json"])
    report = json.loads(measured.stdout)
    assert report["results"]["model"]["accuracy"] > 0.8
    texts = ["the ship sails over the wide sea", "the farmer feeds the cows", ""]
    examples = [Example(text, None, None, "test") for text in texts]
    answers: list[Any] = list(predict(workspace, "subjects", examples))
    assert [answer.label for answer in answers[:2]] == ["sea", "farm"]
    assert len(answers) == 3
    config = json.loads((run.folder / "model" / "config.json").read_text())
    folder = open_folder(run.folder / "model")
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["pad_token_id"] == folder.tokenizer.special["pad"]
    assert folder.labels == ["city", "farm", "sea"]


@pytest.mark.parametrize("task", ["classify", "instruct"])
def test_the_method_chooses_what_changes(
    workspace: Workspace, labelled_file: Path, sayings_file: Path, task: str
):
    data = labelled_file if task == "classify" else sayings_file
    runs = {}
    for method in ("full", "lora", "last-layers"):
        more = {"last_layers": 1} if method == "last-layers" else {}
        config = resolve(task, {"method": method, **more, **quick(max_steps=4)})
        run, _ = finetune(workspace, "tiny-llama", data, config, name=method)
        runs[method] = run.manifest.summary
    before = tensors(workspace, "tiny-llama")
    upper, lower = "model.layers.1.", "model.layers.0."
    matrices = {name for name in before if "_proj" in name}
    for method, expected in {
        "full": set(before),
        "lora": matrices,
        "last-layers": {n for n in before if n.startswith((upper, "model.norm", "lm_head"))},
    }.items():
        after = tensors(workspace, method)
        shared = before.keys() & after.keys()
        changed = {name for name in shared if not torch.equal(before[name], after[name])}
        # Tokens that never come get no gradient, but every tensor has some that do.
        assert changed == expected & shared, method
    assert any(name.startswith(lower) for name in matrices)
    assert runs["lora"]["trainable_parameters"] < runs["full"]["trainable_parameters"] / 2
    assert runs["lora"]["parameters"] == runs["full"]["parameters"]
    adapter = workspace.path("run", "lora") / "adapter"
    assert {path.name for path in adapter.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "llmctl.json", "tokenizer.json",
    }  # fmt: skip
    files = workspace.get("run", "lora").manifest.files
    assert "adapter/adapter_model.safetensors" in files
    assert not (workspace.path("run", "full") / "adapter").exists()


def test_an_adapter_and_its_base_make_the_run(workspace: Workspace, sayings_file: Path):
    config = resolve("instruct", {"method": "lora", **quick(max_steps=5)})
    run, _ = finetune(workspace, "tiny-gpt", sayings_file, config, name="added")
    adapter = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    fields = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert Path(fields["base_model_name_or_path"]) == workspace.path("run", "tiny-gpt") / "model"
    base, merged = tensors(workspace, "tiny-gpt"), tensors(workspace, "added")
    for name in fields["target_modules"]:
        a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        made = base[f"{name}.weight"] + fields["lora_alpha"] / fields["r"] * (b @ a).T
        torch.testing.assert_close(made, merged[f"{name}.weight"], rtol=1e-6, atol=1e-6)


def test_a_plan_says_what_a_run_then_has(workspace: Workspace, sayings_file: Path):
    config = resolve("instruct", {"method": "lora", "lora": {"rank": 2}, **quick(max_steps=2)})
    expected = plan(workspace, "tiny-llama", sayings_file, config)
    run, _ = finetune(workspace, "tiny-llama", sayings_file, config)
    summary = run.manifest.summary
    assert expected["plan"]["name"] == run.manifest.name == "sayings-tiny-llama"
    for key in ("parameters", "trainable_parameters", "train_examples", "validation_examples"):
        assert expected["plan"][key] == summary[key], key
    assert plan(workspace, "tiny-llama", sayings_file, config)["plan"]["up_to_date"] is True


def test_the_network_of_random_weights_is_the_newest_that_can_learn_the_task(
    workspace: Workspace, sayings_file: Path
):
    notes = Notes()
    config = resolve("instruct", quick(max_steps=2))
    run, _ = finetune(workspace, "scratch", sayings_file, config, reporter=notes)
    assert "the network of tiny-llama, with random weights" in notes.texts
    shared = tensors(workspace, "tiny-llama").keys()
    assert tensors(workspace, run.manifest.name).keys() == shared
    again = plan(workspace, "scratch", sayings_file, config, like="tiny-gpt")["plan"]
    assert again["up_to_date"] is False
    assert again["parameters"] != run.manifest.summary["parameters"]


def test_how_a_base_chooses_texts_is_how_what_was_made_of_it_does(
    workspace: Workspace, sayings_file: Path, tmp_path: Path
):
    base = Path(shutil.copytree(workspace.path("run", "tiny-gpt") / "model", tmp_path / "base"))
    path = base / "generation_config.json"
    said = {"do_sample": True, "temperature": 0.3, "top_k": 7}
    path.write_text(json.dumps({**json.loads(path.read_text()), **said, "eos_token_id": 1}))
    config = resolve("instruct", quick(max_steps=1))
    run, _ = finetune(workspace, str(base), sayings_file, config, reporter=Notes())
    (tmp_path / "held-out.txt").write_text("ship to sea " * 200)
    how, name = CompressConfig(method="round", max_tokens=300), run.manifest.name
    held_out = tmp_path / "held-out.txt"
    small, _ = Compression(workspace, name, how, data=None, held_out=held_out).run("small")
    for made in (run, small):
        written = json.loads((made.folder / "model" / path.name).read_text())
        assert said.items() <= written.items()
        # What ends its texts is a matter of its own template.
        assert written["eos_token_id"] != 1
    for value in ("1e400", "-3", '"warm"'):
        path.write_text(f'{{"do_sample": true, "temperature": {value}}}')
        with pytest.raises(InputError, match=r"generation_config\.json: temperature"):
            finetune(workspace, str(base), sayings_file, config, reporter=Notes(), force=True)


@pytest.mark.parametrize(
    ("task", "start", "method", "rate"),
    [
        ("classify", "tiny-gpt", "full", 1e-3),
        ("classify", "tiny-llama", "lora", 3e-3),
        ("classify", "scratch", "full", 1e-3),
        ("instruct", "tiny-gpt", "full", 1e-3),
        ("instruct", "tiny-gpt", "last-layers", 3e-3),
    ],
)
def test_the_learning_rate_follows_from_task_and_method(
    decoder_workspace: Path,
    labelled_file: Path,
    sayings_file: Path,
    task: str,
    start: str,
    method: str,
    rate: float,
):
    data = labelled_file if task == "classify" else sayings_file
    place, config = Workspace(decoder_workspace), resolve(task, {"method": method})
    planned = plan(place, start, data, config)["config"]["training"]["learning_rate"]
    assert planned == pytest.approx(rate)


def test_a_wider_body_has_a_lower_rate():
    assert scale_lr_by_width(1e-3, 64) == scale_lr_by_width(1e-3, 128) == 1e-3
    assert scale_lr_by_width(3e-4, 768) == pytest.approx(5e-5)


def test_answers_are_learned(decoder_workspace: Path):
    run = Workspace(decoder_workspace).get("run", "talker")
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    looks = [r for r in map(json.loads, lines) if r["kind"] == "validation"]
    assert looks[-1]["lm_loss"] < looks[0]["lm_loss"] / 2
    assert looks[-1]["lm_accuracy"] > 0.7
    for look in looks:
        assert look["perplexity"] == pytest.approx(np.exp(look["lm_loss"]))
    folder = open_folder(run.folder / "model")
    assert folder.tokenizer.chat_template is not None
    assert "<|im_start|>" in folder.tokenizer.chat_template
    generation = json.loads((run.folder / "model" / "generation_config.json").read_text())
    assert folder.tokenizer.special["turn_end"] in generation["eos_token_id"]


def conversations(path: Path, *lengths: int) -> Path:
    """Questions of so many words."""
    entries = [{"instruction": "ship " * length, "output": "sea " * 3} for length in lengths]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_long_conversations_are_cut_or_left_out_with_a_note(workspace: Workspace, tmp_path: Path):
    data = conversations(tmp_path / "long.jsonl", *range(1, 40))
    notes = Notes()
    config = resolve("instruct", {"data": {"max_length": 40, "validation": 0.0}, **quick()})
    counts = plan(workspace, "tiny-llama", data, config, reporter=notes)["plan"]
    told = " ".join(notes.texts)
    assert counts["train_examples"] < 39
    assert "of 39 conversations are longer than 40 tokens and were cut" in told
    assert f"left out {39 - counts['train_examples']} of 39 conversations" in told


def bad(**changes: Any) -> dict[str, Any]:
    return {"instruction": "Where?", "output": "Here.", **changes}


@pytest.mark.parametrize(
    ("words", "entries", "code", "says"),
    [
        (["--from", "tiny-llama"], [bad(output="")], 3, ["data.jsonl:1 has no output"]),
        (["--from", "tiny-llama"], [], 3, ["data.jsonl has no conversations"]),
        (["--from", "tiny-llama", "--set", "data.max_length=8"], [bad()], 3,
         ["no answer begins within 8 tokens", "data.max_length"]),
        (["--from", "tiny-llama", "--set", "data.max_length=500"], [bad()], 2,
         ["data.max_length 500", "at most 128"]),
        (["--from", "tiny-llama", "--set", "data.validation=0.999999"], [bad()], 3,
         ["every conversation fell to validation"]),
        (["--from", "tiny-llama", "--label-column", "a"], [bad()], 2,
         ["--label-column goes with --task classify"]),
        (["--from", "tiny-llama", "--method", "lara"], [bad()], 2, ["method", "'lara' was given"]),
        (["--from", "tiny-llama", "--method", "lora", "--freeze-layers", "1"], [bad()], 2,
         ["--freeze-layers 1 goes with --method full"]),
        (["--from", "tiny-llama", "--method", "lora", "--set", "lora.targets=atention"], [bad()], 2,
         ["lora.targets", "did you mean 'attention'"]),
        (["--from", "tiny-llama", "--set", "lora.rank=4"], [bad()], 2,
         ["lora.* goes with --method lora"]),
        (["--from", "tiny-llama", "--set", "last_layers=1"], [bad()], 2,
         ["last_layers goes with --method last-layers"]),
        (["--from", "tiny-llama", "--method", "last-layers", "--set", "last_layers=9"], [bad()], 2,
         ["last_layers 9", "use at most 2"]),
        (["--from", "scratch", "--method", "lora"], [bad()], 2, ["--from scratch", "random"]),
        (["--from", "talker", "--task", "instrct"], [bad()], 2, ["did you mean 'instruct'"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    decoder_workspace: Path,
    tmp_path: Path,
    words: list[str],
    entries: list[Any],
    code: int,
    says: list[str],
):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = set((decoder_workspace / "runs").iterdir())
    task = [] if "--task" in words else ["--task", "instruct"]
    message = refused(decoder_workspace, "--data", str(data), *task, *words, code=code)
    for part in says:
        assert part in message, message
    assert set((decoder_workspace / "runs").iterdir()) == before


def refused(root: Path, *words: str, code: int) -> str:
    """What ``llmctl finetune`` says in a line before it ends with a code."""
    result = CliRunner().invoke(app, ["finetune", "-w", str(root), *words])
    assert result.exit_code == code, result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return message


def test_a_vocabulary_that_does_not_fit_the_model(workspace: Workspace, sayings_file: Path):
    model = workspace.path("run", "tiny-llama") / "model"
    value = json.loads((model / "tokenizer.json").read_text())
    value["model"]["vocab"]["zebra"] = len(value["model"]["vocab"])
    (model / "tokenizer.json").write_text(json.dumps(value))
    words = ["--from", str(model), "--task", "instruct", "--data", str(sayings_file)]
    assert "don't belong together" in refused(workspace.root, *words, code=3)


def test_a_bert_writes_no_answers(tiny_workspace: Path, sayings_file: Path):
    words = ["--from", "tiny", "--task", "instruct", "--data", str(sayings_file)]
    message = refused(tiny_workspace, *words, code=3)
    assert "tiny is a masked language model and doesn't write text" in message


@pytest.mark.parametrize(("method", "dropout"), [("full", 0.0), ("lora", 0.1)])
def test_a_finetuning_that_breaks_off_ends_the_same_to_the_bit(
    workspace: Workspace,
    sayings_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    dropout: float,
):
    training = {"max_steps": 24, "checkpoint_every": 8, "eval_every": 12}
    lora = {"lora": {"dropout": dropout}} if method == "lora" else {}
    config = resolve("instruct", {"method": method, "patience": 0, **lora, **quick(**training)})

    def train(name: str) -> None:
        finetune(workspace, "tiny-gpt", sayings_file, config, name=name)

    train("whole")
    step = Trainer._step
    with monkeypatch.context() as patch:

        def break_off(self: Trainer, *args: Any) -> Any:
            if self.progress.step == 20:
                raise KeyboardInterrupt
            return step(self, *args)

        patch.setattr(Trainer, "_step", break_off)
        with pytest.raises(KeyboardInterrupt):
            train("broken")
    folder = workspace.path("run", "broken")
    saved = sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
    assert saved[-1] == 16, "no work was lost, so nothing was proven"
    train("broken")
    parts = ["model/model.safetensors"]
    parts += ["adapter/adapter_model.safetensors"] if method == "lora" else []
    for part in parts:
        assert (folder / part).read_bytes() == (folder.with_name("whole") / part).read_bytes()


@pytest.mark.reference
def test_transformers_opens_the_chat_model_with_its_template(decoder_workspace: Path):
    """The same logits as ours, fp32: 1e-5."""
    transformers = pytest.importorskip("transformers")
    path = decoder_workspace / "runs" / "talker" / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    messages = [{"role": "user", "content": "Where does the ship sail? (3)"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    ours = open_folder(path).causal_lm().eval()
    with torch.no_grad():
        expected = theirs(prompt).logits
        torch.testing.assert_close(ours.logits(ours.body(prompt)), expected, rtol=1e-5, atol=1e-5)
        written = theirs.generate(prompt, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True) == (
        "Over the wide sea."
    )
