"""Explanation: a model's answer to a text as a number, a function of the text's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.attribution.explained import ExplainedText, ends_of, words_of_tokens
from llmctl.config import Config
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.tagged import words_in
from llmctl.errors import InputError, UsageError
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device

EXPLAINED_WORDS = 400
"""Words of a text: methods that leave words out take a pass for each, or several."""


class ExplainedAnswer(Config):
    """What is to be explained; each field is for some models only."""

    answer: str | None = None
    """The answer to explain in the place of the model's own: a class, a tag, or the next word."""
    against: str | None = None
    """Another answer: what speaks for the first rather than for this one."""
    word: int | None = None
    """The number, from 1, of the word whose tag or judgement is explained."""


class Explainer(ABC):
    """A model that is ready to have its answers explained."""

    takes: tuple[str, ...] = ("answer", "against")
    """Fields of ``ExplainedAnswer`` that say something here."""
    pairs = False
    """Whether its texts are pairs, of which the first is explained."""

    def __init__(self, model: OpenedModel, asked: ExplainedAnswer, device: str = "auto") -> None:
        """Raises UsageError for what is asked of another kind of model."""
        self.model, self.folder, self.asked = model, model.folder, asked
        self.tokenizer = model.folder.tokenizer
        self.device = choose_device(device, "--device")
        for name, value in asked.model_dump().items():
            if value is not None and name not in self.takes:
                raise UsageError(f"--{name} is not for {model.described}; leave it out")
        if asked.answer is not None and asked.answer == asked.against:
            raise UsageError(f"--answer and --against are both {asked.answer!r}; name two")
        if self.folder.virtual is not None:
            raise InputError(
                f"{model.name} has virtual tokens before each text, and what an answer owes to "
                "these is not told apart; take a model that was finetuned by another method"
            )
        self.network = self.build().to(self.device).eval()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network."""

    @abstractmethod
    def explained(self, example: Example) -> ExplainedText:
        """A text and its answer. Raises InputError for a text that has none."""

    @property
    def blank(self) -> int:
        """The token that stands for a word that is left out: the mask, or else the token for what
        is unknown, for padding, or a text's end."""
        for role in ("mask", "unk", "pad", "eos"):
            if role in self.tokenizer.special:
                return self.tokenizer.special[role]
        raise InputError(
            f"the tokenizer of {self.model.name} has no special token that could stand for a word "
            "that is left out; take a model with one"
        )

    def text(
        self,
        example: Example,
        ids: Sequence[int],
        places: Sequence[int],
        begins: Sequence[int],
        score: Callable[[Tensor], Tensor],
        *,
        answer: str,
        ends: Sequence[int] | None = None,
        read_at: Sequence[int] = (0,),
        passes: int = 1,
        facts: dict[str, object] | None = None,
    ) -> ExplainedText:
        """A text's tokens put together with its words.

        places: where the text's own tokens stand in ``ids``; begins and ends: where in the text
        each begins and ends, by default where the next begins. A word that no token begins with is
        left out.
        """
        self.check_length(example, len(ids))
        words = words_in(example.text)
        own = words_of_tokens(words, begins, ends or ends_of(begins, len(example.text)))
        told, own_N = np.unique(own, return_inverse=True)
        words = tuple(words[word] for word in told if word >= 0)
        own_N = own_N - (len(told) - len(words))
        if not words:
            raise InputError(f"{example.source} has no word that could be explained; write some")
        if len(words) > EXPLAINED_WORDS:
            raise InputError(
                f"{example.source} has {len(words)} words, more than {EXPLAINED_WORDS}; shorten it"
            )
        # What is unknown is a word as well, and may have decided.
        special = set(self.tokenizer.special_ids) - {self.tokenizer.special.get("unk")}
        word_T = np.full(len(ids), -1)
        for place, word in zip(places, own_N.tolist(), strict=True):
            if ids[place] not in special:
                word_T[place] = word
        return ExplainedText(
            text=example.text,
            words=words,
            answer=answer,
            ids_T=torch.tensor(list(ids), device=self.device),
            word_T=word_T,
            blank=self.blank,
            network=self.network,
            embedding=self.network.get_submodule("body").embedding(),  # type: ignore[operator]
            score=score,
            read_at=tuple(read_at),
            passes=passes,
            facts=facts or {},
        )

    def read_whole(self, example: Example) -> tuple[list[int], NDArray[np.int64]]:
        """A text's tokens with the special ones around them, and where in it each of its own
        begins. Raises InputError for a text that isn't read at once."""
        pieces, begins = self.tokenizer.encode_offsets(example.text)
        layout = self.tokenizer.layout
        ids = [*layout.before, *pieces.tolist(), *layout.after]
        if len(ids) > self.folder.max_length:
            raise InputError(
                f"{example.source} has {len(ids)} tokens and {self.model.name} reads "
                f"{self.folder.max_length} at once; shorten it"
            )
        return ids, begins

    def check_length(self, example: Example, length: int, beside: str = "") -> None:
        """Raises InputError for a text of more tokens than the network reads."""
        most = self.folder.longest_text
        if length > most:
            raise InputError(
                f"{example.source}{beside} has {length} tokens and {self.model.name} takes {most}; "
                "shorten it"
            )

    def choose(self, given: str | None, labels: Sequence[str], option: str) -> int | None:
        """The number of a label that was given. Raises UsageError for one that isn't there."""
        if given is None:
            return None
        if given not in labels:
            shown = ", ".join(labels[:20])
            raise UsageError(
                f"{option} {given}: {self.model.name} has no such label; it has {shown}"
            )
        return list(labels).index(given)

    def piece(self, text: str, option: str) -> int:
        """The token of a word as it stands behind a space, or else at a text's start. Raises
        UsageError for a word of several."""
        for spelt in (f" {text}", text):
            ids = self.tokenizer.encode(spelt)
            if len(ids) == 1:
                return ids[0]
        raise UsageError(
            f"{option} {text}: the tokenizer cuts it into {len(ids)} pieces, and one token is "
            "explained; take a word that is one piece"
        )


def rather(first: str, other: str | None = None) -> str:
    """An answer in words."""
    return first if other is None else f"{first} rather than {other}"
