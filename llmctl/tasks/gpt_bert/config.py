"""How much is read from left to right, and what is hidden in the rest."""

from __future__ import annotations

from pydantic import Field

from llmctl.config import Config
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.tasks.pretraining import DataConfig


class GptBertObjective(Config):
    """How much is read from left to right, and what is hidden in the rest."""

    causal_share: float = Field(1 / 16, ge=0.0, le=1.0)
    """Share of the rows that are read from left to right; the others are read both ways, with
    hidden tokens. The paper's is one to fifteen, as here."""
    mask_rate: float = Field(0.3, gt=0.0, lt=1.0)
    """Share of the tokens of the other rows to predict. In the paper it falls from 0.3 to 0.15."""
    mask_share: float = Field(0.8, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes the mask."""
    random_share: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes a random token; the rest stays."""
    whole_word: bool = False
    """Choose words, not pieces."""
    z_loss: float = Field(0.0, ge=0.0)
    """Weight of the squared logarithm of the softmax's normaliser, which keeps logits from
    drifting in long runs. In the training loss only."""

    @property
    def masking(self) -> MaskedLMConfig:
        """How tokens are hidden."""
        return MaskedLMConfig(
            mask_rate=self.mask_rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            whole_word=self.whole_word,
            next_sentence=False,
        )


class GptBertData(DataConfig):
    """How documents become rows, end to end and without padding."""

    sequence_length: int = Field(256, ge=8)
    """Tokens in a row."""
