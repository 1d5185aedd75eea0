"""Predict with a detector of replaced tokens: which tokens of a text look as if somebody had put
them there.

T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.models.heads.replaced_tokens import ReplacedTokenDetector, ReplacedTokensHead
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.masked_lm.predict import BLOCK, MaskPredictor
from llmctl.tasks.prediction import Predictor
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import get_world


@dataclass(frozen=True)
class JudgedToken:
    """A token of a text, and how likely it is that it was replaced."""

    token: str
    start: int
    """The character of the text at which it begins."""
    probability: float


@dataclass(frozen=True)
class Suspicion:
    """What a detector says of each token of a text."""

    text: str
    tokens: list[JudgedToken]

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {
            "text": self.text,
            "tokens": [
                {"token": t.token, "start": t.start, "replaced": t.probability} for t in self.tokens
            ],
        }

    def lines(self, top: int) -> Iterator[str]:
        """The text, and the tokens that look replaced most, in the order of the text; those that
        more likely than not are have a mark."""
        yield visible(self.text)
        likeliest = sorted(self.tokens, key=lambda t: -t.probability)[:top]
        for t in sorted(likeliest, key=lambda t: t.start):
            mark = "*" if t.probability > 0.5 else " "
            yield f"  {mark} {visible(t.token)} {t.probability:.1%}, at character {t.start}"


class ReplacementPredictor(Predictor):
    """A detector that is ready for texts."""

    kinds = ("electra",)
    columns = MaskPredictor.columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Suspicion]:
        """Every token of each text, a long one in pieces of the length that the model learned."""
        folder = self.folder
        model: ReplacedTokenDetector = folder.with_head(ReplacedTokensHead.kind).to(self.device)

        def judged(part: Iterable[Example], first: int) -> Iterator[Suspicion]:
            for example in part:
                if example.text_pair is not None:
                    raise InputError(
                        f"{example.source} is a pair of texts, and the model judges single ones; "
                        "leave out --text-pair-column"
                    )
                tokens = judge_tokens(model, folder.tokenizer, example.text, folder.max_length)
                yield Suspicion(example.text, tokens)

        yield from get_world().map_sharded(examples, judged, block=BLOCK, kind=Suspicion)


@torch.inference_mode()
def judge_tokens(
    model: ReplacedTokenDetector, tokenizer: Tokenizer, text: str, max_length: int
) -> list[JudgedToken]:
    """How likely each token of a text was replaced, pieces of ``max_length`` tokens one after
    another; none of a blank text."""
    model.eval()
    device = next(model.parameters()).device
    layout = tokenizer.layout
    ids, starts = (part.tolist() for part in tokenizer.encode_offsets(text))
    room = max_length - len(layout.before) - len(layout.after)
    found: list[float] = []
    for begin in range(0, len(ids), room):
        piece = ids[begin : begin + room]
        row_1T = torch.tensor([[*layout.before, *piece, *layout.after]], device=device)
        logits_T = model.logits(model.body(row_1T))[0]
        first = len(layout.before)
        found += torch.sigmoid(logits_T[first : first + len(piece)].double()).tolist()
    return [
        JudgedToken(tokenizer.id_to_token(number), start, probability)
        for number, start, probability in zip(ids, starts, found, strict=True)
    ]
