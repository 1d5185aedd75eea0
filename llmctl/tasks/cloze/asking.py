"""Asking a masked language model: the labels' words at a place of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmctl.errors import InputError
from llmctl.evaluation.choices import ChoiceScores, Question
from llmctl.inference.cloze import ClozeQuery, ClozeScorer, Scores, encode_cloze
from llmctl.inference.scoring import QUERIES_AHEAD
from llmctl.inference.templates import PromptTemplate
from llmctl.tasks.opened import OpenedModel
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device


class ClozeAsker:
    """A masked language model that says how likely words are at a mask; several processes divide
    the questions."""

    cuts = "what was farthest from the mask"

    def __init__(self, model: OpenedModel, device: str = "auto") -> None:
        folder = model.folder
        self.name, self.tokenizer = model.name, folder.tokenizer
        self.longest: int | None = folder.max_length
        self._length = folder.max_length
        network = folder.masked_lm().to(choose_device(device, "--device"))
        self._scorer = ClozeScorer(network, self.tokenizer)

    def check(self, template: PromptTemplate) -> None:
        """Raises InputError for a template without a place for a word."""
        if not template.is_cloze:
            raise InputError(
                f"--template {template.path} has no mask, and {self.name} is a masked language "
                "model: write {{ mask }} where the label's word is to stand"
            )

    def fits(self, prompt: str, choices: Sequence[str]) -> bool:
        return not self._encoded(prompt, choices, "a text").cut

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[ChoiceScores, int]]:
        queries = [
            self._encoded(question.context, question.choices, question.source)
            for question in questions
        ]
        priors = dict.fromkeys((q.prior, q.choices) for q in questions)
        asked = [
            self._encoded(prior or "", choices, "the prior of the template")
            for prior, choices in priors
        ]
        of_prior = {
            key: np.array([scores.sum() for scores in words])
            for key, words in zip(priors, self._score(asked), strict=True)
        }
        for question, query, words in zip(questions, queries, self._score(queries), strict=True):
            yield (
                ChoiceScores(
                    np.array([scores.sum() for scores in words]),
                    np.array([len(scores) for scores in words]),
                    question.sizes,
                    of_prior.get((question.prior, question.choices)),
                ),
                query.cut,
            )

    def _encoded(self, prompt: str, choices: Sequence[str], source: str) -> ClozeQuery:
        return encode_cloze(self.tokenizer, prompt, choices, max_length=self._length, source=source)

    def _score(self, queries: Iterable[ClozeQuery]) -> Iterator[list[Scores]]:
        world = get_world()

        def part_of(part: Iterable[ClozeQuery], first: int) -> Iterator[list[list[float]]]:
            for words in self._scorer.score(part):
                yield [scores.tolist() for scores in words]

        found = world.map_sharded(
            queries, part_of, block=max(1, QUERIES_AHEAD // world.size), kind=list[list[float]]
        )
        for words in found:
            yield [np.asarray(scores) for scores in words]
