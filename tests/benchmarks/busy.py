"""A machine shared with others: training, finetuning, generation and tokenizing, quiet and beside
two busy processes, with llmctl's way of waiting and with the library's own, in turn.

    python tests/benchmarks/busy.py WORKSPACE TABLE.csv [--seconds 3] [--rounds 2]

WORKSPACE has runs ``bert`` and ``gpt`` and the shards they were pretrained on; TABLE has labelled
texts. What is timed is steps or tokens alone, in a process of its own each time, once it has done a
few: how long a command takes to start isn't.

The fair share: on C cores, beside B processes of one thread each, T threads that are always ready
get T of T + B parts of the cores' time (the system divides it by threads). A run that did with that
time what it does quiet would be T * min(C, T + B) / (T + B) / min(C, T) times as fast as it is
quiet, half as fast for two threads on two cores beside two processes. What is told is how much of
that it reaches. For tokenizing T is its workers.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

KINDS = ("training", "finetuning", "generation", "tokenizing")
UNTIMED = 3
"""Steps that are not counted."""
LIBRARY = {"GOMP_SPINCOUNT": "300000"}
"""What the library takes by itself; named, it is left as it is."""
BUSY = 2
"""Processes beside."""
TEXT_BYTES = 6_000_000


def steps(trainer: object, seconds: float) -> float:
    """Steps a second of a trainer."""
    done, begun = 0, 0.0
    for record in trainer.run():  # type: ignore[attr-defined]
        if record.kind != "train":
            continue
        done += 1
        if done == UNTIMED:
            begun = time.perf_counter()
        elif done > UNTIMED and time.perf_counter() - begun >= seconds:
            break
    return (done - UNTIMED) / (time.perf_counter() - begun)


STEADY = {
    "max_steps": 1 << 30, "log_every": 1, "eval_every": 1 << 30, "checkpoint_every": 1 << 30,
    "precision": "fp32", "compile": "off",
}  # fmt: skip
"""Nothing but steps."""


def training(workspace: Path, table: Path, seconds: float) -> float:
    import torch

    from llmctl.reporting.reporter import Reporter
    from llmctl.stages.train import make_trainer
    from llmctl.tasks import pretraining
    from llmctl.tasks.requests import PretrainRequest
    from llmctl.training.checkpoints import CheckpointStore
    from llmctl.training.device import Machine
    from llmctl.workspace.artefacts import Workspace

    config = pretraining.resolve("bert", "mini", {"training": {**STEADY, "batch_size": 8}})
    task = PretrainRequest(config).open(Workspace(workspace), Reporter()).open(config, Reporter())
    machine = Machine(torch.device("cpu"), "fp32", False)
    store = CheckpointStore(Path(), 1)
    return steps(make_trainer(task, machine, store), seconds)


def finetuning(workspace: Path, table: Path, seconds: float) -> float:
    import torch

    from llmctl.reporting.reporter import Reporter
    from llmctl.stages.train import make_trainer
    from llmctl.tasks import finetuning
    from llmctl.tasks.requests import FinetuneRequest
    from llmctl.training.checkpoints import CheckpointStore
    from llmctl.training.device import Machine
    from llmctl.workspace.artefacts import Workspace

    config = finetuning.resolve("classify", {"training": STEADY})
    request = FinetuneRequest(config, "bert", table)
    task = request.open(Workspace(workspace), Reporter()).open(config, Reporter())
    machine = Machine(torch.device("cpu"), "fp32", False)
    return steps(make_trainer(task, machine, CheckpointStore(Path(), 1)), seconds)


def generation(workspace: Path, table: Path, seconds: float) -> float:
    """Tokens a second of one text at a time."""
    from llmctl.stages.generate import open_generation
    from llmctl.tasks.generation import GenerateConfig, Prompt
    from llmctl.workspace.artefacts import Workspace

    tokens = 60
    config = GenerateConfig(max_new_tokens=tokens, min_new_tokens=tokens)
    writer = open_generation(Workspace(workspace), "gpt", config, prompts=1)
    prompt = [Prompt("The class of the", "benchmark")]
    list(writer.answers(prompt))
    begun, written = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        list(writer.answers(prompt))
        written += tokens
    return written / (time.perf_counter() - begun)


def tokenizing(workspace: Path, table: Path, seconds: float) -> float:
    """Megabytes a second, from text to shards by a tokenizer that is there."""
    from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
    from llmctl.workspace.artefacts import Workspace

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        lines = table.read_text(encoding="utf-8")
        text.write_text((lines + "\n\n") * (TEXT_BYTES // len(lines)), encoding="utf-8")
        own = next((workspace / "tokenizers").iterdir())
        begun = time.perf_counter()
        config = TokenizeConfig(tokenizer=str(own), document="line", workers=2)
        tokenize(Workspace(Path(folder) / "w"), [str(text)], config, name="text")
        return text.stat().st_size / 1e6 / (time.perf_counter() - begun)


RATES: dict[str, Callable[[Path, Path, float], float]] = {
    "training": training, "finetuning": finetuning, "generation": generation,
    "tokenizing": tokenizing,
}  # fmt: skip


def measured(kind: str, options: argparse.Namespace, *, library: bool) -> float:
    """The rate of a kind of work, in a process of its own."""
    own = ("OMP_", "GOMP_", "MKL_", "KMP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    words = [sys.executable, __file__, options.workspace, options.table, "--kind", kind,
             "--seconds", str(options.seconds)]  # fmt: skip
    result = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True,
        env={**environment, **(LIBRARY if library else {})},
    )  # fmt: skip
    return float(result.stdout.split()[-1])


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """Busy processes for the length of the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--kind", choices=KINDS, help="measure this one here")
    options = parser.parse_args()
    if options.kind:
        from llmctl.cli.threads import settle_threads

        settle_threads(None, None)
        print(RATES[options.kind](options.workspace, options.table, options.seconds))
        return
    from llmctl.training.machine import cores as cores_here

    cores = threads = cores_here()
    fair = threads / (threads + BUSY) * min(cores, threads + BUSY) / min(cores, threads)
    print(f"{platform.processor() or platform.machine()}, {cores} cores, beside {BUSY} processes;")
    print(f"the fair share is {fair:.2f} of the quiet rate\n")
    print("| | quiet: library's | llmctl's | beside: library's | llmctl's | of the fair share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in options.only:
        rates: dict[tuple[int, bool], list[float]] = {}
        for busy in (0, BUSY):
            with beside(busy):
                for number in range(options.rounds):
                    for library in (True, False) if number % 2 else (False, True):
                        found = measured(kind, options, library=library)
                        rates.setdefault((busy, library), []).append(found)
        mean = {key: fmean(values) for key, values in rates.items()}
        share = mean[BUSY, False] / (fair * mean[0, True])
        row = [f"{mean[key]:.3g}" for key in ((0, True), (0, False), (BUSY, True), (BUSY, False))]
        print(f"| {kind} | {' | '.join(row)} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
