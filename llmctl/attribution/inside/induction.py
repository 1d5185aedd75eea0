"""Induction heads: those that look for what followed the same token before (Elhage et al. 2021;
Olsson et al. 2022, appendix "head activation evaluators").

The network reads random tokens twice over. At a place of the second half a head's score is its
attention to the token behind the same one of the first half, on average.

B rows, N heads, T tokens, P tokens of a half.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.data.random import key_of, permute
from llmctl.errors import InputError
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.attention import recorded_attention
from llmctl.reporting.report import ReportTable

ROWS, HALF = 8, 50
SHOWN_INDUCTION_HEADS = 12
"""Heads that are shown; the record has all."""


def repeated_tokens(subject: Subject, half: int, rows: int = ROWS) -> Tensor:
    """Rows of what stands before texts, then random ordinary tokens twice, (B, before + 2 P)."""
    ordinary = subject.tokenizer.ordinary
    before = list(subject.tokenizer.layout.before)
    chosen = [
        ordinary[permute(key_of("induction", row), len(ordinary), np.arange(half))]
        for row in range(rows)
    ]
    rows_of_ids = [[*before, *ids.tolist(), *ids.tolist()] for ids in chosen]
    return torch.tensor(rows_of_ids, device=subject.body.embedding().weight.device)


class Induction(Way):
    """The induction score of each head, and what the repetition is worth to the network."""

    name = "induction"
    described = "which heads look for what followed before (Olsson et al. 2022)"
    num_texts = 0

    @torch.no_grad()
    def look(self, subject: Subject) -> Insight:
        """Raises InputError for a network that doesn't read from left to right."""
        network = subject.network
        if not isinstance(network, CausalLM):
            raise InputError(
                f"{subject.name} is no language model, and induction is of those that guess the "
                "next token; give a GPT, a Llama or a nanochat"
            )
        before = len(subject.tokenizer.layout.before)
        room = (subject.body.longest_text - before) // 2
        half = min(HALF, room, len(subject.tokenizer.ordinary))
        if half < 2:
            raise InputError(f"{subject.name} reads too few tokens for some to come twice")
        ids_BT = repeated_tokens(subject, half)
        with recorded_attention() as layers:
            logits_BTV = network.logits(subject.body(ids_BT))
        second = torch.arange(before + half, before + 2 * half, device=ids_BT.device)
        heads = []
        for layer, weights_BNTS in enumerate(layers):
            weights_BNPT = weights_BNTS[:, :, second].double()
            columns = {"induction": second - half + 1, "same": second - half, "before": second - 1}
            places = torch.arange(half, device=ids_BT.device)
            scores = {
                name: weights_BNPT[:, :, places, column].mean((0, 2)).tolist()
                for name, column in columns.items()
            }
            for head in range(weights_BNTS.shape[1]):
                found = {name: values[head] for name, values in scores.items()}
                heads.append({"layer": layer, "head": head, **found})
        losses_BT = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none"
        ).double()
        # Loss t is of token t + 1; the first of each half nobody can know.
        first = float(losses_BT[:, before : before + half - 1].mean())
        again = float(losses_BT[:, before + half :].mean())
        heads.sort(key=lambda one: -one["induction"])
        rows = [
            [
                f"{one['layer']}.{one['head']}",
                *(f"{one[name]:.3f}" for name in ("induction", "same", "before")),
            ]
            for one in heads[:SHOWN_INDUCTION_HEADS]
        ]
        record = {"tokens": half, "rows": ROWS, "loss_first": first, "loss_again": again}
        title = f"{subject.name}: induction, {half} random tokens twice"
        headings = ["what followed", "the same token", "one before"]
        chance = 1 / (before + 1.5 * half)
        return Insight(
            {**record, "chance": chance, "heads": heads},
            [
                ReportTable(title, headings, rows),
                f"loss of the tokens: {first:.3f} nats the first time, {again:.3f} the second",
                f"shares of attention; spread evenly, each place would have {chance:.3f}",
            ],
        )
