"""Next-token prediction: its loss, and how documents become rows."""

from __future__ import annotations

from pydantic import Field

from llmctl.config import Config
from llmctl.tasks.pretraining import DataConfig


class CausalLMConfig(Config):
    """The loss."""

    z_loss: float = Field(0.0, ge=0.0)
    """Weight of the squared logarithm of the softmax's normaliser, which keeps logits from
    drifting in long runs; PaLM has 1e-4. In the training loss only."""
    fim: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the parts of documents in rows that are laid out for fill-in-the-middle; Bavarian
    et al. 2022 have 0.5 to 0.9, and find no loss for text from left to right up to there."""


class CausalData(DataConfig):
    """How documents become rows of next tokens."""

    sequence_length: int = Field(256, ge=8)
    """Tokens in a row."""
    document_mask: bool = False
    """Keep attention inside a document and start positions anew in each; otherwise a row's
    documents see those before them."""
