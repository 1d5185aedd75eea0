"""Several processes train as one does, go on from each other's checkpoints, and survive a loss."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llmctl.workspace.locks import writer_lock
from llmctl.workspace.tensors import read_tensors
from tests.run import llmctl, one_sentence, start

NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the processes in /proc"
)
STEPS = 12
OPTIONS = [
    "pretrain", "--arch", "nanochat", "--preset", "nano", "--shards", "text",
    "--set", "model.num_layers=2", "--set", "model.hidden_size=32", "--set", "model.num_heads=2",
    "--set", "data.sequence_length=32", "--set", "model.max_positions=32",
    "--set", "training.batch_size=10", "--set", f"training.max_steps={STEPS}",
    "--set", "training.log_every=3", "--set", "training.eval_every=6",
    "--set", "training.checkpoint_every=4", "--keep-checkpoints", "last",
    "--set", "training.precision=fp32",
    "--set", "training.compile=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """Shards, and a run of one process."""
    root = tmp_path_factory.mktemp("distributed")
    llmctl(root, "tokenize", corpus_file, "--document", "line", "--tokenizer", "bpe",
           "--vocab-size", "300", "--validation", "0.1", "--name", "text")  # fmt: skip
    llmctl(root, *OPTIONS, "--name", "alone")
    return root


def losses(root: Path, name: str) -> list[tuple[str, int, float]]:
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, lines)]


def assert_same_training(root: Path, name: str, other: str = "alone") -> None:
    """The same steps, each once, with losses and weights that agree to rounding."""
    ours, theirs = losses(root, name), losses(root, other)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert [entry[2] for entry in ours] == pytest.approx([e[2] for e in theirs], rel=2e-5)
    weights = [
        read_tensors(root / "runs" / n / "model" / "model.safetensors") for n in (name, other)
    ]
    for key, value in weights[0].items():
        assert value.numpy() == pytest.approx(weights[1][key].numpy(), abs=2e-4), key


def summary(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "runs" / name / "manifest.json").read_text())["summary"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("three", ["--nproc", "3"]),
        pytest.param(
            "parts", ["--nproc", "2", "--set", "training.micro_batch=2"], marks=pytest.mark.slow
        ),
        ("shares", ["--nproc", "2", "--set", "training.parallel=fsdp"]),
        pytest.param(
            "again",
            ["--nproc", "2", "--set", "training.parallel=fsdp", "--set",
             "training.activation_checkpointing=true"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_several_processes_train_as_one(root: Path, name: str, more: list[str]):
    result = llmctl(root, *OPTIONS, *more, "--name", name)
    assert result.stdout.count("run ") == 1  # one of them speaks
    assert_same_training(root, name)
    assert summary(root, name)["processes"] == int(more[1])
    (newest,) = sorted((root / "runs" / name / "checkpoints").iterdir())[-1:]
    shares = sorted(path.name[:11] for path in newest.glob("model/*.safetensors"))
    assert shares == (["shard-00001", "shard-00002"] if "training.parallel=fsdp" in more else [])


@NEEDS_PROC
@pytest.mark.parametrize("optimiser", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_a_run_goes_on_with_another_number_of_processes(root: Path, optimiser: str):
    command = [*OPTIONS, "--set", f"training.optimiser={optimiser}"]
    llmctl(root, *command, "--name", f"whole-{optimiser}")
    name = f"moved-{optimiser}"
    sharded = ["--nproc", "2", "--set", "training.parallel=fsdp"]
    process = start(root, *command, "--name", name, *sharded)
    wait_for_checkpoint(root, name)
    assert_nobody_else_is_let_in(process.pid)
    for worker in workers(process.pid):
        os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=60)
    result = llmctl(root, *command, "--name", name)
    assert "going on with" in result.stderr
    assert "processes 2, now 1" in result.stderr
    assert_same_training(root, name, f"whole-{optimiser}")


def wait_for_checkpoint(root: Path, name: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list((root / "runs" / name / "checkpoints").glob("step-*")):
            return
        time.sleep(0.02)
    raise AssertionError(f"run {name} wrote no checkpoint")


def workers(process: int) -> list[int]:
    """The processes that a launcher has started, by their rank."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [v for v in variables if v.startswith(b"RANK=")]
        if rank:
            ranks[int(rank[0][5:])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def assert_nobody_else_is_let_in(process: int) -> None:
    """Of a launcher and what it started: nothing listens beyond this machine, and where they find
    each other is for this user alone."""
    pids = [process, *workers(process)]
    own = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                own.add(os.readlink(link))
    listening = []
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0" * 24 + "01000000")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                listening.append(address)
                assert address.partition(":")[0] == loopback
    assert len(listening) >= len(pids) - 1  # each of gloo's, or nothing was looked at
    for pid in pids[1:]:
        variables = dict(
            entry.split(b"=", 1)
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"=" in entry
        )
        folder = Path(os.fsdecode(variables[b"LLMCTL_STORE"])).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert b"MASTER_PORT" not in variables


@NEEDS_PROC
def test_a_lost_process_comes_back_at_the_last_checkpoint(root: Path):
    longer = [*OPTIONS, "--set", "training.max_steps=60"]
    llmctl(root, *longer, "--name", "unharmed", "--nproc", "2")
    process = start(root, *longer, "--name", "harmed", "--nproc", "2", "--max-restarts", "1")
    wait_for_checkpoint(root, "harmed")
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "going on with harmed" in err
    assert losses(root, "harmed") == losses(root, "unharmed")


@pytest.mark.slow
@NEEDS_PROC
def test_without_restarts_it_says_how_to_go_on(root: Path):
    longer = [*OPTIONS, "--set", "training.max_steps=100000"]
    process = start(root, *longer, "--name", "lost", "--nproc", "2")
    wait_for_checkpoint(root, "lost")
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (5, 137)
    assert "Traceback" not in err
    assert "goes on from the last checkpoint" in err


@NEEDS_PROC
def test_a_signal_to_the_launcher_writes_a_checkpoint(root: Path):
    longer = [*OPTIONS, "--set", "training.max_steps=100000"]
    process = start(root, *longer, "--name", "stopped", "--nproc", "2")
    wait_for_checkpoint(root, "stopped")
    assert_nobody_else_is_let_in(process.pid)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "after writing a checkpoint" in err
    # And nothing of the launcher's own.
    command = one_sentence(subprocess.CompletedProcess(process.args, 143, "", err))
    assert "--nproc 2" in command.partition("go on with: ")[2]
    assert "death signal" not in err
    step = json.loads((root / "runs" / "stopped" / "progress.json").read_text())["step"]
    assert (root / "runs" / "stopped" / "checkpoints" / f"step-{step:08d}").is_dir()


def test_an_error_is_told_once_with_its_exit_code(root: Path):
    result = llmctl(root, *OPTIONS, "--nproc", "2", "--shards", "nowhere", code=3)
    assert "nowhere" in one_sentence(result)


def test_a_run_that_another_writes_is_refused_in_one_sentence(root: Path):
    with writer_lock(root / "runs" / "taken"):
        result = llmctl(root, *OPTIONS, "--nproc", "2", "--name", "taken", code=4)
    assert "taken" in one_sentence(result)


@NEEDS_PROC
def test_without_its_launcher_a_training_stops_with_a_checkpoint(root: Path):
    longer = [*OPTIONS, "--set", "training.max_steps=100000"]
    process = start(root, *longer, "--name", "orphan", "--nproc", "2")
    wait_for_checkpoint(root, "orphan")
    process.kill()
    process.communicate(timeout=60)  # the children have its stderr, too
    progress = json.loads((root / "runs" / "orphan" / "progress.json").read_text())
    assert progress["state"] == "interrupted"
    step = progress["step"]
    assert (root / "runs" / "orphan" / "checkpoints" / f"step-{step:08d}").is_dir()


def test_a_budget_is_chosen_together_and_kept(root: Path):
    """All choose one shape and batch, though each has times of its own."""
    result = llmctl(
        root, "pretrain", "--arch", "nanochat", "--shards", "text", "--name", "budget",
        "--budget", "25s", "--nproc", "2", "--set", "data.sequence_length=32",
        "--set", "model.max_positions=32", "--set", "training.precision=fp32", "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert told["processes"] == 2
    log = (root / "runs" / "budget" / "metrics.jsonl").read_text().splitlines()
    rates = [r["learning_rate"] for r in map(json.loads, log) if r["kind"] == "train"]
    assert rates[-1] < 0.1 * max(rates)
    steps = [r["step"] for r in map(json.loads, log) if r["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_a_plan_of_several_processes_is_of_what_they_do_together(root: Path):
    """Sharded, with enough steps for it to be tried whether compiling pays."""
    words = [*OPTIONS, "--set", "training.max_steps=60", "--set", "training.compile=auto"]
    shared = ["--nproc", "2", "--set", "training.parallel=fsdp"]
    plan = json.loads(llmctl(root, *words, *shared, "--dry-run").stdout)["plan"]
    assert plan["processes"] == 2
    weights = 4 * plan["parameters"]
    assert weights / 2 <= plan["memory_by_kind"]["weights"] < 0.6 * weights
    assert plan["seconds_by_part"]["steps"] == pytest.approx(60 * plan["seconds_per_step"])
    assert not list((root / "runs").glob(".rehearsal*"))


def test_sharing_a_model_with_nobody_is_refused(root: Path):
    result = llmctl(root, *OPTIONS, "--name", "single", "--set", "training.parallel=fsdp", code=2)
    assert "--nproc" in one_sentence(result)


def test_several_processes_divide_what_one_predicts(tiny_workspace: Path, tmp_path: Path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the ship sails {'over waves ' * (n % 9)}\n" for n in range(300)))
    words = ["predict", "--from", "subjects", "--data", texts, "--json"]
    alone, together = (
        [json.loads(line) for line in llmctl(tiny_workspace, *words, *more).stdout.splitlines()]
        for more in ([], ["--nproc", "2"])
    )
    assert [answer["text"] for answer in together] == [answer["text"] for answer in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
    measure = ["eval", "--from", "tiny", "--max-tokens", "200", "--force", "--json"]
    alone, together = (
        json.loads(llmctl(tiny_workspace, *measure, *more).stdout)["results"]
        for more in ([], ["--nproc", "2"])
    )
    assert together == pytest.approx(alone, rel=1e-5)
    piped = llmctl(tiny_workspace, *words[:3], "--nproc", 2, stdin="the ship\n", code=2)
    assert "standard input" in one_sentence(piped)


def test_several_processes_divide_what_one_writes_and_measures(
    decoder_workspace: Path, tmp_path: Path
):
    root = Path(shutil.copytree(decoder_workspace, tmp_path / "w"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"The {'ship sails ' * (n % 5)}\n" for n in range(40)))
    texts, reports = [], []
    for number, more in enumerate([[], ["--nproc", "2"]]):
        output = tmp_path / f"out-{number}.jsonl"
        llmctl(root, "generate", "--from", "tiny-llama", "--prompt-file", prompts, "--output",
               output, "--temperature", 1, "--max-new-tokens", 12, "--set", "batch_size=2",
               *more)  # fmt: skip
        texts.append([json.loads(line)["completions"] for line in output.open()])
        measure = ["eval", "--from", "tiny-llama", "--json", "--name", f"report-{number}"]
        reports.append(json.loads(llmctl(root, *measure, *more).stdout)["results"]["model"])
    assert [[c["text"] for c in answer] for answer in texts[1]] == [
        [c["text"] for c in answer] for answer in texts[0]
    ]
    assert reports[1].keys() == reports[0].keys()
    for key in ("perplexity", "bits_per_byte", "tokens"):
        assert reports[1][key] == pytest.approx(reports[0][key], rel=1e-5)
