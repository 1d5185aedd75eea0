"""The fields of a decoder whose rotary angles may be scaled for longer texts."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from llmctl.models.decoder import TwoWayConfig
from llmctl.models.layers.rope_scaling import RopeScaling, RopeType


class RopeConfig(TwoWayConfig):
    """The shape of a decoder with rotary positions."""

    rope_theta: float = Field(10000.0, gt=0.0)
    """Base of the rotary angles; more for longer contexts."""
    rope_type: RopeType = "default"
    """How rotary angles are scaled for texts longer than pretraining's: linear, llama3 or yarn."""
    rope_factor: float = Field(1.0, ge=1.0)
    """How many times longer the texts are, with a rope_type."""
    rope_low_freq_factor: float = Field(1.0, gt=0.0)
    """With llama3: what turns less often in a text of pretraining's is slowed by the factor."""
    rope_high_freq_factor: float = Field(4.0, gt=0.0)
    """With llama3: what turns more often in a text of pretraining's is not slowed."""
    rope_original_positions: int = Field(0, ge=0)
    """Tokens of pretraining's texts, with llama3 and yarn."""

    @model_validator(mode="after")
    def _check_rope(self) -> Self:
        if self.rope_type in ("llama3", "yarn") and not self.rope_original_positions:
            raise ValueError(
                f"model.rope_type {self.rope_type} needs model.rope_original_positions, the tokens "
                "of pretraining's texts"
            )
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise ValueError(
                f"model.rope_high_freq_factor {self.rope_high_freq_factor} is not above "
                f"model.rope_low_freq_factor {self.rope_low_freq_factor}"
            )
        return self

    def is_turned(self, layer: int) -> bool:
        """Whether a layer, counted from 0, turns its queries and keys by their positions."""
        return True

    def rope_scaling(self) -> RopeScaling | None:
        """How rotary angles are scaled; None: they are plain."""
        if self.rope_type == "default":
            return None
        return RopeScaling(
            self.rope_type,
            self.rope_factor,
            self.rope_low_freq_factor,
            self.rope_high_freq_factor,
            self.rope_original_positions,
        )

    def rope_fields(self) -> dict[str, Any]:
        """What config.json says of rotary angles: in today's dialect, and in the older one."""
        said: dict[str, Any] = {"rope_type": self.rope_type}
        if self.rope_type != "default":
            said["factor"] = self.rope_factor
        if self.rope_type == "llama3":
            said["low_freq_factor"] = self.rope_low_freq_factor
            said["high_freq_factor"] = self.rope_high_freq_factor
        if self.rope_original_positions:
            said["original_max_position_embeddings"] = self.rope_original_positions
        older = {} if self.rope_type == "default" else {"rope_scaling": dict(said)}
        return {
            "rope_theta": self.rope_theta,  # where transformers looked before version 5
            "rope_parameters": {**said, "rope_theta": self.rope_theta},
            **older,
        }
