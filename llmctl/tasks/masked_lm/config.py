"""How tokens are hidden, and whether pairs are judged."""

from __future__ import annotations

from pydantic import Field

from llmctl.config import Config

PUBLISHED_MASK_RATE = 0.15


class MaskedLMConfig(Config):
    """How tokens are hidden, and whether pairs are judged."""

    mask_rate: float = Field(PUBLISHED_MASK_RATE, gt=0.0, lt=1.0)
    """Share of the tokens to predict."""
    mask_share: float = Field(0.8, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes [MASK]."""
    random_share: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes a random token; the rest stays."""
    whole_word: bool = False
    """Choose words, not pieces (Devlin's update of 2019)."""
    next_sentence: bool = True
    """Whether sentence pairs are made and judged: next sentence prediction."""
