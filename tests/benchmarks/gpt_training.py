"""Training speed of a small GPT beside nanoGPT, litgpt and Hugging Face; run by hand.

    python tests/benchmarks/gpt_training.py [--nanogpt DIR] [--precision bf16] [--compile]

DIR: a clone of github.com/karpathy/nanoGPT, which is no package; litgpt is taken where it is
installed. Each trains GPT-2's shape, 6 layers × 384 with 6 heads and 16,000 tokens, on 12 rows of
256, with AdamW and clipping; all take turns in one process, and medians are compared. The share is
that of the machine's matrix rate, measured in between.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from llmctl.tasks.causal_lm.loss import causal_lm_loss

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.training.planning.memory import keep_freed_memory
from llmctl.training.precision import autocast, matrix_rate

LAYERS, WIDTH, HEADS, VOCABULARY, SEQUENCE, BATCH = 6, 384, 6, 16_000, 256, 12
TOKENS = SEQUENCE * BATCH

Loss = Callable[[torch.Tensor], torch.Tensor]
"""From rows of SEQUENCE + 1 ids to the mean loss."""


def ours(arch: str, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    architecture = ARCHITECTURES[arch]
    shape: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS}
    config = architecture.config(vocab_size=VOCABULARY, max_positions=SEQUENCE, **shape)
    model = CausalLM(architecture.build(config))
    if compiled:
        model.body.compile(dynamic=False)  # type: ignore[attr-defined]

    full = np.full(BATCH, SEQUENCE)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        inputs, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return causal_lm_loss(model, CausalBatch(full, inputs, labels, full, full)).total

    return model, loss


def hugging_face() -> tuple[torch.nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=SEQUENCE, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    return model, lambda rows: model(rows[:, :-1], labels=rows[:, :-1]).loss


def nanogpt(folder: str, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(
        GPTConfig(block_size=SEQUENCE, vocab_size=VOCABULARY, n_layer=LAYERS, n_head=HEADS,
                  n_embd=WIDTH, dropout=0.0, bias=False)
    )  # fmt: skip
    step = torch.compile(model) if compiled else model
    return model, lambda rows: step(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1]


def litgpt() -> tuple[torch.nn.Module, Loss]:
    from litgpt import GPT, Config  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = GPT(
        Config(block_size=SEQUENCE, padded_vocab_size=VOCABULARY, vocab_size=VOCABULARY,
               n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, intermediate_size=4 * WIDTH)
    )  # fmt: skip
    return model, lambda rows: chunked_cross_entropy(
        model(rows[:, :-1].contiguous()), rows[:, 1:].contiguous()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nanogpt", help="folder of its clone")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cpu")
    makers: dict[str, Callable[[], tuple[torch.nn.Module, Loss]]] = {}
    for compiled in (False, True) if options.compile else (False,):
        suffix = " compiled" if compiled else ""
        for arch in ("gpt", "nanochat"):
            makers[f"llmctl {arch}{suffix}"] = lambda a=arch, c=compiled: ours(a, c)  # type: ignore[misc]
        if options.nanogpt:
            makers[f"nanoGPT{suffix}"] = lambda c=compiled: nanogpt(options.nanogpt, c)  # type: ignore[misc]
    makers["Hugging Face"] = hugging_face
    try:
        litgpt()
        makers["litgpt"] = litgpt
    except ImportError as error:
        print(f"litgpt left out: {error}")
    trainers = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        model, loss = make()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        trainers[name] = (model, loss, optimiser)
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    rates = []
    for round_number in range(options.rounds + 1):
        for name, (model, loss, optimiser) in trainers.items():
            begun = time.perf_counter()
            for _ in range(options.steps):
                rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1))
                with autocast(device, options.precision):
                    value = loss(rows)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            seconds = time.perf_counter() - begun
            if round_number:  # in the first one kernels are chosen and compiled
                speeds[name].append(options.steps * TOKENS / seconds)
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        rates.append(matrix_rate(device, dtype))
    rate = median(rates)
    # Six operations for each weight of blocks and head; half of the square for attention.
    weights = LAYERS * 12 * WIDTH**2 + WIDTH * VOCABULARY
    flops = 6 * (weights + LAYERS * SEQUENCE * WIDTH)
    print(f"{options.precision}, {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s")
    print("| | tokens/s (median) | share of the matrix rate |\n| --- | --- | --- |")
    for name, values in speeds.items():
        print(f"| {name} | {median(values):,.0f} | {median(values) * flops / rate:.0%} |")
    best = max(median(v) for name, v in speeds.items() if not name.startswith("llmctl"))
    for name, values in speeds.items():
        if name.startswith("llmctl"):
            print(f"{name}: {median(values) / best:.2f} times the best other")


if __name__ == "__main__":
    main()
