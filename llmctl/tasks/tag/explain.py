"""Why a word has a tag: the tag's logit at the word's first piece, or what it is above another's.

R rows, T tokens, C tags.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.tagged import TaggedText, words_in
from llmctl.data.tables.tags import OUTSIDE
from llmctl.errors import InputError, UsageError
from llmctl.tasks.explanation import Explainer, rather
from llmctl.tasks.prediction import softmax
from llmctl.tasks.tag.windows import first_pieces


class TagExplainer(Explainer):
    """A tagger whose tag of one word is explained."""

    takes = ("answer", "against", "word")

    def build(self) -> Any:
        return self.folder.network()

    def explained(self, example: Example) -> ExplainedText:
        """The tag of the word that is asked for, or of the surest one that has one."""
        labels, words = self.folder.labels or [], words_in(example.text)
        ids, begins = self.read_whole(example)
        before = self.tokenizer.layout.before
        _, first_W = first_pieces(self.tokenizer, TaggedText(example.text, words, None, ""))

        def logits_of(ids_RT: Tensor) -> Tensor:
            logits: Tensor = self.network(ids_RT, torch.ones_like(ids_RT, dtype=torch.bool))
            return logits

        with torch.no_grad():
            sure_TC = softmax(logits_of(torch.tensor([ids], device=self.device))[0]).cpu().numpy()
        told = np.flatnonzero(first_W >= 0)
        if not len(told):
            raise InputError(f"{example.source} has no word that could be tagged; write some")
        word = self._word(sure_TC[first_W[told] + len(before)], told, labels)
        if not (0 <= word < len(words)) or first_W[word] < 0:
            raise UsageError(
                f"--word {word + 1}: the text has the words 1 to {len(words)}; give one of them"
            )
        place = int(first_W[word]) + len(before)
        first = self.choose(self.asked.answer, labels, "--answer")
        other = self.choose(self.asked.against, labels, "--against")
        if first is None:
            first = int(sure_TC[place].argmax())

        def score(ids_RT: Tensor) -> Tensor:
            logits_RC = logits_of(ids_RT)[:, place]
            return logits_RC[:, first] - (0.0 if other is None else logits_RC[:, other])

        said = rather(labels[first], None if other is None else labels[other])
        begin, end = words[word]
        return self.text(
            example,
            ids,
            range(len(before), len(before) + len(begins)),
            begins.tolist(),
            score,
            answer=f"{said} for “{example.text[begin:end]}”",
            read_at=(place,),
            facts={"probability": float(sure_TC[place, first]), "word": word + 1},
        )

    def _word(self, sure_WC: Any, told: Any, labels: list[str]) -> int:
        if self.asked.word is not None:
            return self.asked.word - 1
        best_W = sure_WC.max(-1)
        inside_W = np.array([labels[tag] != OUTSIDE for tag in sure_WC.argmax(-1)])
        return int(told[np.argmax(best_W + inside_W)])
