"""What ``llmctl plan`` and ``--budget`` promise beside what the runs then take; run by hand.

    python tests/benchmarks/plan.py plans [--repeats 1]
    python tests/benchmarks/plan.py budgets [--budgets 30s 2m]

Each run is a process of its own: its wall clock from start to end and its peak memory are those
that the system tells of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SHARDS: dict[str, list[object]] = {
    "code": ["python:code", "--tokenizer", "bpe", "--vocab-size", 8000, "--validation", 0.05],
    "docs": ["python:docs", "--tokenizer", "wordpiece", "--vocab-size", 8000],
}

STEPS = "training.max_steps="
PLANS: dict[str, list[object]] = {
    "nanochat nano, 600 steps": ["--arch", "nanochat", "--preset", "nano", "--shards", "code",
                                 "--set", f"{STEPS}600", "--set", "training.batch_size=8"],
    "nanochat mini, 200 steps": ["--arch", "nanochat", "--shards", "code", "--set", f"{STEPS}200",
                                 "--set", "training.batch_size=8"],
    "gpt mini, 200 steps": ["--arch", "gpt", "--shards", "code", "--set", f"{STEPS}200",
                            "--set", "training.batch_size=8"],
    "llama nano, 300 steps": ["--arch", "llama", "--preset", "nano", "--shards", "code",
                              "--set", f"{STEPS}300", "--set", "training.batch_size=8"],
    "bert nano, 400 steps": ["--arch", "bert", "--preset", "nano", "--shards", "docs",
                             "--set", f"{STEPS}400"],
    "gpt small (12 × 768), 12 steps": ["--arch", "gpt", "--preset", "small", "--shards", "code",
                                       "--set", f"{STEPS}12", "--set", "training.batch_size=4",
                                       "--set", "data.eval_batches=2"],
    "bert mini, 60 s": ["--arch", "bert", "--shards", "docs", "--set", "training.time_limit=60s"],
    "nanochat nano, compiled": ["--arch", "nanochat", "--preset", "nano", "--shards", "code",
                                "--set", f"{STEPS}1000", "--set", "training.batch_size=8",
                                "--set", "training.compile=on"],
}  # fmt: skip

BUDGETS: dict[str, list[object]] = {
    "nanochat": ["--arch", "nanochat", "--shards", "code"],
    "gpt": ["--arch", "gpt", "--shards", "code"],
    "llama": ["--arch", "llama", "--shards", "code"],
    "bert": ["--arch", "bert", "--shards", "docs"],
}


@dataclass
class Ran:
    """A process that has ended."""

    document: dict[str, Any]
    seconds: float
    peak_bytes: int


def llmctl(workspace: Path, *words: object) -> Ran:
    """Run a command with --json to its end."""
    command = [sys.executable, "-m", "llmctl", *map(str, words), "--json", "--quiet"]
    environment = {
        **os.environ, "LLMCTL_WORKSPACE": str(workspace), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Ran(json.loads(text), seconds, usage.ru_maxrss * 1024)


def off(predicted: float, real: float) -> str:
    return f"{predicted / real - 1:+.0%}"


def plans(workspace: Path, options: argparse.Namespace) -> None:
    """Plan, then run: time and memory."""
    print("| | planned, s | real, s | off | planned, MB | real, MB | off |")
    print("| --- |" + " --- |" * 6, flush=True)
    for number, (name, words) in enumerate(PLANS.items()):
        if options.only and not any(part in name for part in options.only):
            continue
        for repeat in range(options.repeats):
            plan = llmctl(workspace, "plan", *words).document["plan"]
            real = llmctl(workspace, "pretrain", *words, "--name", f"p{number}-{repeat}", "--force")
            seconds, memory = plan["expected_seconds"], plan["memory_bytes"]
            print(
                f"| {name} | {seconds:.1f} | {real.seconds:.1f} | {off(seconds, real.seconds)} | "
                f"{memory / 1e6:,.0f} | {real.peak_bytes / 1e6:,.0f} | "
                f"{off(memory, real.peak_bytes)} |",
                flush=True,
            )


def budgets(workspace: Path, options: argparse.Namespace) -> None:
    """Run with a budget: time and loss."""
    print("| | budget | real, s | off | chosen | rows | steps | loss | predicted | last rate |")
    print("| --- |" + " --- |" * 9, flush=True)
    for name, words in BUDGETS.items():
        if options.only and name not in options.only:
            continue
        for budget in options.budgets:
            run = f"{name}-{budget}"
            real = llmctl(
                workspace, "pretrain", *words, "--budget", budget, "--name", run,
                "--set", "training.log_every=1", "--force",
            )  # fmt: skip
            summary = real.document
            told = summary["budget"]
            best = told["candidates"][0]
            log = (workspace / "runs" / run / "metrics.jsonl").read_text().splitlines()
            rates = [r["learning_rate"] for r in map(json.loads, log) if r["kind"] == "train"]
            low, high = told["predicted_range"]
            wanted = told["budget_seconds"]
            print(
                f"| {name} | {budget} | {real.seconds:.1f} | {real.seconds / wanted - 1:+.1%} | "
                f"{best['num_layers']} × {best['hidden_size']} | {best['batch_size']} | "
                f"{summary['steps']:,} | {summary['validation']['loss']:.3f} | "
                f"{told['predicted_loss']:.2f} ({low:.2f}–{high:.2f}) | "
                f"{rates[-1] / max(rates):.1%} of the peak |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["plans", "budgets"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--budgets", nargs="+", default=["30s", "2m"])
    parser.add_argument("--only", nargs="+", help="rows that have one of these in their name")
    parser.add_argument("--workspace", type=Path, help="where shards are kept between calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = options.workspace or Path(folder)
        for name, words in SHARDS.items():
            llmctl(workspace, "tokenize", *words, "--name", name)
        {"plans": plans, "budgets": budgets}[options.what](workspace, options)


if __name__ == "__main__":
    main()
