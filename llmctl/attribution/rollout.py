"""Weights from the attention of all layers (Abnar and Zuidema 2020, §3).

Attention says where a state is mixed from, not what for: these weights have no sign, and are the
same for each class.

B rows, N heads, T tokens.
"""

from __future__ import annotations

import torch

from llmctl.attribution.explained import AttributionMethod, ExplainedText, Floats
from llmctl.attribution.inside.attention import attention_of
from llmctl.errors import InputError


class AttentionRollout(AttributionMethod):
    """The product of the layers' attention, each averaged over its heads and half of it the state
    itself, as it goes past in the residual stream."""

    name = "attention-rollout"
    described = "attention rollout (Abnar and Zuidema 2020)"

    @torch.no_grad()
    def weights(self, text: ExplainedText) -> Floats:
        """What the states that the answer is read from are mixed from.

        Raises InputError for a model whose attention isn't that of all tokens to all.
        """
        if not text.read_at:
            raise InputError(
                "attention rollout is for answers that are read from a text's own states, and this "
                "model writes them by a second stack; take another --method"
            )
        rolled_TT: torch.Tensor | None = None
        for weights_NTT in attention_of(text):
            mean_TT = weights_NTT.mean(0)
            mixed_TT = (mean_TT + torch.eye(len(mean_TT), dtype=torch.float64).to(mean_TT)) / 2
            mixed_TT /= mixed_TT.sum(-1, keepdim=True)
            rolled_TT = mixed_TT if rolled_TT is None else mixed_TT @ rolled_TT
        assert rolled_TT is not None
        return text.of_words(rolled_TT[list(text.read_at)].mean(0))
