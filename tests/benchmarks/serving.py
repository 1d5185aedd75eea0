"""A server measured from outside: streams at once, time to the first token, many clients for
minutes. What is sent to hurt it is in tests/benchmarks/hostile.py.

    python -m tests.benchmarks.serving load                    16 at once beside one by one
    python -m tests.benchmarks.serving soak --seconds 300      64 clients, each answer checked

Without --model a Llama with random weights is served: of SmolLM2-135M's shape for load, whose time
doesn't depend on what the weights are (only its logits are cut to a vocabulary of 320), and a tiny
one for soak.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

SMOL = {
    "num_layers": 30, "hidden_size": 576, "num_heads": 9, "num_kv_heads": 3,
    "intermediate_size": 1536, "tie_embeddings": True, "max_positions": 2048,
}  # fmt: skip
TINY = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "max_positions": 512}


def write_model(folder: Path, shape: dict[str, Any], vocab_size: int) -> None:
    """A Llama with random weights that is read like any other's."""
    import torch

    from llmctl.formats.huggingface.writing import write_model_folder
    from llmctl.models import ARCHITECTURES
    from llmctl.models.heads.causal_lm import CausalLM
    from llmctl.tokenizers.bpe import learn_bpe

    torch.manual_seed(0)
    words = ["the ship sails over the wide sea", "user assistant system", "hens lay eggs"] * 3
    tokenizer = learn_bpe(words, 320, exact=False)
    spec = ARCHITECTURES["llama"]
    config = spec.config(vocab_size=vocab_size, initializer_range=0.05, **shape)
    write_model_folder(folder, CausalLM(spec.build(config)), tokenizer, {"llmctl_chat": True})


class Running:
    """A server in a process of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "llmctl", "serve", "--from", str(model), "--port", "0"]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.address = f"http://127.0.0.1:{found[1]}"
                break
            self.log.append(line)
        else:
            raise SystemExit("".join(self.log))
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self.log += self.process.stderr

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it as Ctrl-C does, and say what it complained of."""
        self.process.send_signal(2)
        code = self.process.wait(30)
        traces = sum("Traceback" in line for line in self.log)
        print(json.dumps({"exit": code, "tracebacks_in_log": traces}))


def ask(address: str, prompt: Any, tokens: int, **fields: Any) -> tuple[list[float], str]:
    """When each piece of a streamed answer came, in seconds, and the answer."""
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, **fields}
    times, text = [], ""
    with httpx.Client(timeout=300) as client:
        begin = time.perf_counter()  # a client takes longer to make than a token
        with client.stream("POST", f"{address}/v1/completions", json=body) as answer:
            times, text = _told(answer, begin)
    return times, text


def _told(answer: httpx.Response, begin: float) -> tuple[list[float], str]:
    times, text = [], ""
    if answer.status_code == 200:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                times.append(time.perf_counter() - begin)
        return times, text
    raise AssertionError(answer.read())


def together(count: int, work: Any) -> float:
    """Seconds that so many threads take."""
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def load(running: Running, streams: int, tokens: int) -> None:
    """Streams at once beside one by one, and a prompt that was read before beside a new one."""
    prompts = [[(7 * n + k) % 300 for k in range(64)] for n in range(streams)]
    ask(running.address, prompts[0], 4)
    begin = time.perf_counter()
    for prompt in prompts[:3]:
        ask(running.address, prompt, tokens, temperature=0)
    alone = 3 * tokens / (time.perf_counter() - begin)
    gaps: list[float] = []

    def one(number: int) -> None:
        times, _ = ask(running.address, prompts[number], tokens, temperature=0)
        gaps.extend(b - a for a, b in pairwise(times))

    seconds = together(streams, one)
    rate = streams * tokens / seconds
    first = []
    for trial in range(3):
        long = [(11 * k + trial) % 300 for k in range(1024)]
        first.append([ask(running.address, long, 1)[0][0] for _ in range(2)])
    cold, warm = (median(times) for times in zip(*first, strict=True))
    print(
        json.dumps(
            {
                "tokens/s, one by one": round(alone, 1),
                f"tokens/s, {streams} at once": round(rate, 1),
                "ratio": round(rate / alone, 2),
                "p95 gap, s": round(quantiles(gaps, n=20)[-1], 3),
                "first token of 1,024, cold, s": round(cold, 3),
                "first token of 1,024, warm, s": round(warm, 3),
                "cold / warm": round(cold / warm, 1),
            },
            indent=1,
        )
    )


def soak(running: Running, clients: int, seconds: float) -> None:
    """Clients that ask all the time; each knows what it has to be answered."""
    prompts = [[(5 * n + k) % 300 for k in range(8 + n % 40)] for n in range(clients)]
    fields = {"temperature": 0.9, "seed": 1}
    expected = [ask(running.address, prompt, 24, **fields)[1] for prompt in prompts]
    counts: Counter[str] = Counter()
    memory = [running.memory()]
    end = time.perf_counter() + seconds

    def one(number: int) -> None:
        while time.perf_counter() < end:
            try:
                _, text = ask(running.address, prompts[number], 24, **fields)
                counts["right" if text == expected[number] else "mixed up"] += 1
            except Exception as error:
                counts[f"{type(error).__name__}: {error}"[:100]] += 1

    def watch(number: int) -> None:
        while time.perf_counter() < end:
            time.sleep(seconds / 10)
            memory.append(running.memory())

    together(clients + 1, lambda n: watch(n) if n == clients else one(n))
    print(json.dumps({**counts, "MiB": [size >> 20 for size in memory]}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "soak"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--kernels", default="torch")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder) / "model"
        if given.model is None:
            shape, vocab_size = (SMOL, 49152) if given.what == "load" else (TINY, 320)
            write_model(model, shape, vocab_size)
        running = Running(model, "--dtype", given.dtype, "--kernels", given.kernels)
        try:
            if given.what == "load":
                load(running, given.streams, given.tokens)
            else:
                soak(running, given.clients, given.seconds)
        finally:
            running.stop()


if __name__ == "__main__":
    main()
