"""Networks as an ONNX file has them: ids in, numbers out, and nothing that goes by values.

The names of inputs and outputs are those that transformers' and optimum's exports have. A decoder
takes the keys and values of what came before and gives those of all so far; where a row begins is
said by its attention mask, so prompts of several lengths are padded on the left.

B batch, T tokens, P tokens before, S = P + T, K key/value heads, H head width, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.tag import Tagger
from llmctl.models.layers.attention import additive_mask
from llmctl.models.layers.context import Context

PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
"""What keys and values of a layer are called, going in and coming out."""


class _Past:
    """The keys and values of earlier tokens, to which each layer adds its own: what attention asks
    of a ``KeyValueCache``."""

    length = 0
    beams_per_group = 1

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self.past, self.present = past, list[Tensor]()

    def extend(
        self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys = torch.cat((self.past[2 * layer], k_BKTH), dim=2)
        values = torch.cat((self.past[2 * layer + 1], v_BKTH), dim=2)
        self.present += [keys, values]
        return q_BNTH, keys, values


class ExportedDecoder(nn.Module):
    """A language model with its cache as inputs and outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BS: Tensor, *past_BKPH: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (B, T, V), and the keys and values (B, K, S, H) of each layer."""
        body = self.model.body
        T, P = input_ids_BT.shape[1], past_BKPH[0].shape[2]
        positions_BS = (attention_mask_BS.cumsum(1) - 1).clamp(min=0)
        slots_T, slots_S = torch.arange(T) + P, torch.arange(P + T)
        queries_T1 = slots_T[:, None]
        all_TS = slots_S <= queries_T1
        near_TS = all_TS
        if body.config.window():
            near_TS = near_TS & (slots_S > queries_T1 - body.config.window())
        past: Any = _Past(past_BKPH)
        wide, context = (
            Context(
                positions_BS[:, slots_T],
                # What is padding attends to itself: a row of -∞ would give NaN.
                additive_mask(
                    behind_TS & (attention_mask_BS[:, None] > 0) | (slots_S == queries_T1)
                )[:, None],
                False,
                None,
                past,
            )
            for behind_TS in (all_TS, near_TS)
        )
        if body.config.wide_layers():
            context = replace(context, wide=wide)
        x_BTD, context = body.embed(input_ids_BT, context)
        for layer, block in enumerate(body.layers()):
            x_BTD = block(x_BTD, context, layer)
        return (self.model.logits(body.norm(x_BTD)), *past.present)


class ExportedReader(nn.Module):
    """A model that reads whole texts, padded on the right, and says something of each or of each of
    its tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def hidden(self, input_ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Hidden states (B, T, D)."""
        body = self.model.body
        hidden_BTD: Tensor
        if body.kind == "decoder":
            both = body.config.sees_both_sides()
            mask_BTT = mask_BT[:, None, :].expand(-1, mask_BT.shape[1], -1)
            hidden_BTD = body(input_ids_BT, mask_BTT if both else None)
        else:
            hidden_BTD = body(input_ids_BT, segments_BT, mask_BT)
        return hidden_BTD

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, C) of a classifier, (B, T, C) of a tagger, (B, T, V) of a masked language
        model; vectors (B, D) of an embedder."""
        model, mask_BT = self.model, attention_mask_BT > 0
        hidden_BTD = self.hidden(input_ids_BT, mask_BT, token_type_ids_BT)
        if isinstance(model, Embedder):
            return self._vectors(hidden_BTD, mask_BT)
        if isinstance(model, Classifier):
            summary_BD = (
                _last(hidden_BTD, mask_BT) if model.causal else model.pooled(hidden_BTD, mask_BT)
            )
            return model.output(summary_BD)
        if isinstance(model, Tagger):
            return model.output(model.transformed(hidden_BTD))
        logits: Tensor = model.token_logits(hidden_BTD)
        return logits

    def _vectors(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        share_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
        pooling = self.model.pooling
        if pooling == "mean":
            vectors_BD = (hidden_BTD * share_BT1).sum(1) / share_BT1.sum(1)
        elif pooling == "max":
            vectors_BD = hidden_BTD.masked_fill(~mask_BT[..., None], -torch.inf).amax(1)
        else:
            vectors_BD = hidden_BTD[:, 0] if pooling == "cls" else _last(hidden_BTD, mask_BT)
        return F.normalize(vectors_BD, dim=-1) if self.model.normalize else vectors_BD


def _last(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The hidden state (B, D) of each text's last token."""
    last_B11 = (mask_BT.sum(1) - 1)[:, None, None]
    return hidden_BTD.gather(1, last_B11.expand(-1, 1, hidden_BTD.shape[-1]))[:, 0]
