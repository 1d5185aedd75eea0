"""Sets of tests by which models are compared in publications (``llmctl eval --suite``): a file
each, entered here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class Suite(ABC):
    """A set of tests in the table ``SUITES``. Its parts are loaded when they are called for."""

    name: ClassVar[str]
    """What ``--suite`` takes."""
    asks: ClassVar[str]
    """What is measured, for the help."""

    @abstractmethod
    def evaluator(self) -> Any:
        """What measures models by it, a ``llmctl.tasks.evaluation.Evaluator``."""


class BlimpSuite(Suite):
    """Minimal pairs of sentences."""

    name, asks = "blimp", "grammar, by BLiMP's minimal pairs"

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.blimp import BlimpEvaluator

        return BlimpEvaluator


class GlueSuite(Suite):
    """Tasks on sentences and pairs, that a model is finetuned for."""

    name, asks = "glue", "understanding, by finetuning on GLUE's tasks"

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.glue import GlueEvaluator

        return GlueEvaluator


class MemorySuite(Suite):
    """Training text that a model gives back."""

    name, asks = "memory", "how much of its training text a model gives back (needs no folder)"

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.memory import MemoryEvaluator

        return MemoryEvaluator


class BiasSuite(Suite):
    """Stereotypes that a model prefers, and answers that change with who is spoken of."""

    name = "bias"
    asks = (
        "social bias, by CrowS-Pairs, StereoSet, WinoBias or BBQ, or of a classifier by swapped "
        "terms (its texts with --data)"
    )

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.bias import BiasEvaluator

        return BiasEvaluator


class OverlapSuite(Suite):
    """Rows of a test that a model has read in training."""

    name = "overlap"
    asks = "how much of a test (--data) stood in the training text, by n-grams and near-duplicates"

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.overlap import OverlapEvaluator

        return OverlapEvaluator


class Harness(Suite):
    """The tasks of lm-evaluation-harness: not one set of tests, but as many as it has."""

    name, asks = "harness", "tasks of lm-evaluation-harness"

    def evaluator(self) -> Any:
        from llmctl.tasks.suites.harness import HarnessEvaluator

        return HarnessEvaluator


HARNESS = Harness()
"""Beside the table, as ``--harness`` has an option of its own."""
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (BlimpSuite(), GlueSuite(), MemorySuite(), OverlapSuite(), BiasSuite())
}
"""By their names."""
