"""Kills trainings at random moments and proves that nothing is lost or broken; run by hand.

    python tests/benchmarks/kills.py                        # kill -9 a hundred times
    python tests/benchmarks/kills.py --signal TERM          # SIGTERM: a checkpoint within 10 s

BERT, GPT, nanochat with Muon and a finetuning with LoRA are trained at nano size, each in a
process of its own that is killed, with its children, and started again until it has come to its
end. Most moments are drawn evenly over the life of a process, from its first import to its exit;
some wait for what is too short to be met by chance, as the export. After each kill every artefact
must be whole. At a run's end its weights and its log must be, to the bit, those of a run that was
never killed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import SUBJECTS, TINY, make_sentences

NOTICE = 10.0
"""Seconds within which SIGTERM must have written its checkpoint."""
CLOCKED = frozenset({"tokens_per_second", "elapsed", "padding", "utilisation", "memory_bytes"})
"""Figures of a log that depend on the clock, or on where a process began."""
AIMED_SHARE = 0.3
"""Of the kills: those that wait for a moment seldom met by chance."""
LOG_EVERY, CHECKPOINT_EVERY = 7, 20

PHASES = (
    "before the run's folder is there",
    "in starting again, before a sign of life",
    "before its first logged step",
    "in steps",
    "in writing a checkpoint",
    "in the export",
    "after its last word",
)


@dataclass(frozen=True)
class Training:
    """A command and how many steps it does."""

    name: str
    words: tuple[str, ...]
    steps: int


def sets(**values: object) -> list[str]:
    """``--set`` options; a double underscore stands for the dot."""
    return [
        word
        for key, value in values.items()
        for word in ("--set", f"{key.replace('__', '.')}={value}")
    ]


def trainings(steps: int, labelled: Path, *, base: str = "base") -> list[Training]:
    """The commands to kill: two objectives, two optimisers, finetuning with best weights kept.
    They need shards ``words`` and ``bytes``, and a pretrained run to finetune."""
    often = sets(
        training__max_steps=steps,
        training__log_every=LOG_EVERY,
        training__checkpoint_every=CHECKPOINT_EVERY,
        training__keep_checkpoints="last",  # to be compared, too
        training__eval_every=50,
        training__precision="fp32",
    )
    dropout = sets(model__dropout=0.1)
    bert = ["pretrain", "--arch", "bert", "--shards", "words", *TINY, *often, *dropout]
    gpt = ["pretrain", "--arch", "gpt", "--shards", "bytes", *TINY, *often, *dropout]
    nanochat = ["pretrain", "--arch", "nanochat", "--shards", "bytes", *TINY, *often]
    tuned = ["finetune", "--from", base, "--data", str(labelled), "--method", "lora", *often]
    tuned += sets(patience=0)
    commands = {"bert": bert, "gpt": gpt, "nanochat": nanochat, "finetune": tuned}
    return [Training(name, tuple(words), steps) for name, words in commands.items()]


def environment(workspace: Path) -> dict[str, str]:
    # One thread is as fast for models this small, and far less disturbed by others.
    fixed = {"LLMCTL_WORKSPACE": str(workspace), "COLUMNS": "200"}
    return {"OMP_NUM_THREADS": "1", **os.environ, **fixed}


def begin(workspace: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmctl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(workspace),
        start_new_session=True,
        **options,
    )


def run(workspace: Path, *words: str) -> str:
    process = begin(workspace, *words)
    out, err = process.communicate()
    assert process.returncode == 0, f"{words}: exit code {process.returncode}\n{out}\n{err}"
    return out


def prepare(workspace: Path, folder: Path) -> Path:
    """Shards and a pretrained model; returns labelled examples to finetune on."""
    generator = random.Random(0)
    corpus, labelled = folder / "stories.txt", folder / "subjects.csv"
    subjects = list(SUBJECTS)
    lines = [
        make_sentences(generator.choice(subjects), generator.randint(2, 8), generator)
        for _ in range(300)
    ]
    corpus.write_text("\n".join(lines) + "\n")
    rows = [f"{s},{make_sentences(s, 2, generator)}" for s in subjects for _ in range(40)]
    labelled.write_text("label,text\n" + "\n".join(rows) + "\n")
    common = ["tokenize", str(corpus), "--document", "line", "--validation", "0.1"]
    run(workspace, *common, "--vocab-size", "120", "--name", "words")
    run(workspace, *common, "--tokenizer", "bpe", "--vocab-size", "400", "--name", "bytes")
    short = sets(training__max_steps=20)
    run(workspace, "pretrain", "--shards", "words", *TINY, *short, "--name", "base")
    return labelled


# What must hold after each kill


def hidden(root: Path) -> list[str]:
    """Hidden files and folders but the folder of the locks."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob(".*"))
        if path != root / ".locks"
    ]


