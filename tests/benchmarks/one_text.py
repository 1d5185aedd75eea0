"""Tokens a second of one text and of sixteen, beside llama.cpp with the same weights; run by hand.

    llmctl export MODEL --format gguf --quantisation q8_0 --out q8.gguf      # and q4_0
    python -m tests.benchmarks.one_text --model MODEL --q8 q8.gguf --q4 q4.gguf

Each contestant is a process that loads its model and waits for its turn; they write in turn, round
after round, so that what else the machine does falls on all alike. All are given the same prompt
and write greedily; medians and the range of rounds are printed. llama.cpp is llama-cpp-python's,
built for this processor; without --q8 and --q4 ours alone are measured.
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
STREAMS = 16

Write = Callable[[], dict[str, Any]]
"""Writes once; returns its tokens a second, and what else is to be known."""


def ours(model: str, dtype: str, threads: int, streams: int) -> Write:
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
    head = prepare(network, dtype, rows=streams)  # type: ignore[arg-type]
    tokenizer = folder.tokenizer
    decoder = CausalDecoder(network, longest=folder.max_length, head=head, tokenizer=tokenizer)
    rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=NEW, ignore_eos=True), tokenizer)
    prompts = [tokenizer.encode(PROMPT + " a" * n) for n in range(streams)]

    def write() -> dict[str, Any]:
        engine = Engine(decoder, EngineConfig(max_sequences=streams, prefix_caching=False))
        for number, prompt in enumerate(prompts):
            engine.submit(EngineRequest(prompt=prompt, rules=rules, number=number))
        engine.step()
        steps, tokens = [], 0
        while not engine.idle:
            begin = time.perf_counter()
            tokens += len(engine.step())
            steps.append(time.perf_counter() - begin)
        p95 = quantiles(steps, n=20)[-1]
        return {"rate": tokens / sum(steps), "p95 gap, ms": round(1000 * p95, 1)}

    return write


def llama_cpp(model: str, threads: int) -> Write:
    """llama.cpp, token by token by its own greedy sampler."""
    import llama_cpp

    llm = llama_cpp.Llama(
        model, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    prompt = llm.tokenize(PROMPT.encode(), add_bos=False, special=False)

    def write() -> dict[str, Any]:
        tokens = llm.generate(prompt, temp=0.0, top_k=1, reset=True)
        next(tokens)
        begin = time.perf_counter()
        for _ in range(NEW - 1):
            next(tokens)
        return {"rate": (NEW - 1) / (time.perf_counter() - begin)}

    return write


class Contestant:
    """A process that writes when it is asked to."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.one_text", "--serve", *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._ask()  # once to warm up

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def write(self) -> dict[str, Any]:
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
        write = ours(model, who, int(threads), int(more[0]))
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
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    asked = {
        f"{dtype}, {streams} at once": (dtype, given.model, given.threads, str(streams))
        for streams in given.streams
        for dtype in ("int8", "int4")
    }
    for name, path in (("Q8_0", given.q8), ("Q4_0", given.q4)):
        if path:
            asked[f"llama.cpp {name}, 1"] = ("llama.cpp", path, given.threads)
    contestants = {name: Contestant(*words) for name, words in asked.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(given.rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant.write())
    for contestant in contestants.values():
        contestant.end()
    for name, answers in found.items():
        rates = [answer.pop("rate") for answer in answers]
        told = f"{median(rates):7.1f} tokens/s ({min(rates):.1f} to {max(rates):.1f})"
        print(f"{name:18s} {told} {answers[-1] or ''}")


if __name__ == "__main__":
    main()
