"""Why a word comes next: its log-probability, or its logit above another's.

R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.tasks.explanation import Explainer, rather


class NextWordExplainer(Explainer):
    """A language model whose next token is explained."""

    def build(self) -> Any:
        return self.folder.causal_lm()

    def explained(self, example: Example) -> ExplainedText:
        """The likeliest next token, unless another is asked for."""
        pieces, begins = self.tokenizer.encode_offsets(example.text)
        before = self.tokenizer.layout.before
        ids = [*before, *pieces.tolist()]
        network: Any = self.network

        def logits_of(ids_RT: Tensor) -> Tensor:
            logits: Tensor = network.logits(network.body(ids_RT)[:, -1])
            return logits

        return self.of_token(
            example, ids, range(len(before), len(ids)), begins.tolist(), logits_of, len(ids) - 1
        )

    def of_token(
        self,
        example: Example,
        ids: list[int],
        places: Any,
        begins: list[int],
        logits_of: Any,
        read_at: int,
        *,
        ends: list[int] | None = None,
    ) -> ExplainedText:
        """What logits (R, V) say of one token, as an answer to be explained."""
        asked = self.asked
        with torch.no_grad():
            log_probs_V = logits_of(torch.tensor([ids], device=self.device))[0].log_softmax(-1)
        if asked.answer is None:
            first = int(log_probs_V.argmax())
        else:
            first = self.piece(asked.answer, "--answer")
        other = None if asked.against is None else self.piece(asked.against, "--against")

        def score(ids_RT: Tensor) -> Tensor:
            logits_RV = logits_of(ids_RT)
            if other is None:
                return logits_RV.log_softmax(-1)[:, first]
            return logits_RV[:, first] - logits_RV[:, other]

        said = [self.tokenizer.id_to_token(token) for token in (first, other) if token is not None]
        return self.text(
            example,
            ids,
            places,
            begins,
            score,
            answer=rather(said[0], said[1] if other is not None else None),
            ends=ends,
            read_at=(read_at,),
            facts={"probability": float(log_probs_V[first].exp())},
        )
