"""Predict: texts to classes, or to the words behind their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmctl.data.tables import Example
from llmctl.inference.prediction import (
    BATCH,
    Candidate,
    class_probabilities,
    fill_masks,
    in_blocks,
)
from llmctl.objectives.classify import encode_examples, pad_token
from llmctl.stages.inputs import open_model
from llmctl.training.distributed import current
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


def predict(
    workspace: Workspace,
    start: str,
    examples: Iterable[Example],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[Prediction | Filling]:
    """Answers in the order of the texts, as they are computed.

    A classifier gives classes; a pretrained model fills masks. Several processes divide the texts.
    Raises InputError if the model is neither.
    """
    where = choose_device(device, "--device")
    folder, _ = open_model(workspace, start)
    labels = folder.labels
    if labels is None:
        model = folder.masked_lm().to(where)

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

        yield from current().divided(examples, filled, block=BATCH)
        return
    classifier = folder.classifier().to(where)

    def classified(part: Iterable[Example], first: int) -> Iterator[Prediction]:
        for block in in_blocks(part):
            encoded = encode_examples(
                folder.tokenizer, block, folder.max_length, causal=classifier.causal
            )
            probabilities_BC = class_probabilities(classifier, encoded, pad_token(folder.tokenizer))
            for example, row in zip(block, probabilities_BC, strict=True):
                ranked = sorted(zip(labels, row.tolist(), strict=True), key=lambda pair: -pair[1])
                yield Prediction(example.text, example.text_pair, ranked[0][0], dict(ranked))

    yield from current().divided(examples, classified, block=4 * BATCH)
