"""Speed of writing at GPT-2's 124M shape beside transformers.generate; run by hand, on a quiet
machine.

    python tests/benchmarks/generation.py [--dtypes fp32 int8] [--run RUN --workspace DIR]

Each engine is a process that waits for its turn, as one has large pages by its environment and the
other has not. They have the same random weights, read the same prompts and write greedily; in fp32
they have to write the same tokens. Medians are compared, and each has its share of the speed that
the memory allows: the bytes of weights, keys and values that a token needs, at the fastest rate at
which this machine reads a table far larger than its caches. RUN: also the perplexity of a trained
model with each type of weights, by llmctl eval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.cli.options import LARGE_PAGES, ask_for_large_pages

PROMPT, NEW = 16, 128
VOCABULARY, WIDTH, LAYERS = 50_257, 768, 12
WEIGHTS = LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH
"""Those of the products, the output layer's among them; of an embedding a row is read."""
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
CACHE = 2 * LAYERS * WIDTH * 4
"""Bytes of keys and values of a token."""
TABLE = 1 << 29
"""Numbers of the table by which the memory is measured: 2 GiB."""

Ids = list[list[int]]


def weights() -> Any:
    """transformers' GPT-2 with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=None, pad_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def hugging_face() -> Callable[[Ids], Ids]:
    import torch

    model = weights()

    def write(prompts: Ids) -> Ids:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
        )
        return out[:, PROMPT:].tolist()  # type: ignore[no-any-return]

    return write


class NoText:
    """A tokenizer whose tokens are a letter each, and none of them an end."""

    special: dict[str, int] = {}  # noqa: RUF012
    further_ends: frozenset[int] = frozenset()

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"x" * len(ids)


def ours(dtype: Any, rows: int) -> Callable[[Ids], Ids]:
    from llmctl.inference.decoder import CausalDecoder
    from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig, generate
    from llmctl.inference.weights import prepare
    from llmctl.models import gpt
    from llmctl.models.heads.causal_lm import CausalLM

    config = gpt.GptConfig(vocab_size=VOCABULARY, **gpt.PRESETS["small"])
    model = CausalLM(gpt.Gpt(config))
    model.body.load_state_dict(gpt.SPEC.import_tensors(weights().state_dict(), config))  # type: ignore[attr-defined]
    decoder = CausalDecoder(model, head=prepare(model, dtype, rows=rows))
    rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=NEW), NoText())  # type: ignore[arg-type]

    def write(prompts: Ids) -> Ids:
        answers = generate(decoder, prompts, rules, batch_size=rows)
        return [list(completion.ids) for (completion,) in answers]

    return write


def serve(engine: str, rows: int) -> None:
    """Write whenever a line asks for it; answer with the seconds and the tokens."""
    import torch

    from llmctl.training.precision import choose_device

    choose_device("cpu")  # as the commands do, with what it sets
    write = hugging_face() if engine == "transformers" else ours(engine.split()[1], rows)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCABULARY, (rows, PROMPT), generator=generator).tolist()
    write(prompts)
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        ids = write(prompts)
        print(json.dumps([time.perf_counter() - begun, ids]), flush=True)


class Engine:
    """A process that writes when it is asked to."""

    def __init__(self, name: str, rows: int) -> None:
        environment = dict(os.environ)
        if name.startswith("llmctl"):
            environment |= LARGE_PAGES
        else:
            for variable in LARGE_PAGES:
                environment.pop(variable, None)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--rows", str(rows)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def write(self) -> tuple[float, Ids]:
        """Seconds, and the tokens of each row."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, ids = json.loads(self._line())
        return seconds, ids

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def read_rate() -> float:
    """Bytes a second of the fastest of a sum and two products with a vector."""
    import torch

    table = torch.ones(TABLE // WIDTH, WIDTH)
    long, short = torch.ones(len(table)), torch.ones(WIDTH)
    rates = []
    for read in (table.sum, lambda: torch.mv(table, short), lambda: torch.mv(table.T, long)):
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - begun)
        rates.append(4 * table.numel() / median(seconds))
    return max(rates)


def speeds(rows: int, dtypes: list[str], rounds: int, rate: float) -> None:
    names = ["transformers", *(f"llmctl {dtype}" for dtype in dtypes)]
    engines = {name: Engine(name, rows) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    written: dict[str, Ids] = {}
    for _ in range(rounds):
        for name, engine in engines.items():
            seconds, written[name] = engine.write()
            taken[name].append(seconds)
    for engine in engines.values():
        engine.stop()
    print(f"\nbatch {rows}: {PROMPT} tokens of each prompt read, {NEW} written\n")
    print("| | tokens/s (median) | times transformers | of the memory's speed |")
    print("| --- | --- | --- | --- |")
    for name in names:
        seconds = median(taken[name])
        size = BYTES[name.split()[-1]] if name != "transformers" else BYTES["fp32"]
        needed = NEW * (size * WEIGHTS + rows * CACHE * (PROMPT + NEW / 2))
        print(
            f"| {name} | {rows * NEW / seconds:,.1f} | "
            f"{median(taken['transformers']) / seconds:.2f} | {needed / seconds / rate:.0%} |"
        )
    if "llmctl fp32" in written:
        assert written["llmctl fp32"] == written["transformers"], "fp32 writes other tokens"


def perplexities(run: str, workspace: str, dtypes: list[str]) -> None:
    """What each type of weights does to a trained model's perplexity."""
    print(f"\n{run} on the validation part of its shards\n")
    print("| | perplexity | bits per byte |\n| --- | --- | --- |")
    for dtype in dtypes:
        words = ["eval", "--from", run, "--dtype", dtype, "-w", workspace, "--json"]
        result = subprocess.run(
            [sys.executable, "-m", "llmctl", *words], stdout=subprocess.PIPE, check=True, text=True
        )
        row = json.loads(result.stdout)["results"]["model"]
        print(f"| {dtype} | {row['perplexity']:.4f} | {row['bits_per_byte']:.5f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", help="of llmctl pretrain")
    parser.add_argument("--workspace", default="workspace")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.rows)
        return
    ask_for_large_pages()
    import torch

    rate = read_rate()
    print(f"memory read at {rate / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    for rows in options.batches:
        speeds(rows, options.dtypes, options.rounds, rate)
    if options.run:
        perplexities(options.run, options.workspace, options.dtypes)


if __name__ == "__main__":
    main()
