"""Servers of one model under the same load, ours beside others'; run by hand.

    llmctl serve --from MODEL --dtype int8 --kernels native --port 8001 &
    llama-server -m MODEL-q8.gguf --port 8002 --parallel 16 &
    transformers serve MODEL --port 8003 --continuous-batching &
    python -m tests.benchmarks.servers --model MODEL \\
        ours=http://127.0.0.1:8001 llama.cpp=http://127.0.0.1:8002 \\
        transformers=http://127.0.0.1:8003,NAME,PID

The servers were started by hand and stay idle, but for the one whose turn it is; one that computes
while it is idle is given its process's number, and is stopped while others have their turn. Each
answers questions over ``/v1/chat/completions``, streamed: three one after another, then as many at
once as --streams says, round after round. Tokens are counted by the model's own tokenizer, from
the text; medians of the rounds, least to greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import httpx

from tests.benchmarks.serving import together

SUBJECTS = (
    "the sea", "a clockmaker", "the first snow", "an old train", "two brothers", "a lighthouse",
    "the market", "a lost letter", "the orchard", "a long bridge", "the night bus", "a violin",
    "the desert", "a garden wall", "the harbour", "a paper boat",
)  # fmt: skip


PAUSE = 6.0
"""Seconds of quiet before a turn: ours looks every other second whether somebody else computes, and
then has its threads wait otherwise."""


class Server(NamedTuple):
    """One that is asked."""

    name: str
    address: str
    model: str | None
    """What it calls the model, where it has to be said."""
    process: int | None
    """The process that is stopped while it is not its turn."""


def server(words: str) -> Server:
    """One of NAME=ADDRESS[,MODEL[,PID]]."""
    name, _, rest = words.partition("=")
    address, model, process, *_ = [*rest.split(","), "", ""]
    return Server(name, address, model or None, int(process) if process else None)


def ask(one: Server, question: str, tokens: int) -> tuple[list[float], str]:
    """When each piece of an answer came, in seconds from the question, and the answer."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}], "max_tokens": tokens,
        "temperature": 0, "stream": True, "ignore_eos": True,
    }  # fmt: skip
    if one.model:
        body["model"] = one.model
        del body["ignore_eos"]  # a server of transformers refuses what it doesn't know
    times, text = [], ""
    with httpx.Client(timeout=600) as client:
        begin = time.perf_counter()
        with client.stream("POST", f"{one.address}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise AssertionError(answer.read())
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                choices = json.loads(line[6:]).get("choices") or [{}]
                if piece := choices[0].get("delta", {}).get("content"):
                    text += piece
                    times.append(time.perf_counter() - begin)
    return times, text


def measure(one: Server, streams: int, tokens: int, count: Any) -> dict[str, float]:
    """One round."""
    questions = [f"Write a long story about {subject}." for subject in SUBJECTS[:streams]]
    begin = time.perf_counter()
    alone = sum(count(ask(one, question, tokens)[1]) for question in questions[:3])
    alone_rate = alone / (time.perf_counter() - begin)
    found: dict[int, tuple[list[float], str]] = {}

    def work(number: int) -> None:
        found[number] = ask(one, questions[number], tokens)

    seconds = together(streams, work)
    assert len(found) == streams, "a stream failed"
    gaps = [b - a for times, _ in found.values() for a, b in pairwise(times)]
    return {
        "tokens/s, one by one": alone_rate,
        f"tokens/s, {streams} at once": sum(count(text) for _, text in found.values()) / seconds,
        "p95 of gaps, ms": 1000 * quantiles(gaps, n=20)[-1],
        "first piece, s": median(times[0] for times, _ in found.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="+", type=server)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from llmctl.tokenizers.loading import load

    tokenizer = load(given.model)
    results: dict[str, list[dict[str, float]]] = {one.name: [] for one in given.servers}
    for number in range(-1, given.rounds):
        for one in given.servers:
            for other in given.servers:
                if other.process:
                    os.kill(other.process, signal.SIGCONT if other is one else signal.SIGSTOP)
            time.sleep(PAUSE)
            found = measure(
                one, given.streams, given.tokens, lambda text: len(tokenizer.encode(text))
            )
            if number >= 0:  # the first round warms up
                results[one.name].append(found)
    columns = list(next(iter(results.values()))[0])
    print(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, rounds in results.items():
        cells = []
        for column in columns:
            values = sorted(one[column] for one in rounds)
            cells.append(f"{median(values):.4g} ({values[0]:.4g} to {values[-1]:.4g})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
