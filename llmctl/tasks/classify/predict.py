"""Predict with a classifier: the probabilities of a text's classes.

B texts, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.tables.encoded import EncodedExample, encode_examples, pad_token
from llmctl.data.tables.labelled import Columns, Example
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions
from llmctl.formats.columns import check_single, labelled_columns
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.setfit import PooledClassifier
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.classify.batches import collate, cut_in_use
from llmctl.tasks.classify.labels import gives_several, is_ordinal
from llmctl.tasks.classify.ready import ready_classifier
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor, sigmoid, softmax
from llmctl.tasks.training_data import seen_in_training
from llmctl.training.distributed.processes import get_world

BATCH = 64
"""Texts computed together."""
TEXTS_AHEAD = 16 * BATCH
"""Texts read before the first answer: sorted by length among themselves, so that little is
padding, and few enough that answers stream."""
SHOWN = 60
"""Characters of a text that are shown beside its classes."""


@dataclass(frozen=True)
class Prediction:
    """The classes of a text by falling probability."""

    text: str
    text_pair: str | None
    label: str
    probabilities: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {
            "text": self.text,
            **pair,
            "label": self.label,
            "probabilities": self.probabilities,
        }

    def lines(self, top: int) -> Iterator[str]:
        """The likeliest class, so many with their shares, and the text's beginning."""
        best = list(self.probabilities.items())[:top]
        ranking = "  ".join(f"{visible(label)} {share:.1%}" for label, share in best)
        yield f"{visible(self.label)}\t{ranking}\t{beginning_of(self.text)}"


def beginning_of(text: str) -> str:
    """The beginning of a text in a line."""
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
    return visible(" ".join(shown.split()))


class ClassPredictor(Predictor):
    """A classifier that is ready for texts."""

    kinds: ClassVar[tuple[str, ...]] = ("classify", "setfit")

    @classmethod
    def for_model(cls, model: OpenedModel) -> Any:
        """That of several labels, or of ordered ones."""
        from llmctl.tasks.classify import answers

        if gives_several(model.folder):
            return answers.LabelSetPredictor
        return answers.OrdinalPredictor if is_ordinal(model.folder) else cls

    def answer(self, prediction: Prediction) -> Any:
        """What is said of a text, by its classes' probabilities."""
        return prediction

    def alone(self, texts: Sequence[str]) -> Iterator[Example]:
        check_single(self.model)
        return super().alone(texts)

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """Those that it was trained on, unless others are given."""
        columns = labelled_columns(
            self.model, path, requested, need_label=False, reading=reading, note=reporter.note
        )
        for seen in [] if str(path) == "-" else seen_in_training(self.model, path):
            reporter.note(seen)
        return columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Prediction]:
        """The classes of each text, all of them."""
        folder, labels = self.folder, self.folder.labels or []
        classifier, pad = ready_classifier(folder, self.device), pad_token(folder.tokenizer)
        count, cut, several = 0, 0, gives_several(folder)

        def classified(part: Iterable[Example], first: int) -> Iterator[tuple[Prediction, bool]]:
            for block in in_blocks(part):
                encoded = encode_examples(
                    folder.tokenizer, block, folder.max_length, pad=folder.end_padding
                )
                found_BC = class_probabilities(classifier, encoded, pad, several=several)
                for example, ids, row in zip(block, encoded, found_BC, strict=True):
                    ranked = sorted(
                        zip(labels, row.tolist(), strict=True), key=lambda pair: -pair[1]
                    )
                    prediction = Prediction(
                        example.text, example.text_pair, ranked[0][0], dict(ranked)
                    )
                    yield prediction, ids.cut

        answers = get_world().map_sharded(
            examples, classified, block=4 * BATCH, kind=tuple[Prediction, bool]
        )
        for prediction, was_cut in answers:
            count, cut = count + 1, cut + was_cut
            yield self.answer(prediction)
        if cut and reporter is not None:
            reporter.note(cut_in_use(cut, count, folder))


@torch.inference_mode()
def class_probabilities(
    model: Classifier | PooledClassifier,
    examples: Sequence[EncodedExample],
    pad: int,
    *,
    several: bool = False,
) -> NDArray[np.float64]:
    """Probabilities (B, C) in the order given: a softmax over the classes, or where a text may have
    several labels, of each."""
    share = sigmoid if several else softmax
    model.eval()
    device = next(model.parameters()).device
    order = np.argsort([len(example.ids) for example in examples], kind="stable")
    result = np.empty((len(examples), model.output.out_features))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate([examples[row] for row in rows], pad).to(device)
        result[rows] = share(model(*batch.inputs)).cpu().numpy()
    return result


def in_blocks(examples: Iterable[Example], size: int = TEXTS_AHEAD) -> Iterator[list[Example]]:
    """Consecutive groups of a stream; the first small, so that the first answer comes soon."""
    iterator = iter(examples)
    take = BATCH
    while block := list(islice(iterator, take)):
        yield block
        take = size