def check_digests(folder: Path, files: dict[str, dict[str, Any]], *, all_of: bool) -> None:
    """A folder's files are as their records say; with ``all_of`` there are no others."""
    for name, record in files.items():
        content = (folder / name).read_bytes()
        assert len(content) == record["size"], f"{folder / name} is cut short"
        if "sha256" in record:
            whole = hashlib.sha256(content).hexdigest() == record["sha256"]
        else:
            whole = zlib.crc32(content) == int(record["crc32"], 16)
        assert whole, f"{folder / name} has changed"
    if all_of:
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert there == {*files, "manifest.json"}, f"{folder}: {there ^ files.keys()}"


def check_workspace(root: Path) -> dict[str, Any]:
    """Every artefact and every checkpoint in a workspace is whole; returns its status."""
    status = json.loads(run(root, "status", "--json"))
    assert status["damaged"] == [], status["damaged"]
    for kind in ("tokenizers", "shards", "runs"):
        for folder in (root / kind).iterdir():
            if folder.name.startswith("."):
                continue
            manifest = json.loads((folder / "manifest.json").read_text())
            check_digests(folder, manifest["files"], all_of=kind != "runs")
            for checkpoint in folder.glob("checkpoints/[!.]*"):
                files = json.loads((checkpoint / "manifest.json").read_text())
                check_digests(checkpoint, files, all_of=True)
    return status  # type: ignore[no-any-return]


def records(folder: Path) -> list[dict[str, Any]]:
    """A run's log without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in CLOCKED}
        for line in lines
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Model, adapter and newest checkpoint, by file, without what tells of times. A kill behind the
    run's last word may leave older checkpoints too."""
    newest = max((folder / "checkpoints").glob("step-*"), default=folder / "checkpoints")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in (folder / "model", folder / "adapter", newest)
        for path in sorted(part.rglob("*"))
        if path.is_file() and path.name not in ("state.json", "manifest.json", "README.md")
    }


def check_equal(root: Path, name: str, training: Training) -> None:
    """A run that was killed is, to the bit, the one that never was."""
    ours, whole = root / "runs" / name, root / "runs" / f"{training.name}-whole"
    logged = [record["step"] for record in records(ours) if record["kind"] == "train"]
    expected = [n for n in range(1, training.steps + 1) if n % LOG_EVERY == 0]
    if expected[-1] != training.steps:
        expected.append(training.steps)
    assert logged == expected, f"steps in {name}'s log: {logged}"
    assert records(ours) == records(whole), f"{name}'s log differs"
    mine, theirs = contents(ours), contents(whole)
    assert mine.keys() == theirs.keys(), f"{name}: {mine.keys() ^ theirs.keys()}"
    differing = [file for file in theirs if mine[file] != theirs[file]]
    assert not differing, f"{name}: {differing} differ"
    left = [*hidden(ours), *(root / "runs").glob(".*"), *root.glob(".[!l]*")]
    assert not left, f"left over: {left}"
    locks = {path.suffix for path in (root / ".locks").iterdir()}
    assert locks == {".lock"}, locks


# When to kill


@dataclass
class View:
    """What can be seen of a run from outside."""

    folder: Path

    def finished(self) -> bool:
        path = self.folder / "manifest.json"
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text())["finished"] is not None
        return False

    def exporting(self) -> bool:
        return any((self.folder / name).exists() for name in (".model.partial", "model"))

    def checkpointing(self) -> bool:
        return any(True for _ in self.folder.glob("checkpoints/.*.partial"))

    def progress(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "progress.json").read_text())  # type: ignore[no-any-return]
        return {}

    def lost(self) -> int:
        """Steps that the log tells of and no checkpoint has: at least so many are done again."""
        return max(0, self.progress().get("step", 0) - self.saved())

    def saved(self) -> int:
        steps = [int(path.name[5:]) for path in self.folder.glob("checkpoints/step-*")]
        return max(steps, default=0)


Moment = tuple[float, str | None]
"""Seconds to wait, from a process's start or from what is aimed at, and the aim."""

AIMS: dict[str, Callable[[View], bool]] = {
    "in steps": lambda view: view.lost() > 0,
    "in writing a checkpoint": View.checkpointing,
    "in the export": View.exporting,
    "after its last word": View.finished,
}
SELDOM = ("in writing a checkpoint", "in the export", "after its last word")


@dataclass
class Tally:
    """What was killed when, and what it cost."""

    phases: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    """Steps that were done and not in a checkpoint, of each kill."""
    finished: int = 0
    """Runs that came to their end and were compared."""
    answers: list[float] = field(default_factory=list)
    """Seconds from SIGTERM to the end of the process."""

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


def moments(generator: random.Random, life: float) -> Iterator[Moment]:
    """Random moments in the lives of processes that live so many seconds."""
    while True:
        if generator.random() < AIMED_SHARE:
            yield generator.uniform(0, 0.03), generator.choice(SELDOM)
        else:
            yield generator.uniform(0, life), None


