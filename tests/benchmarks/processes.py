"""Training speed of two processes on two cores beside one process on one core; run by hand.

    python -m tests.benchmarks.processes [--arch gpt] [--rounds 3] [--parallel ddp]

6 layers × 384 (gpt) or 4 × 256 (bert) on Python's own text, 16 rows of 256 for each process. The
runs take turns, each a command as a user gives it; medians of the logged tokens/s behind the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

SHAPES = {"gpt": ("6", "384", "bpe"), "bert": ("4", "256", "wordpiece")}
ROWS, STEPS, LOG_EVERY = 16, 24, 4


def llmctl(root: Path, *words: object, cores: str, threads: int) -> None:
    subprocess.run(
        ["taskset", "-c", cores, sys.executable, "-m", "llmctl", *map(str, words), "--quiet"],
        env={**os.environ, "LLMCTL_WORKSPACE": str(root), "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def speed(root: Path, arch: str, precision: str, name: str, processes: int, parallel: str) -> float:
    layers, width, _ = SHAPES[arch]
    words: list[object] = [
        "pretrain", "--arch", arch, "--shards", "text", "--force", "--name", name,
        "--set", f"model.num_layers={layers}", "--set", f"model.hidden_size={width}",
        "--set", "data.sequence_length=256", "--set", f"training.batch_size={ROWS * processes}",
        "--set", f"training.max_steps={STEPS}", "--set", f"training.log_every={LOG_EVERY}",
        "--set", "training.eval_every=0", "--set", "data.eval_batches=1",
        "--set", f"training.precision={precision}", "--set", "training.compile=off",
    ]  # fmt: skip
    if processes > 1:
        words += ["--nproc", processes, "--set", f"training.parallel={parallel}"]
    cores = ",".join(map(str, range(processes)))
    llmctl(root, *words, cores=cores, threads=1)
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    return median(record["tokens_per_second"] for record in records[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", choices=SHAPES, default="gpt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = SHAPES[options.arch][2]
        llmctl(root, "tokenize", "python:docs", "--tokenizer", tokenizer, "--vocab-size", 8000,
               "--name", "text", cores="0,1", threads=2)  # fmt: skip
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for processes, speeds in found.items():
                how = (options.arch, options.precision, f"of-{processes}", processes)
                speeds.append(speed(root, *how, options.parallel))
    for processes, speeds in found.items():
        print(f"{processes} process(es): {median(speeds):,.0f} tokens/s")
    ratios = sorted(two / one for one, two in zip(found[1], found[2], strict=True))
    print(f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
