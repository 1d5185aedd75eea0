"""What is asked of a compression."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmctl.config import ColumnName, Config

MethodName = Literal[
    "round", "gptq", "awq", "magnitude", "wanda", "channels", "heads", "layers", "distil"
]  # fmt: skip


class CompressConfig(Config):
    """How a model is made smaller."""

    method: MethodName
    """What is done to the weights."""
    bits: Literal[4, 8] = 4
    """Bits of a weight, where it is quantised."""
    group: Literal[32, 64, 128] = 32
    """Inputs of a matrix that share a scale, where it is quantised."""
    symmetric: bool = False
    """Whether the numbers lie evenly around 0, without a zero point of each group."""
    embeddings: bool = False
    """Whether the table of token embeddings is quantised, too; an output layer that shares it is
    with it."""
    head: bool = False
    """Whether what stands on the layers is quantised, too: a language model's output layer, and the
    embeddings that it shares, or a classifier's layers."""
    sparsity: float = Field(0.5, gt=0.0, lt=1.0)
    """Share of the weights that are set to zero, by magnitude and wanda."""
    pattern: Literal["2:4"] | None = None
    """Two of each four neighbouring inputs become zero, in the place of ``sparsity``."""
    keep: float = Field(0.5, gt=0.0, lt=1.0)
    """Share of the channels, heads or layers that is kept."""
    importance: Literal["activations", "gradient"] = "activations"
    """By what channels, heads or layers are kept: how large what they add is, or by the gradient
    how the loss that the model was trained with would change without them."""
    student: str | None = None
    """With distil: the run or folder of a model that learned from it."""
    windows: int = Field(64, ge=1)
    """Rows of text that the model is calibrated on."""
    window: int = Field(512, ge=8)
    """Tokens of such a row; no more than the model takes."""
    text_column: ColumnName | None = None
    """The text's column, where a table calibrates or measures."""
    label_column: ColumnName | None = None
    """The label's column, where a table measures."""
    max_tokens: int = Field(10_000, ge=1)
    """Tokens that a language model is measured on."""
    max_loss: float | None = Field(None, ge=0.0)
    """What quality may fall by at most: bits per byte, or a share of texts, as the table shows."""
    seed: int = Field(0, ge=0)
    """Seed of the intervals' resamples."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        kinds = type(self).model_fields
        asked = {name for name in kinds if getattr(self, name) != kinds[name].get_default()}
        owners = {
            "bits": ("round", "gptq", "awq"),
            "group": ("round", "gptq", "awq"),
            "symmetric": ("round", "gptq", "awq"),
            "embeddings": ("round", "gptq", "awq"),
            "head": ("round", "gptq", "awq"),
            "sparsity": ("magnitude", "wanda"),
            "pattern": ("magnitude", "wanda"),
            "keep": ("channels", "heads", "layers"),
            "importance": ("channels", "heads", "layers"),
            "student": ("distil",),
        }
        for name, methods in owners.items():
            if name in asked and self.method not in methods:
                several = "s" if len(methods) > 1 else ""
                raise ValueError(
                    f"{name} goes with the method{several} {', '.join(methods)}, not with "
                    f"{self.method}"
                )
        if self.method == "distil" and self.student is None:
            raise ValueError(
                "--student is missing: name the model that learned from it; llmctl finetune --task "
                "distil makes one"
            )
        if {"sparsity", "pattern"} <= asked:
            raise ValueError("pattern 2:4 says what share goes; leave out sparsity")
        return self
