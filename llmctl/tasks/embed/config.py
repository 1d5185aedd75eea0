"""What decides the finetuning of an embedder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llmctl.config import ColumnName
from llmctl.data.text.decoding import ReadConfig
from llmctl.models.heads.embed import Pooling
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.config import TrainingConfig

FEWEST_TOKENS = 3
"""Tokens of a text at the least, special ones included."""

Loss = Literal["infonce", "triplet", "cosent", "mse"]


def _widths(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_widths)]
"""Whole numbers: ``256,64``, or a list of them in a recipe."""


class EmbedData(ReadConfig):
    """Which columns hold what, and what is held out."""

    text_column: ColumnName | None = None
    """The text's column (anchor, query, sentence1). Unset: an obvious one, named on stderr."""
    text_pair_column: ColumnName | None = None
    """The column of the text that belongs to it (positive, passage, sentence2); its field may be a
    list of several. Unset: an obvious one."""
    negative_column: ColumnName | None = None
    """Columns of texts that don't belong to it, though they look so; several are written a,b, and a
    field may be a list. Unset: those called negative, neg, hard_neg, negative_1 and so on."""
    score_column: ColumnName | None = None
    """The column of a number that says how alike the two texts are. Unset: one called score,
    similarity or the like, or a label of numbers."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the examples, chosen by the first text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of a text, special ones included; longer ones are cut. 0: as pretrained."""

    @model_validator(mode="after")
    def _not_too_short(self) -> Self:
        if 0 < self.max_length < FEWEST_TOKENS:
            raise ValueError(
                f"max_length: use {FEWEST_TOKENS} or more, or 0 for as many as pretrained"
            )
        return self


class EmbedConfig(FinetuneConfig):
    """Everything that decides the finetuning of an embedder."""

    task: Literal["embed"] = "embed"
    """What is learned."""
    pooling: Pooling | Literal["auto"] = "auto"
    """What a text's vector is: the mean or max of its tokens' hidden states, that of the first
    (cls) or of the last. auto: as the model has it, else the mean."""
    loss: Loss | Literal["auto"] = "auto"
    """What is asked of the vectors. infonce: each text is nearest to its own among all others of
    the batch (multiple negatives ranking); triplet: nearer to its own than to its negative, by a
    margin; cosent: pairs are in the order of their scores; mse: cosines are the scores. auto:
    cosent where there are scores, else infonce."""
    temperature: float = Field(0.05, gt=0)
    """What cosines are divided by in infonce and cosent, τ."""
    margin: float = Field(0.3, gt=0)
    """With the loss triplet: by how much cosines are to differ."""
    symmetric: bool = False
    """With infonce: the positives are told by their texts too, not only texts by their
    positives."""
    mask_false_negatives: bool = True
    """With infonce: what is the same text as the anchor or as its positive is none of its
    negatives, nor is another positive of the same anchor."""
    matryoshka: Widths = ()
    """Widths, beside the whole, at which the first coordinates alone are to do, too: the loss is
    the mean over all (Kusupati et al. 2022)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    data: EmbedData = EmbedData()
    training: TrainingConfig = TrainingConfig(
        epochs=3, batch_size=64, warmup=0.1, schedule="linear"
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.training.batch_size < 2 and self.loss in ("auto", "infonce", "cosent"):
            raise ValueError(
                f"training.batch_size 1: the loss {self.loss} compares the examples of a batch "
                "with one another; use 2 or more, better 64"
            )
        return self
