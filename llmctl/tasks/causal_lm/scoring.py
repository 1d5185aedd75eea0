"""What all evaluations of language models share: which models, and how they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import InputError, UsageError
from llmctl.evaluation.choices import ChoiceScores, Question
from llmctl.formats.description import NEXT_TOKEN_KINDS
from llmctl.inference.ngram_decoder import NgramScorer
from llmctl.inference.scoring import (
    QUERIES_AHEAD,
    CausalScorer,
    Query,
    QueryScores,
    Scorer,
    encode_query,
    truncate_context,
)
from llmctl.inference.templates import PromptTemplate
from llmctl.inference.weights import WeightType, prepare
from llmctl.tasks.evaluation import FOR_SOURCES, Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

SCORING_ROWS = 256
"""Rows of a product when texts are scored, about: more than when they are written."""


class LanguageEvaluator(Evaluator):
    """A way of measuring models that predict next tokens."""

    kinds: ClassVar[tuple[str, ...]] = (*NEXT_TOKEN_KINDS, "ngram")

    def choose(self) -> None:
        """Check what every language model is given, but for a template."""
        self.refuse(FOR_SOURCES, "target")
        if self.model.kind == "ngram" and self.config.dtype != "fp32":
            raise UsageError(
                f"--dtype {self.config.dtype}: {self.model.name} is an n-gram model and has no "
                "weights; leave it out"
            )

    def refuse_prompts(self) -> None:
        """Raises UsageError where options ask for prompts, and for a model that reads nothing
        else."""
        if self.files.examples is not None or any(self.config.shots):
            raise UsageError("--examples and --shots go with --template FILE, which writes prompts")
        for other in self.others:
            if not self.predicts_text(other):
                raise UsageError(
                    f"--compare {other.name} predicts no text, and goes with --template; give a "
                    "language model"
                )

    def predicts_text(self, model: OpenedModel) -> bool:
        """Whether a model predicts next tokens."""
        return model.kind in self.kinds

    def scorer(self, model: OpenedModel, dtype: WeightType | None = None) -> Scorer:
        """A model that is ready to score texts. dtype: where it isn't as asked for; an n-gram model
        has none."""
        return scorer_of(model, self.config.device, dtype or self.config.dtype)


def scorer_of(model: OpenedModel, device: str, dtype: WeightType = "fp32") -> Scorer:
    """A model that is ready to score texts, which several processes divide."""
    if model.kind == "ngram":
        return DividedScorer(NgramScorer(model.folder.ngram()))
    lm = model.folder.causal_lm().to(choose_device(device, "--device"))
    # As trained, fp32 needs no other form: that of writing is for few rows at once.
    head = None if dtype == "fp32" else prepare(lm, dtype, rows=SCORING_ROWS)
    return DividedScorer(CausalScorer(lm, longest=model.folder.max_length, head=head))


class CausalAsker:
    """A language model that says how likely words are behind a prompt."""

    cuts = "their beginning"

    def __init__(
        self, model: OpenedModel, device: str = "auto", dtype: WeightType = "fp32"
    ) -> None:
        self.name, self.tokenizer = model.name, model.folder.tokenizer
        self.scorer = scorer_of(model, device, dtype)
        self.longest = self.scorer.longest

    def check(self, template: PromptTemplate) -> None:
        """Raises InputError for a template with a place for a word within it."""
        if template.is_cloze:
            raise InputError(
                f"--template {template.path} has a mask, and {self.name} goes on with texts: leave "
                "{{ mask }} out, and end the input where the label's word follows"
            )

    def fits(self, prompt: str, choices: Sequence[str]) -> bool:
        query = encode_query(self.tokenizer, prompt, choices)
        return not truncate_context(query, self.longest)[1]

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[ChoiceScores, int]]:
        return ask(self.scorer, self.tokenizer, questions)


class DividedScorer:
    """A scorer whose queries several processes divide."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.longest = scorer, scorer.longest

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[QueryScores]:
        world = get_world()
        yield from world.map_sharded(
            queries,
            lambda part, first: self._scorer.score(part, greedy=greedy),
            block=max(1, QUERIES_AHEAD // world.size),
            kind=QueryScores,
        )


def ask(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], *, greedy: bool = False
) -> Iterator[tuple[ChoiceScores, int]]:
    """What a model makes of each question, and the tokens that its context lost to fit."""
    queries = [
        encode_query(tokenizer, question.context, question.choices, source=question.source)
        for question in questions
    ]
    priors = _priors(scorer, tokenizer, questions)
    answers = scorer.score(iter(queries), greedy=greedy)
    for question, prior_C, answer in zip(questions, priors, answers, strict=True):
        yield (
            ChoiceScores(
                np.array([score.total for score in answer.scores]),
                np.array([len(score.log_probs) for score in answer.scores]),
                question.sizes,
                prior_C,
                answer.scores[0].greedy,
            ),
            answer.cut,
        )


def _priors(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[NDArray[np.float64] | None]:
    """Log-probabilities of each question's choices behind its prior context: often the same for
    many, and then asked once."""
    keys = [(question.prior, question.choices) for question in questions]
    distinct = dict.fromkeys(key for key in keys if key[0] is not None)
    queries = [
        encode_query(tokenizer, prior or "", choices, source=f"the prior of {choices[0]!r}")
        for prior, choices in distinct
    ]
    priors = {
        key: np.array([score.total for score in answer.scores])
        for key, answer in zip(distinct, scorer.score(queries), strict=True)
    }
    return [priors.get(key) for key in keys]
