"""Finetuning by every method from the command line: learned, opened, refused, gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llmctl.data.tables.labelled import Example
from llmctl.formats.open import open_folder
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import resolve
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl

QUICK = {"precision": "fp32", "epochs": 12}
VIRTUAL = ["prompt", "prefix", "ptuning"]


@pytest.fixture
def decoders(decoder_workspace: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may add to."""
    return Workspace(Path(shutil.copytree(decoder_workspace, tmp_path / "decoders")))


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", *VIRTUAL])
def test_a_task_is_learned_and_every_folder_answers_alike(
    decoders: Workspace, labelled_file: Path, method: str
):
    """Three classes, so chance is a third; each with the rate that it has by default."""
    place = decoders
    config = resolve("classify", {"method": method, "training": QUICK, "patience": 0})
    run, _ = finetune(place, "tiny-gpt", labelled_file, config, name="learned")
    summary = run.manifest.summary
    assert summary["validation"]["accuracy"] > 0.6
    assert summary["trainable_parameters"] < summary["parameters"] / 4
    examples = [Example(text, None, None, "test") for text in ("The ship sails.", "cows and hens")]
    answers = [
        [answer.record() for answer in predict(place, start, examples)]
        for start in ("learned", str(run.folder / "adapter"))
    ]
    for one, other in zip(*answers, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    files = set(run.manifest.files)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= files
    assert ("model/adapter_config.json" in files) == (method in VIRTUAL)
    if method in VIRTUAL:
        before = load_file(place.path("run", "tiny-gpt") / "model" / "model.safetensors")
        after = load_file(run.folder / "model" / "model.safetensors")
        body = [name for name in before.keys() & after.keys() if ".h." in name]
        assert body
        assert all(before[name].equal(after[name]) for name in body)


@pytest.mark.parametrize("start", ["tiny-gpt", "tiny-llama"])
@pytest.mark.parametrize("method", VIRTUAL)
def test_one_that_writes_goes_on_and_chats(
    decoders: Workspace, sayings_file: Path, start: str, method: str
):
    table = {"prompt" if method == "prompt" else "prefix": {"tokens": 4, "words": "the ship"}}
    training = {**QUICK, "epochs": 2}
    config = resolve("instruct", {"method": method, "training": training, **table})
    run, _ = finetune(decoders, start, sayings_file, config, name="talks")
    written = []
    for model in ("talks", str(run.folder / "adapter")):
        words = ["--from", model, "--max-new-tokens", "6", "--json"]
        prompts = ["--prompt", "The ship", "--prompt", "Where does the tram stop at"]
        for how in (["--temperature", "0"], ["--num-beams", "3"]):
            told = llmctl(decoders.root, "generate", *words, *prompts, *how).stdout
            written.append(json.loads(told)["answers"])
            assert len(written[-1]) == 2
    assert written[2:] == written[:2]
    asked = "Where does the ship sail?\n"
    words = ["--max-new-tokens", "6", "--temperature", "0"]
    told = [
        json.loads(
            llmctl(decoders.root, "chat", "--from", model, *words, "--json", stdin=asked).stdout
        )
        for model in ("talks", str(run.folder / "adapter"))
    ]
    assert told[0] == told[1]
    assert told[0]["new_tokens"] > 0
    assert open_folder(run.folder / "model").longest_text == 128 - 4


@pytest.mark.parametrize("method", VIRTUAL)
def test_a_finetuning_that_breaks_off_ends_the_same_to_the_bit(
    decoders: Workspace, labelled_file: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    training = {**QUICK, "max_steps": 12, "checkpoint_every": 4, "eval_every": 6}
    config = resolve("classify", {"method": method, "patience": 0, "training": training})
    finetune(decoders, "tiny-gpt", labelled_file, config, name="whole")
    step = Trainer._step
    with monkeypatch.context() as patch:

        def break_off(self: Trainer, *args: Any) -> Any:
            if self.progress.step == 10:
                raise KeyboardInterrupt
            return step(self, *args)

        patch.setattr(Trainer, "_step", break_off)
        with pytest.raises(KeyboardInterrupt):
            finetune(decoders, "tiny-gpt", labelled_file, config, name="broken")
    folder = decoders.path("run", "broken")
    saved = sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
    assert saved[-1] == 8, "no work was lost, so nothing was proven"
    finetune(decoders, "tiny-gpt", labelled_file, config, name="broken")
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (folder / part).read_bytes() == (folder.with_name("whole") / part).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "prompt", "--set", "prompt.tokens=121"],
         "prompt.tokens 121: virtual tokens stand before each text, and the model's context is 128 "
         "tokens; use at most 120"),
        (["--method", "ptuning", "--set", "prefix.tokens=500"], "use at most 120"),
        (["--method", "bitfit"], "--method bitfit trains biases, and a llama has none"),
        (["--method", "prompt", "--set", "lora.dora=true"],
         "lora.* goes with --method lora, and --method is prompt"),
        (["--method", "lora", "--set", "prompt.words=x"], "prompt.* goes with --method prompt"),
        (["--method", "full", "--set", "prefix.tokens=3"],
         "prefix.* goes with --method prefix or ptuning, and --method is full"),
        (["--method", "ptuning", "--set", "prefix.projection=3"],
         "prefix.projection goes with --method prefix"),
        (["--method", "promt"], "'promt' was given"),
        (["--method", "prompt", "--task", "seq2seq"], "--method prompt with --style decoder"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    decoder_workspace: Path, sayings_file: Path, words: list[str], message: str
):
    given = ["--from", "tiny-llama", "--data", str(sayings_file), *words]
    task = [] if "--task" in words else ["--task", "instruct"]
    result = llmctl(decoder_workspace, "finetune", *given, *task, code=2)
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "data.max_length=9999"], "data.max_length 9999 is longer than the model's"),
        (["--task", "setfit", "--set", "data.max_length=9999"], "data.max_length 9999 is longer"),
        (["--method", "prompt", "--set", "prompt.words=ship 雨"], "has no piece for some of it"),
        (["--text-column", "text", "--label-column", "text"], "--label-column text is the column"),
        (["--text-column", "text", "--text-pair-column", "text"], "--text-pair-column text is"),
    ],
)
def test_what_an_encoder_can_not_read_is_refused(
    tiny_workspace: Path, labelled_file: Path, words: list[str], message: str
):
    given = ["--from", "tiny", "--data", str(labelled_file), *words]
    result = llmctl(tiny_workspace, "finetune", *given, code=2)
    assert message in " ".join(result.stderr.split())


