"""Prediction: what a task's models answer to single texts, from a file or from the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import LOGITS_NOT_FINITE, InputError
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device


class TextAnswer(Protocol):
    """What a model says of a text."""

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        ...

    def lines(self, top: int) -> Iterator[str]:
        """The answer for people, with so many of the likeliest alternatives."""
        ...


class Predictor(ABC):
    """A model that is ready to answer texts."""

    kinds: ClassVar[tuple[str, ...]]
    """What models do that it is for."""

    def __init__(self, model: OpenedModel, device: str = "auto") -> None:
        self.model, self.folder = model, model.folder
        self.device = choose_device(device, "--device")

    @classmethod
    def for_model(cls, model: OpenedModel) -> type[Self]:
        """The class that answers for a model, where that is one of several."""
        return cls

    def alone(self, texts: Sequence[str]) -> Iterator[Example]:
        """Single texts. Raises UsageError for a model of pairs."""
        return iter([Example(text, None, None, f"text {n}") for n, text in enumerate(texts, 1)])

    def of_file(
        self, path: Path, requested: LabelledColumns, reporter: Reporter | None = None
    ) -> Iterator[Example]:
        """The texts of a file, or of standard input, ``-``.

        Raises InputError or UsageError where the file has none that would do.
        """
        reporter = reporter or Reporter()
        # A header that had to be named once is there, or not, in files of the kind.
        header = self.model.read_config.header if requested.header == "auto" else requested.header
        reading = requested.replace(header=header).read_options(reporter.note)
        columns = self.columns(path, requested, reading, reporter)
        return read_examples(path, columns, reading=reading)

    @abstractmethod
    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """The columns of a file, or of standard input, that texts are read from.

        Raises InputError or UsageError where the file has none that would do.
        """

    @abstractmethod
    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[TextAnswer]:
        """Answers in the order of the texts, as they are computed; several processes divide the
        texts. top: alternatives that are found where there are many."""


def sigmoid(logits: Tensor) -> Tensor:
    """Probabilities of each, in fp64. Raises InputError if there are none."""
    if not torch.isfinite(logits).all():
        raise InputError(LOGITS_NOT_FINITE)
    return logits.double().sigmoid()


def softmax(logits: Tensor) -> Tensor:
    """Probabilities over the last dimension, in fp64. Raises InputError if there are none."""
    if not torch.isfinite(logits).all():
        raise InputError(LOGITS_NOT_FINITE)
    return torch.softmax(logits.double(), dim=-1)
