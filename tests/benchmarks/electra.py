"""Training speed of replaced-token detection beside transformers' two classes; run by hand.

    python tests/benchmarks/electra.py [--precision bf16] [--vocabulary 30522] [--padding 0.41]

A discriminator of 4 layers × 256 and a generator of a quarter of the width over the same embeddings
train on rows of 128 packed tokens, of which 15 % are hidden, with AdamW and clipping: llmctl's
network and loss, and ElectraForMaskedLM with ElectraForPreTraining in a plain loop as it is
written with them (logits of every token, the replacements drawn by torch.multinomial). They take
turns in one process, and medians are compared. Both get full rows, or, with --padding, theirs as
many rows of one text each, padded to that share on average as a plain loop's are, where llmctl
packs; tokens that are no padding are counted.
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
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.models.electra import Electra, ElectraConfig
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator
from llmctl.tasks.electra.batches import ReplacedBatch
from llmctl.tasks.electra.loss import electra_loss
from llmctl.training.planning.memory import keep_freed_memory
from llmctl.training.precision import autocast

LAYERS, SEQUENCE, BATCH, MASK = 4, 128, 32, 4
RATE, WEIGHT = 0.15, 50.0

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ids (B, T), which of them are hidden and which are no padding to the loss."""


def ours(width: int, vocabulary: int) -> tuple[torch.nn.Module, Loss]:
    config = ElectraConfig(
        vocab_size=vocabulary, num_layers=LAYERS, hidden_size=width, max_positions=SEQUENCE
    )
    narrow = config.replace(
        hidden_size=width // 4, embedding_size=width, num_heads=1, intermediate_size=width
    )
    model = DetectorWithGenerator(Electra(config), MaskedLM(Electra(narrow), next_sentence=False))
    positions_BT = torch.arange(SEQUENCE).expand(BATCH, -1)

    def loss(ids_BT: Tensor, hidden_BT: Tensor, real_BT: Tensor) -> Tensor:
        places_M = hidden_BT.flatten().nonzero()[:, 0]
        batch = ReplacedBatch(
            tokens_B=np.full(BATCH, SEQUENCE),
            input_ids_BT=ids_BT.masked_fill(hidden_BT, MASK),
            segment_ids_BT=torch.zeros_like(ids_BT),
            position_ids_BT=positions_BT,
            packed=None,
            masked_M=places_M,
            labels_M=ids_BT.flatten()[places_M],
            cls_S=torch.zeros(0, dtype=torch.int64),
            next_labels_S=torch.zeros(0, dtype=torch.int64),
            next_sentence=False,
            drawn_M=torch.rand(len(places_M), dtype=torch.float64),
            judged_BT=torch.ones_like(hidden_BT),
        )
        return electra_loss(model, batch, WEIGHT).total

    return model, loss


def transformers_loop(width: int, vocabulary: int) -> tuple[torch.nn.Module, Loss]:
    from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

    shape: dict[str, Any] = {
        "vocab_size": vocabulary, "embedding_size": width, "num_hidden_layers": LAYERS,
        "max_position_embeddings": SEQUENCE, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    heads = max(1, width // 64)
    discriminator = ElectraForPreTraining(
        ElectraConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
                      **shape)
    )  # fmt: skip
    generator = ElectraForMaskedLM(
        ElectraConfig(hidden_size=width // 4, num_attention_heads=1, intermediate_size=width,
                      **shape)
    )  # fmt: skip
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    model = torch.nn.ModuleList([discriminator, generator]).train()

    def loss(ids_BT: Tensor, hidden_BT: Tensor, real_BT: Tensor) -> Tensor:
        hidden_BT = hidden_BT & real_BT
        labels_BT = ids_BT.masked_fill(~hidden_BT, -100)
        seen_BT = None if bool(real_BT.all()) else real_BT.long()
        out = generator(
            ids_BT.masked_fill(hidden_BT, MASK), attention_mask=seen_BT, labels=labels_BT
        )
        with torch.no_grad():
            p_MV = F.softmax(out.logits[hidden_BT].float(), -1)
            replaced_BT = ids_BT.clone()
            replaced_BT[hidden_BT] = torch.multinomial(p_MV, 1)[:, 0]
        judged = discriminator(
            replaced_BT, attention_mask=seen_BT, labels=(replaced_BT != ids_BT).long()
        )
        total: Tensor = out.loss + WEIGHT * judged.loss
        return total

    return model, loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--padding", type=float, default=0.0, help="share of their rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each in a round")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cpu")
    trainers = {}
    for name, make in {"llmctl": ours, "transformers": transformers_loop}.items():
        torch.manual_seed(0)
        model, loss = make(options.width, options.vocabulary)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=name == "llmctl")
        trainers[name] = (model, loss, optimiser)
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for round_number in range(options.rounds + 1):
        for name, (model, loss, optimiser) in trainers.items():
            begun, tokens = time.perf_counter(), 0
            for _ in range(options.steps):
                ids_BT = torch.randint(5, options.vocabulary, (BATCH, SEQUENCE))
                hidden_BT = torch.rand(BATCH, SEQUENCE) < RATE
                missing = 0.0 if name == "llmctl" else 2 * options.padding
                lengths_B1 = SEQUENCE * (1 - missing * torch.rand(BATCH, 1))
                real_BT = torch.arange(SEQUENCE) < lengths_B1
                tokens += int(real_BT.sum())
                with autocast(device, options.precision):
                    value = loss(ids_BT, hidden_BT, real_BT)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            seconds = time.perf_counter() - begun
            if round_number:  # in the first one kernels are chosen
                speeds[name].append(tokens / seconds)
    for name, values in speeds.items():
        parameters = sum(p.numel() for p in trainers[name][0].parameters())
        print(f"{name:14} {median(values):9,.0f} tokens/s  ({min(values):,.0f} to "
              f"{max(values):,.0f}), {parameters:,} parameters")  # fmt: skip
    ratios = [a / b for a, b in zip(speeds["llmctl"], speeds["transformers"], strict=True)]
    print(f"ratio of medians {median(speeds['llmctl']) / median(speeds['transformers']):.2f}, "
          f"by round {min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
