"""Predict with a masked language model: what the masks of a text may stand for.

M masks, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmctl.data.tables.labelled import Columns, Example, column_names, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.prediction import Predictor, softmax
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import get_world

BLOCK = 64
"""Texts that a process answers in turn, where several divide them."""


@dataclass(frozen=True)
class MaskCandidate:
    """A token that may stand at a mask."""

    token: str
    probability: float


@dataclass(frozen=True)
class Filling:
    """The candidates at each mask of a text."""

    text: str
    masks: list[list[MaskCandidate]]

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {
            "text": self.text,
            "masks": [
                [{"token": c.token, "probability": c.probability} for c in mask]
                for mask in self.masks
            ],
        }

    def lines(self, top: int) -> Iterator[str]:
        """The text, and a line for each mask."""
        yield visible(self.text)
        for number, mask in enumerate(self.masks, 1):
            words = "  ".join(f"{visible(c.token)} {c.probability:.1%}" for c in mask[:top])
            prefix = f"  {number}: " if len(self.masks) > 1 else "  "
            yield f"{prefix}{words}"


class MaskFiller(Protocol):
    """A network that finds what masks stand for."""

    def mask_logits(self, ids_T: Tensor, places_M: Tensor) -> Tensor:
        """Logits (M, V) at masks of a text."""
        ...


class MaskPredictor(Predictor):
    """A masked language model that is ready to fill masks."""

    kinds = ("masked_lm",)

    def network(self) -> Any:
        """The network that finds what masks stand for, a ``MaskFiller``."""
        return self.folder.masked_lm()

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """Those that are given, or an obvious one."""
        columns = resolve_columns(
            path,
            text_column=requested.text_column,
            text_pair_column=requested.text_pair_column,
            need_label=False,
            reading=reading,
        )
        if column_names(path, columns.text, reading):
            reporter.note(f"{path.name}: {columns.describe()}")
        return columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Filling]:
        """The likeliest words at each mask of each text."""
        folder = self.folder
        model = self.network().to(self.device)

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

        yield from get_world().map_sharded(examples, filled, block=BLOCK, kind=Filling)


@torch.inference_mode()
def fill_masks(
    model: MaskFiller, tokenizer: Tokenizer, example: Example, *, max_length: int, top: int
) -> list[list[MaskCandidate]]:
    """For each mask of a text, the likeliest tokens with their probabilities.

    Raises InputError, naming where the text is from, if it has no mask or is too long.
    """
    if "mask" not in tokenizer.special:
        raise InputError(
            "the tokenizer has no token for a mask, so there is none to fill; take a model with one"
        )
    mask = tokenizer.special["mask"]
    layout = tokenizer.layout
    text = tokenizer.encode(example.text, allow_special=True)
    ids = [*layout.before, *text, *layout.after]
    places = [place for place, number in enumerate(ids) if number == mask]
    if not places:
        raise InputError(
            f"{example.source} has no {tokenizer.id_to_token(mask)}; write one where a word is to "
            "be found"
        )
    if len(ids) > max_length:
        raise InputError(
            f"{example.source} has {len(ids)} tokens and the model takes {max_length}; shorten it"
        )
    assert isinstance(model, nn.Module)
    model.eval()
    device = next(model.parameters()).device
    logits_MV = model.mask_logits(*(torch.tensor(part, device=device) for part in (ids, places)))
    probabilities_MV = softmax(logits_MV)
    # A special token is never the word that is missing, nor is a row that no piece has.
    probabilities_MV = probabilities_MV[:, : tokenizer.vocab_size]
    probabilities_MV[:, [*tokenizer.special_ids, *tokenizer.holes]] = 0.0
    best = torch.topk(probabilities_MV, min(top, probabilities_MV.shape[1]))
    return [
        [
            MaskCandidate(tokenizer.id_to_token(int(number)), float(probability))
            for number, probability in zip(numbers, values, strict=True)
        ]
        for numbers, values in zip(best.indices, best.values, strict=True)
    ]
