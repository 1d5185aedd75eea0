"""Fills the disk under every stage; run by hand, as root where it shall be a real one.

    python tests/benchmarks/full_disk.py [--points 8]

A small tmpfs holds the workspace; where none can be mounted, a limit on the size of files stands
for it. Each stage is run with more and more room, from none to nearly enough, and trainings on a
disk that fills up at some moment of their life, so that checkpoints, logs, manifests and the model
all meet it. A command must stop with exit code 5 and one sentence that names a path, leave every
artefact and every checkpoint whole and nothing half-written; and once there is room the same
command must end as one that always had it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.kills import (
    Training,
    begin,
    check_equal,
    check_workspace,
    hidden,
    prepare,
    run,
    trainings,
    whole,
)

DISK_MB = 64
BLOCK = 4096
BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at ``folder``; whether there is one."""
    folder.mkdir()
    size = ["-o", f"size={DISK_MB}m"]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", *size, "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def free(folder: Path) -> int:
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def leave(folder: Path, room: int) -> None:
    """Fill a disk but for so many bytes."""
    with (folder / BALLAST).open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(BLOCK, free(folder) - room))


def limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def peak(root: Path, words: list[str]) -> int:
    """Bytes of the disk that a command takes at the most, watched from outside."""
    before = lowest = free(root)
    process = begin(root, *words)
    while process.poll() is None:
        lowest = min(lowest, free(root))
        time.sleep(0.002)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return before - lowest


def largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def outcome(process: subprocess.Popen[str], root: Path) -> str:
    """What a command without enough room named, or "enough"."""
    _, err = process.communicate()
    if process.returncode == 0:
        return "enough"
    assert process.returncode == 5, f"exit code {process.returncode}\n{err}"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err, err
    assert "the disk is full (" in errors[0], errors[0]
    assert "free some space and run the command again" in errors[0]
    path = Path(errors[0].partition("(")[2].partition("):")[0])
    assert path.is_relative_to(root), errors[0]
    return path.name if path.suffix else path.parent.name


def sweep(root: Path, training: Training, points: int, life: float, *, disk: bool) -> Counter[str]:
    """Run a training of so many seconds with more and more room, and on a disk that fills up
    later and later; returns what did not fit, how often."""
    needed = peak(root, [*training.words, "--name", "measured"])
    shutil.rmtree(root / "runs" / "measured")
    most = largest(root / "runs" / f"{training.name}-whole")
    met: Counter[str] = Counter()
    for number in range(points * (2 if disk else 1)):
        share = number % points / points
        name = f"{training.name}-{number}"
        words = [*training.words, "--name", name]
        if not disk:
            process = begin(root, *words, preexec_fn=limit(int(most * share)))
        elif number < points:
            leave(root.parent, int(needed * share))
            process = begin(root, *words)
        else:
            process = begin(root, *words)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(life * (share + 0.5 / points))
            leave(root.parent, 0)
        met[outcome(process, root)] += 1
        left = hidden(root)
        (root.parent / BALLAST).unlink(missing_ok=True)
        assert not left, f"left over by {name}: {left}"
        check_workspace(root)
        run(root, *words)
        check_equal(root, name, training)
        shutil.rmtree(root / "runs" / name)
    return met


def sweep_tokenize(root: Path, corpus: Path, points: int, *, disk: bool) -> Counter[str]:
    words = ["tokenize", str(corpus), "--tokenizer", "words", "--document", "line"]
    needed = peak(root, [*words, "--name", "measured"])
    expected = {p.name: p.read_bytes() for p in (root / "shards/measured").glob("*.arrow")}
    most = largest(root / "shards" / "measured")
    shutil.rmtree(root / "shards" / "measured")
    met: Counter[str] = Counter()
    for number in range(points):
        share = number / points
        if disk:
            leave(root.parent, int(needed * share))
            met[outcome(begin(root, *words, "--name", "again"), root)] += 1
            (root.parent / BALLAST).unlink()
        else:
            process = begin(root, *words, "--name", "again", preexec_fn=limit(int(most * share)))
            met[outcome(process, root)] += 1
        assert not hidden(root), hidden(root)
        check_workspace(root)
        run(root, *words, "--name", "again")
        made = {p.name: p.read_bytes() for p in (root / "shards/again").glob("*.arrow")}
        assert made == expected
        shutil.rmtree(root / "shards" / "again")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=8, help="amounts of room, for each stage")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    options = parser.parse_args()
    rows: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as disk:
        print("a tmpfs" if disk else "a limit on the size of files: no tmpfs can be mounted")
        root = Path(name) / "disk" / "workspace"
        labelled = prepare(root, Path(name))
        corpus = Path(name) / "large.txt"
        generator = random.Random(0)
        corpus.write_text(
            "".join(f"line {generator.randint(0, 10**9)} of the sea\n" for _ in range(50_000))
        )
        rows["tokenize"] = sweep_tokenize(root, corpus, options.points, disk=disk)
        for training in trainings(options.steps, labelled):
            if training.name in ("bert", "finetune"):
                life = whole(root, training)
                rows[training.name] = sweep(root, training, options.points, life, disk=disk)
    print("| | exit code 5, by what did not fit | enough room |\n| --- | --- | --- |")
    for stage, met in rows.items():
        named = ", ".join(f"{what} {n}" for what, n in sorted(met.items()) if what != "enough")
        print(f"| {stage} | {named} | {met['enough']} |")


if __name__ == "__main__":
    main()
