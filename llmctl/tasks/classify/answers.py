"""What classifiers of several labels, and of ordered classes, answer to texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.evaluation.ordinal import median_class
from llmctl.reporting.visible import visible
from llmctl.tasks.classify.labels import thresholds_of
from llmctl.tasks.classify.predict import ClassPredictor, Prediction, beginning_of


@dataclass(frozen=True)
class LabelSet:
    """The labels of a text, any number of them."""

    text: str
    text_pair: str | None
    labels: list[str]
    probabilities: dict[str, float]
    """Those of all labels, falling."""

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {
            "text": self.text,
            **pair,
            "labels": self.labels,
            "probabilities": self.probabilities,
        }

    def lines(self, top: int) -> Iterator[str]:
        """The labels, so many of the likeliest with their probabilities, and the text's
        beginning."""
        best = list(self.probabilities.items())[:top]
        ranking = "  ".join(f"{visible(label)} {share:.1%}" for label, share in best)
        given = ", ".join(map(visible, self.labels)) or "none"
        yield f"{given}\t{ranking}\t{beginning_of(self.text)}"


class LabelSetPredictor(ClassPredictor):
    """A classifier of several labels that is ready for texts."""

    def answer(self, prediction: Prediction) -> Any:
        """The labels whose probability reaches their threshold."""
        threshold = dict(zip(self.folder.labels or [], thresholds_of(self.folder), strict=True))
        labels = [
            label for label, share in prediction.probabilities.items() if share >= threshold[label]
        ]
        return LabelSet(prediction.text, prediction.text_pair, labels, prediction.probabilities)


class OrdinalPredictor(ClassPredictor):
    """A classifier of ordered classes that is ready for texts."""

    def answer(self, prediction: Prediction) -> Prediction:
        """The median of the classes."""
        labels = self.folder.labels or []
        shares = np.array([[prediction.probabilities[label] for label in labels]])
        label = labels[int(median_class(shares)[0])]
        return Prediction(prediction.text, prediction.text_pair, label, prediction.probabilities)
