"""What is sent to a server to hurt it: each request is answered or refused in OpenAI's shape, and
what it answers to others stays the same.

    python -m tests.benchmarks.hostile --requests 10000

Requests of tests/serving/hostile.py, and, by hand on the socket, what no HTTP client would send:
heads and bodies that come slowly, are cut, or are none; grammars that explode; bodies of many
megabytes. Without --model a tiny Llama with random weights is served.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.benchmarks.serving import TINY, Running, write_model
from tests.serving.hostile import refusal, request, wire

PROMPTS = ["the ship", "hens lay", "user", "the wide sea sails"]


def answers(client: httpx.Client) -> list[str]:
    """What the server says to those who mean well."""
    texts = []
    for seed, prompt in enumerate(PROMPTS):
        body = {"prompt": prompt, "max_tokens": 16, "seed": seed, "temperature": 0.8}
        answer = client.post("/v1/completions", json=body)
        texts.append(answer.json()["choices"][0]["text"])
    return texts


def on_the_wire(address: str, number: int) -> str:
    """Send bytes, as they are or in pieces, and say what comes back: a status, or that the
    connection was closed."""
    parts, wait = wire(number)
    place = urlsplit(address)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 80), timeout=5) as line:
        try:
            for part in parts:
                line.sendall(part)
                time.sleep(0.002)
            if not wait:
                return "cut"
            line.settimeout(wait)
            said = line.recv(1 << 16)
        except (TimeoutError, ConnectionError):
            return "no answer"
    if not said:
        return "closed"
    assert said.startswith(b"HTTP/1.1 "), said[:100]
    assert b"Traceback" not in said, (number, said)
    return said[9:12].decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder) / "model"
        if given.model is None:
            write_model(model, TINY, 320)
        running = Running(model)
        counts: Counter[str] = Counter()
        slowest, memory = (0.0, b""), running.memory()
        with httpx.Client(base_url=running.address, timeout=120) as client:
            before = answers(client)
            for number in range(given.first, given.first + given.requests):
                if number % 10 == 0:
                    status = on_the_wire(running.address, number)
                    assert not status.startswith("5"), (number, status, wire(number)[0])
                    counts[f"bytes: {status}"] += 1
                    continue
                method, path, body, headers = request(number)
                begin = time.perf_counter()
                answer = client.request(method, path, content=body, headers=headers)
                slowest = max(slowest, (time.perf_counter() - begin, body[:300]))
                counts[str(answer.status_code)] += 1
                assert not (wrong := refusal(answer, method)), (number, path, body[:500], wrong)
            same = answers(client) == before
            alive = client.get("/health").status_code
        grown = (running.memory() - memory) >> 20
        print(
            json.dumps(
                {
                    "answered": dict(sorted(counts.items())),
                    "slowest, s": round(slowest[0], 2),
                    "that was": slowest[1].decode("utf-8", "replace"),
                    "answers to others unchanged": same,
                    "health": alive,
                    "MiB more": grown,
                },
                indent=1,
            )
        )
        running.stop()
        if not same or alive != 200:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
