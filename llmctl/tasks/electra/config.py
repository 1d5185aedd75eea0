"""What is hidden from the generator, how large it is, and how the two losses weigh."""

from __future__ import annotations

from pydantic import Field

from llmctl.config import Config
from llmctl.tasks.masked_lm.config import PUBLISHED_MASK_RATE, MaskedLMConfig


class ElectraObjective(Config):
    """What is hidden from the generator, how large it is, and how the two losses weigh."""

    mask_rate: float = Field(PUBLISHED_MASK_RATE, gt=0.0, lt=1.0)
    """Share of the tokens that are hidden, in whose place the generator puts others. The paper's
    large models have 0.25."""
    mask_share: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the hidden tokens that the generator sees as [MASK]; the rest it sees as they are.
    All in the paper, 0.85 in its authors' code."""
    whole_word: bool = False
    """Hide words, not pieces."""
    generator_width: float = Field(0.25, gt=0.0, le=1.0)
    """Width of the generator as a share of the discriminator's; the paper's best are a quarter to
    a half."""
    generator_layers: int = Field(0, ge=0)
    """Blocks of the generator. 0: as many as the discriminator has."""
    detection_weight: float = Field(50.0, gt=0.0)
    """Weight of the discriminator's loss beside the generator's, λ."""

    @property
    def masking(self) -> MaskedLMConfig:
        """How tokens are hidden."""
        return MaskedLMConfig(
            mask_rate=self.mask_rate,
            mask_share=self.mask_share,
            random_share=0.0,
            whole_word=self.whole_word,
            next_sentence=False,
        )
