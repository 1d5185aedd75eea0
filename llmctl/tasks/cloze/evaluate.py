"""Evaluate a masked language model as a classifier: labels' words at the mask of a template."""

from __future__ import annotations

from llmctl.errors import UsageError
from llmctl.inference.templates import PromptTemplate
from llmctl.tasks.asking import Asker
from llmctl.tasks.causal_lm.prompted import PromptEvaluator
from llmctl.tasks.cloze.asking import ClozeAsker
from llmctl.tasks.cloze.template import kept_template
from llmctl.tasks.evaluation import FOR_WRITERS, EvaluateConfig, Files
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prompted import OWN_WORDS


class ClozeEvaluator(PromptEvaluator):
    """The rows of a file, asked by a template with a mask."""

    kinds = ("masked_lm", "cloze")

    def choose(self) -> None:
        """Find the rows; what is asked for may have been finetuned, or not."""
        self.refuse(FOR_WRITERS, "dtype")
        super().choose()

    def asker(self, model: OpenedModel) -> Asker:
        return ClozeAsker(model, self.config.device)


class TrainedClozeEvaluator(ClozeEvaluator):
    """That of a model which was trained with a template, and keeps it."""

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        return True

    def candidates(self) -> list[PromptTemplate]:
        """The model's own template, where no other is given."""
        if self.files.template is not None or self.files.templates is not None:
            return super().candidates()
        if self.config.labels:
            raise UsageError(OWN_WORDS)
        return [kept_template(self.model.folder)]

    @property
    def trained(self) -> OpenedModel | None:
        """What was trained on labels: the model itself."""
        return self.model