def phase(view: View, process: subprocess.Popen[str], begun_at: int) -> str:
    """Where a process was killed, by what it left: what others left goes before it signs."""
    progress = view.progress()
    if view.finished():
        return "after its last word"
    if not view.folder.exists():
        return "before the run's folder is there"
    if progress.get("pid") != process.pid:
        return "in starting again, before a sign of life"
    if view.exporting():
        return "in the export"
    if view.checkpointing():
        return "in writing a checkpoint"
    return "in steps" if progress.get("step", 0) > begun_at else "before its first logged step"


def wait_for(
    process: subprocess.Popen[str], view: View, delay: float, aim: str | None, deadline: float
) -> bool:
    """Wait for the moment; whether the process still runs then."""
    while aim is not None and not AIMS[aim](view):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "a training hangs"
        time.sleep(0.0005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    return process.poll() is None


def kill_until(
    root: Path,
    training: Training,
    kills: int,
    when: Iterator[Moment],
    number: signal.Signals = signal.SIGKILL,
) -> Tally:
    """Start a training again and again and kill it, so many times; then let it come to its end.

    A run that comes to its end before is compared, and the next one begun.
    """
    tally = Tally()
    while True:
        name = f"{training.name}-{tally.finished}"
        view = View(root / "runs" / name)
        begun_at = view.saved()
        process = begin(root, *training.words, "--name", name)
        unharmed = tally.kills == kills or view.finished()
        delay, aim = (600.0, None) if unharmed else next(when)
        if wait_for(process, view, delay, aim, time.monotonic() + 120):
            before = view.saved()
            stop(process, number, tally)
            tally.phases[phase(view, process, begun_at)] += 1
            tally.lost.append(view.lost())
            assert view.saved() >= before, f"{name} had a checkpoint of step {before}"
            if number == signal.SIGTERM:
                assert view.lost() == 0, f"{name} lost {view.lost()} steps"
            states = {run["name"]: run["state"] for run in check_workspace(root)["runs"]}
            assert states.get(name) in (None, "interrupted", "finished"), states[name]
            if process.returncode != 0:
                continue
        out, err = process.communicate()
        assert process.returncode == 0, f"{name}: exit code {process.returncode}\n{out}\n{err}"
        check_workspace(root)
        check_equal(root, name, training)
        tally.finished += 1
        if tally.kills == kills:
            return tally


def stop(process: subprocess.Popen[str], number: signal.Signals, tally: Tally) -> None:
    """Signal a process with its children, and wait for its end."""
    sent = time.monotonic()
    os.killpg(process.pid, number)
    _, err = process.communicate()
    if number == signal.SIGTERM:
        tally.answers.append(time.monotonic() - sent)
        assert tally.answers[-1] < NOTICE, f"SIGTERM: {tally.answers[-1]:.1f} s"
        # 0: it was in its export. -15: Python was not up yet.
        assert process.returncode in (143, 0, -number), f"{process.returncode}\n{err}"
        assert "Traceback" not in err, err


def whole(root: Path, training: Training) -> float:
    """Train without a kill; returns the seconds that it takes."""
    begun = time.monotonic()
    run(root, *training.words, "--name", f"{training.name}-whole")
    return time.monotonic() - begun


def table(tallies: dict[str, Tally]) -> str:
    """Where the kills fell, and what was lost and done again."""
    names = list(tallies)
    rows: list[list[object]] = [["", *names, "all"], ["---"] * (len(names) + 2)]

    def row(label: str, figures: Sequence[int]) -> None:
        rows.append([label, *figures, sum(figures)])

    row("kills", [t.kills for t in tallies.values()])
    for at in PHASES:
        row(at, [t.phases[at] for t in tallies.values()])
    row("kills that lost steps", [sum(n > 0 for n in t.lost) for t in tallies.values()])
    row("steps lost and done again", [sum(t.lost) for t in tallies.values()])
    row("runs equal to the bit", [t.finished for t in tallies.values()])
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    options = parser.parse_args()
    number = signal.Signals[f"SIG{options.signal}"]
    generator = random.Random(options.seed)
    begun = time.monotonic()
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "workspace"
        commands = trainings(options.steps, prepare(root, Path(name)))
        for place, training in enumerate(commands):
            kills = (options.kills * (place + 1)) // len(commands) - sum(
                tally.kills for tally in tallies.values()
            )
            life = whole(root, training)
            tally = kill_until(root, training, kills, moments(generator, life), number)
            tallies[training.name] = tally
            assert hidden(root) == [], hidden(root)
            lost = sum(n > 0 for n in tally.lost)
            print(f"{training.name}: {life:.1f} s unharmed, {kills} kills, {lost} lost steps")
    print(table(tallies))
    answers = [seconds for tally in tallies.values() for seconds in tally.answers]
    if answers:
        print(f"SIGTERM answered in at most {max(answers):.1f} s")
    elif not any(any(tally.lost) for tally in tallies.values()):
        raise SystemExit("no kill lost any work, so nothing was proven")
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
