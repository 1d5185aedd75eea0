"""Why a word comes next: its log-probability, or what that is above another's; for words of several
tokens, of all of them, one after another.

R rows, T tokens, P pieces of a word, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.data.text.words import UNSPACED
from llmctl.errors import InputError, UsageError
from llmctl.tasks.explanation import Explainer, rather


class NextWordExplainer(Explainer):
    """A language model whose next token is explained."""

    def build(self) -> Any:
        return self.folder.causal_lm()

    def explained(self, example: Example) -> ExplainedText:
        """The likeliest next token, unless another word is asked for."""
        pieces, begins = self.tokenizer.encode_offsets(example.text)
        before = self.tokenizer.layout.before
        ids = [*before, *pieces.tolist()]
        if not ids:
            raise InputError(f"{example.source} has no word that could be explained; write some")
        self.check_length(example, len(ids))
        places = range(len(before), len(ids))
        network: Any = self.network
        asked = {"--answer": self.asked.answer, "--against": self.asked.against}
        words = {
            option: self._pieces(example.text, pieces.tolist(), word, option)
            for option, word in asked.items()
            if word is not None
        }
        if any(len(word) > 1 for word in words.values()):
            return self._of_words(example, ids, places, begins.tolist(), words)

        def logits_of(ids_RT: Tensor) -> Tensor:
            logits: Tensor = network.logits(network.body(ids_RT)[:, -1])
            return logits

        return self.of_token(example, ids, places, begins.tolist(), logits_of, len(ids) - 1)

    def _pieces(self, text: str, before: list[int], word: str, option: str) -> list[int]:
        """The tokens of a word: one, if there is one that is spelt so, or those that the tokenizer
        cuts it into behind the text."""
        try:
            return [self.piece(word, option)]
        except UsageError:
            if not word.strip():
                raise
        apart = "" if UNSPACED.match(word) or text[-1:].isspace() else " "
        whole = self.tokenizer.encode(f"{text}{apart}{word}")
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
        return self.tokenizer.encode(f"{apart}{word}")

    def _of_words(
        self,
        example: Example,
        ids: list[int],
        places: Any,
        begins: list[int],
        words: dict[str, list[int]],
    ) -> ExplainedText:
        """What is said of words of several tokens, of which one answers or both do."""
        network: Any = self.network
        T = len(ids)

        def log_prob(ids_RT: Tensor, word: list[int]) -> Tensor:
            behind_RP = torch.tensor([word], device=ids_RT.device).expand(len(ids_RT), -1)
            hidden_RTD = network.body(torch.cat([ids_RT, behind_RP[:, :-1]], dim=1))
            logs_RPV = network.logits(hidden_RTD[:, T - 1 :]).log_softmax(-1)
            return logs_RPV.gather(2, behind_RP[:, :, None])[:, :, 0].sum(1)

        with torch.no_grad():
            own_1T = torch.tensor([ids], device=self.device)
            first = words.get("--answer")
            if first is None:
                first = [int(network.logits(network.body(own_1T)[:, -1]).argmax())]
            longest = T - 1 + max(len(first), len(words.get("--against", ())))
            self.check_length(example, longest, " with its answer")
            probability = float(log_prob(own_1T, first).exp())
        other = words.get("--against")

        def score(ids_RT: Tensor) -> Tensor:
            own_R = log_prob(ids_RT, first)
            return own_R if other is None else own_R - log_prob(ids_RT, other)

        said = [self.tokenizer.decode(word) for word in (first, other) if word is not None]
        return self.text(
            example,
            ids,
            places,
            begins,
            score,
            answer=rather(*said),
            read_at=(T - 1,),
            passes=1 if other is None else 2,
            facts={"probability": probability},
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
            answer=rather(*said),
            ends=ends,
            read_at=(read_at,),
            facts={"probability": float(log_probs_V[first].exp())},
        )
