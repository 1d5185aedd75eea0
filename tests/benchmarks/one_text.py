"""Tokens a second of one text and of sixteen, and of a prompt's reading, beside llama.cpp with the
same weights; run by hand.

    llmctl export MODEL --format gguf --quantisation q8_0 --out q8.gguf      # and q4_0
    python -m tests.benchmarks.one_text --model MODEL --q8 q8.gguf --q4 q4.gguf

Each contestant is a process that loads its model and waits for its turn; they write in turn, round
after round, so that what else the machine does falls on all alike. All are given the same prompt
and write greedily; medians and the range of rounds are printed, by the clock and by a processor's
time, which what else the machine does falsifies less. llama.cpp is llama-cpp-python's, built for
this processor; without --q8 and --q4 ours alone are measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PROMPT = "The capital of France is"
NEW = 64
LONG = 512
"""Tokens of the prompt whose reading is timed."""
STREAMS = 16

Write = Callable[[], dict[str, float]]
"""Writes once; returns its tokens a second, and what else is to be known."""


class Clock:
    """Seconds since it was made, by the clock and of a processor."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def rates(self, tokens: int) -> dict[str, float]:
        """Tokens a second."""
        wall, own = self._begin
        return {
            "tokens/s": tokens / (time.perf_counter() - wall),
            "tokens/s of a processor": tokens / (time.process_time() - own),
        }


def ours(model: str, dtype: str, kernels: str, threads: int, streams: int) -> Write:
    """The engine, as ``llmctl generate`` and ``llmctl serve`` write by it."""
    import torch

    from llmctl.formats.open import open_model
    from llmctl.inference.decoder import CausalDecoder
    from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
    from llmctl.inference.engine import Engine, EngineConfig, EngineRequest
    from llmctl.inference.weights import prepare
    from llmctl.training.precision import choose_device
    from llmctl.workspace.artefacts import Workspace

    choose_device("cpu")
    torch.set_num_threads(threads)
    folder, _ = open_model(Workspace(Path("workspace")), model)
    network = folder.causal_lm()
    rows: Any = {"rows": streams, "kernels": kernels}
    head = prepare(network, dtype, **rows)  # type: ignore[arg-type]
    tokenizer = folder.tokenizer
    decoder = CausalDecoder(network, longest=folder.max_length, head=head, tokenizer=tokenizer)
    rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=NEW, ignore_eos=True), tokenizer)
    prompts = [tokenizer.encode(PROMPT + " a" * n) for n in range(streams)]
    long = [7 * n % 1000 for n in range(LONG)]

    def begin(prompts: list[list[int]]) -> Engine:
        engine = Engine(decoder, EngineConfig(max_sequences=streams, prefix_cache=0))
        for number, prompt in enumerate(prompts):
            engine.submit(EngineRequest(prompt=prompt, rules=rules, number=number))
        return engine

    def write() -> dict[str, float]:
        engine = begin(prompts)
        engine.step()
        steps, tokens = [], 0
        clock = Clock()
        while not engine.idle:
            start = time.perf_counter()
            tokens += len(engine.step())
            steps.append(time.perf_counter() - start)
        found = {**clock.rates(tokens), "p95 gap, ms": 1000 * quantiles(steps, n=20)[-1]}
        if streams == 1:
            engine = begin([long])
            clock = Clock()
            while not engine.step():
                pass
            found.update((f"prompt, {name}", rate) for name, rate in clock.rates(LONG).items())
        return found

    return write


def llama_cpp(model: str, threads: int) -> Write:
    """llama.cpp, token by token by its own greedy sampler."""
    import llama_cpp

    llm = llama_cpp.Llama(
        model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    prompt = llm.tokenize(PROMPT.encode(), add_bos=False, special=False)
    long = [7 * n % 1000 for n in range(LONG)]

    def write() -> dict[str, float]:
        tokens = llm.generate(prompt, temp=0.0, top_k=1, reset=True)
        next(tokens)
        clock = Clock()
        for _ in range(NEW - 1):
            next(tokens)
        found = clock.rates(NEW - 1)
        tokens = llm.generate(long, temp=0.0, top_k=1, reset=True)
        clock = Clock()
        next(tokens)
        found.update((f"prompt, {name}", rate) for name, rate in clock.rates(LONG).items())
        return found

    return write


class Contestant:
    """A process that writes when it is asked to."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.one_text", "--serve", *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._ask()  # once to warm up

    def _ask(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def write(self) -> dict[str, float]:
        return self._ask()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(words: list[str]) -> None:
    """Write whenever a line asks for it."""
    who, model, threads, *more = words
    if who == "llama.cpp":
        write = llama_cpp(model, int(threads))
    else:
        write = ours(model, who, more[0], int(threads), int(more[1]))
    for _ in sys.stdin:
        print(json.dumps(write()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--q8")
    parser.add_argument("--q4")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, STREAMS])
    parser.add_argument("--dtype", nargs="+", default=["int8", "int4"])
    parser.add_argument("--kernels", nargs="+", default=["torch", "native"])
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    asked = {
        f"{dtype} {kernels}, {streams}": (dtype, given.model, given.threads, kernels, str(streams))
        for streams in given.streams
        for dtype in given.dtype
        for kernels in given.kernels
    }
    for name, path in (("Q8_0", given.q8), ("Q4_0", given.q4)):
        if path:
            asked[f"llama.cpp {name}, 1"] = ("llama.cpp", path, given.threads)
    contestants = {name: Contestant(*words) for name, words in asked.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(given.rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant.write())
    for contestant in contestants.values():
        contestant.end()
    for name, answers in found.items():
        print(name)
        for figure in answers[0]:
            values = [answer[figure] for answer in answers]
            told = f"{median(values):8.1f} ({min(values):.1f} to {max(values):.1f})"
            print(f"    {figure:32s} {told}")


if __name__ == "__main__":
    main()
