"""Why a detector takes a word for replaced, or for the text's own: the logit of that at one of its
tokens, as a function of the other words.

The word itself stays: a detector never sees a mask, and with another word in its place the question
would be another one.

R rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText, ends_of, words_of_tokens
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.tagged import words_in
from llmctl.errors import InputError, UsageError
from llmctl.models.heads.replaced_tokens import ReplacedTokensHead
from llmctl.tasks.explanation import Explainer

JUDGEMENTS = ("replaced", "original")
"""What a detector says of a token: that it was put there, or that it is the text's own."""


class DetectionExplainer(Explainer):
    """A detector whose judgement of one word is explained."""

    takes = ("answer", "word")

    def build(self) -> Any:
        return self.folder.with_head(ReplacedTokensHead.kind)

    def explained(self, example: Example) -> ExplainedText:
        """The word that is asked for, or the one that looks replaced most; of its tokens that
        which does."""
        words = words_in(example.text)
        ids, begins = self.read_whole(example)
        before = self.tokenizer.layout.before
        network: Any = self.network

        def logits_of(ids_RT: Tensor) -> Tensor:
            logits: Tensor = network.logits(network.body(ids_RT))
            return logits

        own_N = words_of_tokens(words, begins.tolist(), ends_of(begins.tolist(), len(example.text)))
        if len({*own_N.tolist()} - {-1}) < 2:
            raise InputError(
                f"{example.source} has no two words, and a word is judged by the others; write some"
            )
        with torch.no_grad():
            given_T = logits_of(torch.tensor([ids], device=self.device))[0].cpu().numpy()
        given_N = given_T[len(before) : len(before) + len(begins)]
        word = self._word(given_N, own_N, len(words))
        token = int(np.argmax(np.where(own_N == word, given_N, -np.inf)))
        place = len(before) + token
        answer = self.choose(self.asked.answer, JUDGEMENTS, "--answer")
        replaced = given_T[place] > 0 if answer is None else answer == 0
        sign = 1.0 if replaced else -1.0

        def score(ids_RT: Tensor) -> Tensor:
            return sign * logits_of(ids_RT)[:, place]

        begin, end = words[word]
        others = np.flatnonzero(own_N != word)
        return self.text(
            example,
            ids,
            (others + len(before)).tolist(),
            begins[others].tolist(),
            score,
            answer=f"{JUDGEMENTS[not replaced]}: “{example.text[begin:end]}”",
            ends=[ends_of(begins.tolist(), len(example.text))[n] for n in others],
            read_at=(place,),
            facts={
                "probability": float(1 / (1 + np.exp(-sign * float(given_T[place])))),
                "word": word + 1,
            },
        )

    def _word(self, given_N: Any, own_N: Any, count: int) -> int:
        """The number of the word that is explained. Raises UsageError for one that isn't there."""
        if self.asked.word is None:
            return int(own_N[np.argmax(np.where(own_N >= 0, given_N, -np.inf))])
        if self.asked.word - 1 not in own_N:
            raise UsageError(
                f"--word {self.asked.word}: the text has the words 1 to {count}, and those without "
                "a token of their own are not judged; give another"
            )
        return self.asked.word - 1
