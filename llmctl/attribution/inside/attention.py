"""Where each head looks.

L layers, N heads, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.errors import InputError
from llmctl.models.layers.attention import recorded_attention
from llmctl.reporting.heat_maps import WeightMaps
from llmctl.reporting.report import ReportTable


@torch.no_grad()
def attention_of(text: ExplainedText) -> list[Tensor]:
    """The attention (N, T, T) of each layer to a text.

    Raises InputError where it isn't that of all tokens to all.
    """
    with recorded_attention() as layers:
        text.score(text.ids_T[None])
    T = len(text.ids_T)
    # An answer of several tokens takes a pass for each word.
    layers = layers[: len(text.network.get_submodule("body").layers())]  # type: ignore[operator]
    seen = [weights for weights in layers if weights.shape[0] == 1]
    if not seen or len(seen) < len(layers) or any(w.shape[-1] < T for w in seen):
        raise InputError(
            "this needs the attention of every token to every other, and the model computes it in "
            "blocks for a text of so many tokens; shorten the text, or leave this out"
        )
    return [weights[0, :, :T, :T].double() for weights in seen]


class Attention(Way):
    """Attention by layer and head: how sharp it is, and where it goes."""

    name = "attention"
    described = "where each head looks, and how sharply"

    def look(self, subject: Subject) -> Insight:
        """The weights themselves are in the record, (L, N, T, T)."""
        (text,) = subject.texts
        layers = attention_of(text)
        tokens = subject.tokens(text)
        heads = []
        for layer, weights_NTT in enumerate(layers):
            for head, weights_TT in enumerate(weights_NTT):
                heads.append({"layer": layer, "head": head, **_told(weights_TT, tokens)})
        rows = [
            [
                f"{one['layer']}.{one['head']}",
                *(f"{one[name]:.2f}" for name in ("entropy", "itself", "before", "first")),
                f"{one['distance']:.1f}",
                str(one["most"]),
            ]
            for one in heads
        ]
        headings = ["entropy", "itself", "one before", "first token", "distance", "most looked at"]
        record: dict[str, Any] = {
            "text": text.text,
            "tokens": tokens,
            "heads": heads,
            "weights": [layer.tolist() for layer in layers],
        }
        about = (
            "entropy: of a token's attention, in nats, on average; itself, one before, first "
            "token: the share that goes there; distance: in tokens"
        )
        maps = WeightMaps(
            "each token's attention (a row) to each token (a column)",
            tokens,
            [
                (
                    f"layer {layer}",
                    [(f"head {head}", weights) for head, weights in enumerate(heads_here)],
                )
                for layer, heads_here in enumerate(record["weights"])
            ],
        )
        table = ReportTable(f"{subject.name}: attention", headings, rows)
        return Insight(record, [table, about], [maps])


def _told(weights_TT: Tensor, tokens: list[str]) -> dict[str, object]:
    """A head's figures, means over the tokens that look."""
    T = len(tokens)
    places_T = torch.arange(T, device=weights_TT.device)
    apart_TT = (places_T[:, None] - places_T).abs().double()
    entropy = -torch.special.xlogy(weights_TT, weights_TT).sum(-1).mean()
    return {
        "entropy": float(entropy),
        "itself": float(weights_TT.diagonal().mean()),
        "before": float(weights_TT.diagonal(-1).mean()) if T > 1 else 0.0,
        "first": float(weights_TT[:, 0].mean()),
        "distance": float((weights_TT * apart_TT).sum(-1).mean()),
        "most": tokens[int(weights_TT.mean(0).argmax())],
    }
