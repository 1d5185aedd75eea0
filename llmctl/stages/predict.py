"""Predict: texts to classes, or to the words behind their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.tables.labelled import Example, column_names, read_examples, resolve_columns
from llmctl.errors import InputError
from llmctl.formats.columns import Finetuned, check_single, labelled_columns
from llmctl.formats.huggingface.model_folder import ModelFolder
from llmctl.formats.open import LabelledColumns, cut_in_use, open_any_model
from llmctl.inference.prediction import (
    BATCH,
    Candidate,
    class_probabilities,
    fill_masks,
    in_blocks,
)
from llmctl.objectives.classify import encode_examples, pad_token
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.training_data import seen_in_training
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace


@dataclass(frozen=True)
class Prediction:
    """The classes of a text by falling probability."""

    text: str
    text_pair: str | None
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Filling:
    """The candidates at each mask of a text."""

    text: str
    masks: list[list[Candidate]]


class Predictor:
    """A model that is ready to classify texts, or to fill their masks."""

    def __init__(self, workspace: Workspace, start: str, *, device: str = "auto") -> None:
        """Raises InputError if there is no such model, or it does neither."""
        self._device = choose_device(device, "--device")
        folder, run, _ = open_any_model(workspace, start)
        if not isinstance(folder, ModelFolder):
            raise InputError(f"{start} is an n-gram model; give a classifier or a pretrained BERT")
        self._folder, self._model = folder, Finetuned(start, folder, run)

    def alone(self, texts: Sequence[str]) -> Iterator[Example]:
        """Single texts. Raises UsageError for a model of pairs."""
        if self._folder.labels is not None:
            check_single(self._model)
        return iter([Example(text, None, None, f"text {n}") for n, text in enumerate(texts, 1)])

    def of_file(
        self, path: Path, given: LabelledColumns, reporter: Reporter | None = None
    ) -> Iterator[Example]:
        """The texts of a file, or of standard input, ``-``.

        Those of a classifier are from the columns that it was trained on, unless others are given.
        Raises InputError or UsageError where the file has none that would do.
        """
        note = (reporter or Reporter()).note
        # A header that had to be named once is there, or not, in files of the kind.
        header = self._model.read_config.header if given.header == "auto" else given.header
        reading = given.replace(header=header).read_options(note)
        if self._folder.labels is None:
            columns = resolve_columns(
                path,
                text_column=given.text_column,
                text_pair_column=given.text_pair_column,
                need_label=False,
                reading=reading,
            )
            if column_names(path, columns.text, reading):
                note(f"{path.name}: {columns.describe()}")
        else:
            columns = labelled_columns(
                self._model, path, given, need_label=False, reading=reading, note=note
            )
            for seen in [] if str(path) == "-" else seen_in_training(self._model, path):
                note(seen)
        return read_examples(path, columns, reading=reading)

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Prediction | Filling]:
        """Answers in the order of the texts, as they are computed; several processes divide the
        texts. Raises InputError if the model is neither."""
        if self._folder.labels is None:
            return self._fillings(examples, top)
        return self._classes(examples, self._folder.labels, reporter or Reporter())

    def _fillings(self, examples: Iterable[Example], top: int) -> Iterator[Filling]:
        folder = self._folder
        model = folder.masked_lm().to(self._device)

        def filled(part: Iterable[Example], first: int) -> Iterator[Filling]:
            for example in part:
                # A blank line of a file is answered too, so that answers and lines go together.
                blank = not example.text.strip()
                masks = (
                    []
                    if blank
                    else fill_masks(
                        model, folder.tokenizer, example, max_length=folder.max_length, top=top
                    )
                )
                yield Filling(example.text, masks)

        yield from current().divided(examples, filled, block=BATCH, kind=Filling)

    def _classes(
        self, examples: Iterable[Example], labels: list[str], reporter: Reporter
    ) -> Iterator[Prediction]:
        folder = self._folder
        classifier = folder.classifier().to(self._device)
        count, cut = 0, 0

        def classified(part: Iterable[Example], first: int) -> Iterator[tuple[Prediction, bool]]:
            for block in in_blocks(part):
                encoded = encode_examples(
                    folder.tokenizer, block, folder.max_length, pad=folder.end_padding
                )
                pad = pad_token(folder.tokenizer)
                probabilities_BC = class_probabilities(classifier, encoded, pad)
                for example, ids, row in zip(block, encoded, probabilities_BC, strict=True):
                    ranked = sorted(
                        zip(labels, row.tolist(), strict=True), key=lambda pair: -pair[1]
                    )
                    prediction = Prediction(
                        example.text, example.text_pair, ranked[0][0], dict(ranked)
                    )
                    yield prediction, ids.cut

        answers = current().divided(
            examples, classified, block=4 * BATCH, kind=tuple[Prediction, bool]
        )
        for prediction, was_cut in answers:
            count, cut = count + 1, cut + was_cut
            yield prediction
        if cut:
            reporter.note(cut_in_use(cut, count, folder))


def predict(
    workspace: Workspace,
    start: str,
    examples: Iterable[Example],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[Prediction | Filling]:
    """What a model answers to some texts, in their order.

    A classifier gives classes; a pretrained model fills masks. Raises InputError if the model is
    neither.
    """
    return Predictor(workspace, start, device=device).answers(examples, top=top)
