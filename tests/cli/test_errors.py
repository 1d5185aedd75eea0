"""Bad input: one sentence that names what and says what to do, the right exit code, no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmctl.cli import guard
from llmctl.errors import LostProcess, ResourceError, UsageError
from tests.conftest import TINY
from tests.run import llmctl, one_sentence


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_workspace, tmp_path / "workspace"))


def snapshot(root: Path) -> set[Path]:
    return {p for p in root.rglob("*") if not p.name.endswith(".lock")}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["tokenize", "nowhere.txt"], 3, ["nowhere.txt", "no such file"]),
        (["tokenize", "python:doc"], 3, ["python:docs"]),
        (["tokenize", "{corpus}", "--tokenizer", "wordpeice"], 3, ["wordpeice", "wordpiece"]),
        (["tokenize", "{corpus}", "--vocab-size", "90000", "--name", "x"], 3, ["90000", "use"]),
        (["tokenize", "{corpus}", "--vocab-size", "9", "--name", "x"], 3, ["alphabet", "use"]),
        (["tokenize", "{corpus}", "--document", "book"], 2, ["document"]),
        (["pretrain", "--arch", "brt"], 2, ["did you mean 'bert'"]),
        (["pretrain", "--task", "masked-lm"], 2, ["did you mean 'masked_lm'", "--arch bert"]),
        (["pretrain", "--task", "causal_lm"], 2, ["--task causal_lm is not for --arch bert"]),
        (["pretrain", "--task", "classify"], 2, ["'classify' is not known", "masked_lm"]),
        (["pretrain", "--preset", "smal"], 2, ["did you mean 'small'"]),
        (["pretrain", "--set", "training.max_step=3"], 2, ["did you mean 'training.max_steps'"]),
        (["pretrain", "--set", "training.max_steps"], 2, ["KEY=VALUE"]),
        (["pretrain", "--set", "training.max_steps=-1"], 2, ["training.max_steps", "-1"]),
        (["pretrain", "--set", "training.time_limit=soon"], 2, ["soon", "10m"]),
        (["pretrain", "--set", "model.hidden_size=100", "--set", "model.num_heads=3"], 2,
         ["not divisible", "try 99"]),
        (["pretrain", "--set", "data.sequence_length=1024"], 2, ["model.max_positions 512"]),
        (["pretrain", "--shards", "storis"], 3, ["did you mean 'stories'"]),
        (["pretrain", "--recipe", "none.toml"], 3, ["none.toml", "no such file"]),
        (["pretrain", "--name", "../x"], 2, ["--name"]),
        (["finetune", "--from", "tiny", "--data", "none.csv"], 3, ["none.csv", "no such file"]),
        (["finetune", "--from", "tony", "--data", "{labelled}"], 3, ["did you mean 'tiny'"]),
        (["finetune", "--from", "tiny", "--data", "{labelled}", "--label-column", "lable"], 3,
         ["did you mean 'label'"]),
        (["finetune", "--from", "tiny", "--data", "{labelled}", "--freeze-layers", "9"], 2,
         ["--freeze-layers 9", "at most 2"]),
        (["finetune", "--from", "tiny", "--data", "{labelled}", "--task", "clasify"], 2,
         ["classify"]),
        (["finetune", "--from", "tiny", "--data", "{labelled}", "--name", "tiny", "--force"], 2,
         ["--name tiny", "made from"]),
        (["finetune", "--from", "tiny", "--like", "tiny", "--data", "{labelled}"], 2,
         ["--like tiny", "--from scratch"]),
        (["finetune", "--from", "tiny", "--data", "{labelled}", "--set", "data.max_length=3"], 2,
         ["data.max_length", "8 or more"]),
        (["finetune", "--from", "tiny", "--data", "."], 3, ["--data .", "is a folder"]),
        (["finetune", "--from", "nobody", "--data", "none.csv", "--dry-run"], 3, ["'nobody'"]),
        (["finetune", "--from", "tiny", "--data", "none.csv", "--dry-run"], 3, ["none.csv"]),
        (["pretrain", "--set", "model.vocab_size=99"], 2, ["model.vocab_size 99", "leave it out"]),
        (["pretrain", "--shards", "a/b"], 3, ["'a/b'", "stories"]),
        (["predict", "--from", "some/dir", "a"], 3, ["no run or model folder 'some/dir'"]),
        (["predict", "--from", "subjects", "--device", "gpu", "a"], 2, ["--device 'gpu'", "cuda"]),
        (["eval", "--from", "subjects", "--data", "{labelled}", "--device", "cuda:0"], 2,
         ["--device 'cuda:0'"]),
        (["eval", "--from", "subjects", "--data", "{labelled}", "--seed", "-1"], 2, ["seed", "-1"]),
        (["eval", "--from", "nobody", "--data", "none.csv", "--dry-run"], 3, ["'nobody'"]),
        (["eval", "--from", "subjects", "--data", "none.csv", "--dry-run"], 3, ["none.csv"]),
        (["eval", "--from", "subjects", "--data", "."], 3, ["is a folder"]),
        (["eval", "--from", "subjects", "--data", "{labelled}", "--compare", "tiny"], 2,
         ["--compare tiny"]),
        (["predict", "--from", "subjects", "--data", "."], 3, ["is a folder"]),
        (["predict", "--from", "subjects", "--encoding-errors", "skip", "a"], 2, ["'skip'"]),
        (["predict", "--from", "subjects", "caf\udce9"], 2, ["text 1 is not UTF-8"]),
        (["predict", "--from", "tiny", "no mask here"], 3, ["text 1", "[MASK]"]),
        (["eval", "--from", "subjects"], 2, ["--data"]),
        (["eval", "--from", "subjects", "--data", "none.csv"], 3, ["none.csv"]),
        (["status", "subject"], 3, ["did you mean 'subjects'"]),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence_and_changes_nothing(
    tiny_workspace: Path,
    corpus_file: Path,
    labelled_file: Path,
    words: list[str],
    code: int,
    says: list[str],
):
    before = snapshot(tiny_workspace)
    filled = [w.format(corpus=corpus_file, labelled=labelled_file) for w in words]
    message = one_sentence(llmctl(tiny_workspace, *filled, code=code))
    for part in says:
        assert part in message, message
    assert snapshot(tiny_workspace) == before


def test_binary_and_empty_files(tmp_path: Path):
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    for name, says in (
        ("picture.bin", "offset 0"),
        ("empty.txt", "no text"),
        ("latin.txt", "offset 3"),
    ):
        message = one_sentence(llmctl(tmp_path / "w", "tokenize", tmp_path / name, code=3))
        assert name in message
        assert says in message
    assert not list((tmp_path / "w").glob("[!.]*/*"))


def test_one_class_only(tiny_workspace: Path, tmp_path: Path):
    data = tmp_path / "one.csv"
    data.write_text("label,text\na,first text\na,second text\n")
    message = one_sentence(
        llmctl(tiny_workspace, "finetune", "--from", "tiny", "--data", data, code=3)
    )
    assert "one class only" in message


def test_an_unknown_label_in_the_test_data(tiny_workspace: Path, tmp_path: Path):
    data = tmp_path / "other.csv"
    data.write_text("label,text\nsea,the ship sails\nmoon,dust and stone\n")
    message = one_sentence(
        llmctl(tiny_workspace, "eval", "--from", "subjects", "--data", data, code=3)
    )
    assert "moon" in message


@pytest.mark.parametrize("value", ["preset = 5", "preset = ['nano']", "arch = ['bert']"])
def test_a_recipe_with_a_value_of_another_type(tiny_workspace: Path, tmp_path: Path, value: str):
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"[pretrain]\n{value}\n")
    message = one_sentence(
        llmctl(tiny_workspace, "pretrain", "--recipe", recipe, "--dry-run", code=2)
    )
    assert value.partition(" ")[0] in message


def test_the_task_of_a_recipe_is_read(tiny_workspace: Path, tmp_path: Path, labelled_file: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[finetune]\ntask = 'x'\n")
    message = one_sentence(
        llmctl(tiny_workspace, "finetune", "--from", "tiny", "--data", labelled_file,
               "--recipe", recipe, code=2)
    )  # fmt: skip
    assert "--task 'x' is not known" in message


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_model_is_found_by_its_digest(workspace: Path, damage: str):
    weights = workspace / "runs" / "subjects" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        content = content[:-10]
    else:
        content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    message = one_sentence(llmctl(workspace, "predict", "--from", "subjects", "a ship", code=3))
    assert "model.safetensors" in message


def test_a_damaged_shard_is_found_by_its_digest(workspace: Path):
    shard = next((workspace / "shards" / "stories").glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    message = one_sentence(llmctl(workspace, "pretrain", *TINY, "--name", "new", code=3))
    assert shard.name in message
    assert not (workspace / "runs" / "new").exists()


def test_a_foreign_tokenizer_in_the_model_folder(workspace: Path):
    model = workspace / "runs" / "subjects" / "model"
    value = json.loads((model / "tokenizer.json").read_text())
    value["model"]["vocab"]["zebra"] = len(value["model"]["vocab"])
    (model / "tokenizer.json").write_text(json.dumps(value))
    assert "tokenizer.json" in one_sentence(
        llmctl(workspace, "predict", "--from", "subjects", "a ship", code=3)
    )
    assert "don't belong together" in one_sentence(
        llmctl(workspace, "predict", "--from", model, "a ship", code=3)
    )


def test_a_workspace_of_a_newer_format(workspace: Path):
    (workspace / "workspace.json").write_text('{"format_version": 99}')
    message = one_sentence(llmctl(workspace, "status", code=3))
    assert "format 99" in message
    assert "upgrade" in message


@pytest.mark.parametrize("stage", ["tokenize", "pretrain", "finetune"])
def test_a_full_disk_stops_cleanly(
    workspace: Path, corpus_file: Path, labelled_file: Path, stage: str
):
    """A limit on the size of files stands for the disk: the system calls fail alike."""
    before = {p for p in snapshot(workspace) if "tokenizers" not in p.parts}
    words = {
        "tokenize": ["tokenize", corpus_file, "--tokenizer", "stories", "--name", "again"],
        "pretrain": ["pretrain", *TINY, "--set", "training.max_steps=4", "--name", "again"],
        "finetune": ["finetune", "--from", "tiny", "--data", labelled_file, "--name", "again",
                     "--set", "training.max_steps=4"],
    }[stage]  # fmt: skip
    if stage == "tokenize":
        large = workspace.parent / "large.txt"
        large.write_text("".join(f"line {n} of the sea\n" for n in range(20_000)))
        words[1] = large
        words += ["--document", "line"]
    result = llmctl(workspace, *words, code=5, largest_file=40_000)
    message = one_sentence(result)
    assert "disk is full" in message
    assert str(workspace / {"tokenize": "shards"}.get(stage, "runs") / "again") in message
    assert not list(workspace.rglob("*.partial"))
    after = {
        p for p in snapshot(workspace) if "again" not in p.parts and "tokenizers" not in p.parts
    }
    assert before <= after
    if stage != "tokenize":
        llmctl(workspace, *words)
    status = json.loads(llmctl(workspace, "status", "--json").stdout)
    assert {run["state"] for run in status["runs"]} == {"finished"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_results_that_find_no_room(tiny_workspace: Path):
    words = [sys.executable, "-m", "llmctl", "status", "--json", "-w", str(tiny_workspace)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 5
    assert "standard output" in one_sentence(result)
    assert result.stderr.count("\n") == 1


def test_gradients_that_stay_not_finite(workspace: Path):
    """The first steps throw the weights away; the checkpoint before it stays."""
    words = ["pretrain", *TINY, "--name", "wild", "--set", "training.max_steps=20"]
    words += ["--set", "training.checkpoint_every=1", "--set", "training.learning_rate=1e6"]
    result = llmctl(workspace, *words, code=6)
    assert "training.learning_rate" in one_sentence(result)
    assert result.stderr.count("not finite; step skipped") == 4
    checkpoints = list((workspace / "runs" / "wild" / "checkpoints").iterdir())
    assert checkpoints
    for checkpoint in checkpoints:
        weights = load_file(checkpoint / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())
    status = json.loads(llmctl(workspace, "status", "wild", "--json").stdout)
    assert status["run"]["state"] == "failed"
    assert "not finite" in status["run"]["message"]


def test_debug_shows_the_traceback(tiny_workspace: Path):
    result = llmctl(tiny_workspace, "--debug", "tokenize", "nowhere.txt", code=3)
    assert "Traceback" in result.stderr
    assert os.linesep in result.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ResourceError("out of memory in process 1"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (UsageError("--name is wrong"), False),
        (LostProcess("process 1 lost the others"), False),
    ],
)
def test_of_several_processes_the_one_tells_that_met_it(
    error: Exception,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """What all meet the first tells of; what one may meet alone, that one."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(guard, "ERROR_REPORT_GRACE", 0.0)

    @guard.guarded
    def command() -> None:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        command()
    signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.startswith("error: ") == told


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_signal_that_a_library_swallows_ends_the_process_all_the_same(tiny_workspace: Path):
    script = """
import signal, time
from llmctl.cli import guard
guard.LAST_RESORT_SECONDS = 0.3

class Library:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)  # what is raised in here is dropped

@guard.guarded
def command():
    Library()
    time.sleep(600)

command()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert result.returncode == 143
