"""Models that say how likely texts are: language models, masked ones, n-grams."""

from __future__ import annotations

from typing import ClassVar

from llmctl.errors import UsageError
from llmctl.formats.description import NEXT_TOKEN_KINDS
from llmctl.inference.masked_scoring import MaskedScorer
from llmctl.inference.scoring import Scorer
from llmctl.inference.weights import WeightType
from llmctl.models.heads.gpt_bert import GptBertHead
from llmctl.models.heads.masked_lm import MaskedLMHead
from llmctl.tasks.causal_lm.scoring import DividedScorer, LanguageEvaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device

MASK_KINDS = (MaskedLMHead.kind, GptBertHead.kind)
"""What models do that find hidden tokens."""


class TextEvaluator(LanguageEvaluator):
    """A way of measuring models by the likelihood of whole texts: from left to right, or for those
    that find hidden tokens the pseudo-likelihood."""

    kinds: ClassVar[tuple[str, ...]] = (*NEXT_TOKEN_KINDS, "ngram", MaskedLMHead.kind)

    def choose(self) -> None:
        super().choose()
        self.refuse_prompts()
        for model in self.models.values():
            self.scoring_of(model)

    def scoring_of(self, model: OpenedModel) -> str:
        """How a model's texts are scored: ``causal``, ``masked`` or ``within-word``.

        Raises UsageError where it can't be scored as asked.
        """
        asked = self.config.scoring
        usual = "masked" if model.kind == MaskedLMHead.kind else "causal"
        scoring = asked or usual
        if scoring == "causal" and model.kind == MaskedLMHead.kind:
            raise UsageError(
                f"--scoring causal: {model.name} is {model.described}, which reads both ways; "
                "leave it out, or give masked or within-word"
            )
        if scoring != "causal" and model.kind not in MASK_KINDS:
            raise UsageError(
                f"--scoring {scoring}: {model.name} is {model.described}, which finds no hidden "
                "tokens; leave it out"
            )
        if scoring != "causal" and self.config.dtype != "fp32":
            raise UsageError(
                f"--dtype {self.config.dtype} is for scoring from left to right, and {model.name} "
                "is scored by masks; leave it out"
            )
        return scoring

    def scorer(
        self, model: OpenedModel, dtype: WeightType | None = None, *, scoring: str | None = None
    ) -> Scorer:
        """A model that is ready to score texts. scoring: where it isn't as asked for."""
        scoring, folder = scoring or self.scoring_of(model), model.folder
        if scoring == "causal":
            return super().scorer(model, dtype)
        network = folder.network().to(choose_device(self.config.device, "--device"))
        return DividedScorer(
            MaskedScorer(
                network,
                folder.tokenizer,
                longest=folder.max_length,
                within_word=scoring == "within-word",
            )
        )
