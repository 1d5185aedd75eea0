"""Why a text has a class: the class's logit, or what it is above another's.

R rows, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.encoded import encode_examples
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError, UsageError
from llmctl.tasks.explanation import Explainer, rather
from llmctl.tasks.prediction import softmax


class ClassExplainer(Explainer):
    """A classifier whose classes are explained."""

    def build(self) -> Any:
        return self.folder.classifier()

    def explained(self, example: Example) -> ExplainedText:
        """The words of the first text are explained; the second of a pair stays as it is."""
        folder, trained = self.folder, self.model.labelled
        if trained is not None and bool(trained.text_pair) != (example.text_pair is not None):
            raise UsageError(
                f"{self.model.name} was trained on pairs of texts; give the second with --text-pair"
                if trained.text_pair
                else f"{self.model.name} was trained on single texts; leave the second text out"
            )
        (row,) = encode_examples(
            self.tokenizer, [example], folder.max_length, pad=folder.end_padding
        )
        before = self.tokenizer.layout.before
        if example.text_pair is not None:
            before = self.tokenizer.layout.pair_before
        pieces, begins = self.tokenizer.encode_offsets(example.text)
        if row.cut:
            raise InputError(
                f"{example.source} is longer than the {folder.max_length} tokens that "
                f"{self.model.name} reads; shorten it"
            )
        T = len(row.ids)
        # Padding that was taken away may have been the text's own end.
        own = min(len(pieces), T - len(before))
        segments_T = (torch.arange(T, device=self.device) >= row.second).long()

        def logits_of(ids_RT: Tensor) -> Tensor:
            segments_RT = segments_T.expand_as(ids_RT)
            logits: Tensor = self.network(
                ids_RT, segments_RT, torch.ones_like(ids_RT, dtype=torch.bool)
            )
            return logits

        with torch.no_grad():
            answered_C = logits_of(torch.from_numpy(row.ids).to(self.device)[None])[0]
        answer, number, facts = self.answered(answered_C)

        def score(ids_RT: Tensor) -> Tensor:
            return number(logits_of(ids_RT))

        return self.text(
            example,
            row.ids.tolist(),
            range(len(before), len(before) + own),
            begins[:own].tolist(),
            score,
            answer=answer,
            read_at=self._read_at(T),
            facts=facts,
        )

    def answered(
        self, logits_C: Tensor
    ) -> tuple[str, Callable[[Tensor], Tensor], dict[str, object]]:
        """The answer in words, its number (R,) of some rows' logits (R, C), and what else is to be
        told of it."""
        labels = self.folder.labels or []
        first = self.choose(self.asked.answer, labels, "--answer")
        other = self.choose(self.asked.against, labels, "--against")
        if first is None:
            first = int(logits_C.argmax())

        def number(logits_RC: Tensor) -> Tensor:
            return logits_RC[:, first] - (0.0 if other is None else logits_RC[:, other])

        said = rather(labels[first], None if other is None else labels[other])
        return said, number, {"probability": float(softmax(logits_C)[first])}

    def _read_at(self, length: int) -> list[int]:
        config = self.folder.config
        pooling = getattr(self.network, "pooling", None)
        if pooling is not None:
            return {"cls": [0], "last": [length - 1]}.get(pooling, list(range(length)))
        if self.folder.spec.kind == "decoder":
            return [length - 1]
        mean = config.pooled_by == "transform" and config.classifier_pooling == "mean"
        return list(range(length)) if mean else [0]