def test_one_with_virtual_tokens_is_no_start(decoders: Workspace, labelled_file: Path):
    config = resolve("classify", {"method": "prompt", "training": {**QUICK, "max_steps": 1}})
    finetune(decoders, "tiny-gpt", labelled_file, config, name="prompted")
    result = llmctl(
        decoders.root, "finetune", "--from", "prompted", "--data", str(labelled_file), code=3
    )
    assert "20 virtual tokens before each text" in " ".join(result.stderr.split())


def test_virtual_tokens_are_not_dropped_on_the_way_out_or_in(
    decoders: Workspace, labelled_file: Path, tmp_path: Path
):
    """Neither the file of another program nor a folder written anew has a place for them."""
    config = resolve("classify", {"method": "prefix", "training": {**QUICK, "max_steps": 1}})
    run, _ = finetune(decoders, "tiny-gpt", labelled_file, config, name="prefixed")
    out = tmp_path / "out"
    for format in ("gguf", "onnx", "hf", "ollama"):
        words = ["export", "prefixed", "--format", format, "--out", str(out)]
        result = llmctl(decoders.root, *words, code=3)
        assert "has virtual tokens before its texts" in " ".join(result.stderr.split())
        assert not out.exists()
    for folder in ("adapter", "model"):
        words = ["import", str(run.folder / folder), "--name", "taken"]
        result = llmctl(decoders.root, *words, code=3)
        assert "has virtual tokens before its texts" in " ".join(result.stderr.split())
        assert not decoders.path("run", "taken").exists()
