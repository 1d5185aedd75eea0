"""Predict with a regression: the number of a text, or of a pair.

B texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.tables.encoded import EncodedExample, encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.errors import LOGITS_NOT_FINITE, InputError
from llmctl.models.heads.regress import Regressor
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.classify.batches import collate, cut_in_use
from llmctl.tasks.classify.predict import BATCH, SHOWN, ClassPredictor, in_blocks
from llmctl.training.distributed.processes import get_world


@dataclass(frozen=True)
class Number:
    """The number of a text."""

    text: str
    text_pair: str | None
    value: float

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {"text": self.text, **pair, "value": self.value}

    def lines(self, top: int) -> Iterator[str]:
        """The number and the text's beginning."""
        shown = self.text if len(self.text) <= SHOWN else f"{self.text[: SHOWN - 1]}…"
        yield f"{self.value:.4g}\t{visible(' '.join(shown.split()))}"


class NumberPredictor(ClassPredictor):
    """A regression that is ready for texts."""

    kinds = ("regress",)

    def answers(  # type: ignore[override]
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Number]:
        """The number of each text."""
        folder, count, cut = self.folder, 0, 0
        model, pad = folder.network().to(self.device), pad_token(folder.tokenizer)

        def answered(part: Iterable[Example], first: int) -> Iterator[tuple[Number, bool]]:
            for block in in_blocks(part):
                encoded = encode_examples(
                    folder.tokenizer, block, folder.max_length, pad=folder.end_padding
                )
                values_B = numbers_of(model, encoded, pad).tolist()
                for example, ids, value in zip(block, encoded, values_B, strict=True):
                    yield Number(example.text, example.text_pair, value), ids.cut

        found = get_world().map_sharded(
            examples, answered, block=4 * BATCH, kind=tuple[Number, bool]
        )
        for answer, was_cut in found:
            count, cut = count + 1, cut + was_cut
            yield answer
        if cut and reporter is not None:
            reporter.note(cut_in_use(cut, count, folder))


@torch.inference_mode()
def numbers_of(
    model: Regressor, examples: Sequence[EncodedExample], pad: int
) -> NDArray[np.float64]:
    """The numbers (B,) in the order given. Raises InputError if one is not finite."""
    model.eval()
    device = next(model.parameters()).device
    order = np.argsort([len(example.ids) for example in examples], kind="stable")
    result = np.empty(len(examples))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate([examples[row] for row in rows], pad).to(device)
        result[rows] = model(*batch.inputs)[:, 0].double().cpu().numpy()
    if not np.isfinite(result).all():
        raise InputError(LOGITS_NOT_FINITE)
    return result
