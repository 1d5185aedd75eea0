"""Why a word stands at a mask: its log-probability there, or its logit above another's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmctl.attribution.explained import ExplainedText, ends_of
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.tasks.causal_lm.explain import NextWordExplainer


class MaskExplainer(NextWordExplainer):
    """A masked language model whose word for a text's first mask is explained."""

    def build(self) -> Any:
        return self.folder.masked_lm()

    def explained(self, example: Example) -> ExplainedText:
        """The likeliest token at the first mask, unless another is asked for."""
        mask = self.tokenizer.special.get("mask")
        shown = None if mask is None else self.tokenizer.id_to_token(mask)
        if shown is None or shown not in example.text:
            raise InputError(
                f"{example.source} has no {shown or 'mask'}; write one where a word is to be found"
            )
        assert mask is not None
        # Offsets are those of plain text: a mask is put in between.
        ids = list(self.tokenizer.layout.before)
        places: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        at = 0
        for number, part in enumerate(example.text.split(shown)):
            if number:
                ids.append(mask)
                at += len(shown)
            pieces, starts = self.tokenizer.encode_offsets(part)
            places += range(len(ids), len(ids) + len(pieces))
            begins += [at + start for start in starts.tolist()]
            ends += ends_of(begins[len(ends) :], at + len(part))
            ids += pieces.tolist()
            at += len(part)
        ids += self.tokenizer.layout.after
        self.check_length(example, len(ids))
        place = ids.index(mask)
        network: Any = self.network

        def logits_of(ids_RT: Tensor) -> Tensor:
            logits: Tensor = network.token_logits(network.body(ids_RT)[:, place]).float()
            return logits

        return self.of_token(example, ids, places, begins, logits_of, place, ends=ends)

    @property
    def blank(self) -> int:
        """Not the mask, which asks for a word here."""
        for role in ("unk", "pad"):
            if role in self.tokenizer.special:
                return self.tokenizer.special[role]
        return super().blank
