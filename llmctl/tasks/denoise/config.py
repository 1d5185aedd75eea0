"""What is done to texts that are to be restored."""

from __future__ import annotations

from typing import Self

from pydantic import field_validator, model_validator

from llmctl.config import Config
from llmctl.errors import did_you_mean

HIDING = {"spans": 0.15, "infilling": 0.3, "masking": 0.3, "deletion": 0.3}
"""Noises that hide tokens, and the share of them where none is given: T5's of its spans, BART's of
its infilling."""
MOVING = ("permutation", "rotation")
"""Noises that move tokens, which go with one of BART's that hide some."""
ALONE = ("spans", "prefix")
"""Noises whose target is what is hidden, not the whole text: they go with no other."""
WITH_SPANS = ("spans", "infilling")
MASKS = ("infilling", "masking")
"""Noises that put masks in."""
NOISES = (*HIDING, *MOVING, "prefix")
MEAN_SPAN = 3.0
"""Tokens of a span on average, in T5 and in BART."""


class DenoiseConfig(Config):
    """What is done to texts that are to be restored."""

    noise: str = "spans"
    """What is done to a text: spans (T5's: the target is the hidden spans), infilling, masking or
    deletion (BART's: it is the whole text), permutation (of sentences), rotation, prefix (the
    beginning is the source, the rest the target). Several of BART's are written
    infilling+permutation, its own mixture, which is --arch bart's default."""
    noise_share: float | None = None
    """Share of the tokens that is hidden. Unset: 0.15 of spans, 0.3 of infilling, masking and
    deletion, as published."""
    mean_span: float | None = None
    """Tokens of a span of spans or infilling on average. Unset: 3, as published."""

    @field_validator("noise")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [name.strip() for name in value.split("+")]
        for name in names:
            if name not in NOISES:
                raise ValueError(
                    f"{name!r} is no noise{did_you_mean(name, NOISES)}; choose of "
                    f"{', '.join(NOISES)}"
                )
        alone = [name for name in names if name in ALONE]
        if alone and len(names) > 1:
            raise ValueError(f"{alone[0]} goes with no other noise; leave one of them out")
        hiding = [name for name in names if name in HIDING]
        if len(hiding) > 1 or len(set(names)) < len(names):
            raise ValueError(
                f"{value} hides tokens twice; take one of {', '.join(HIDING)}, and with it "
                f"{' or '.join(MOVING)} or both"
            )
        return "+".join(sorted(names, key=NOISES.index))

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        if self.noise_share is not None:
            if self.hiding is None:
                raise ValueError(f"noise_share is not for {self.noise}, which hides no share")
            if not 0 < self.noise_share < 1:
                what = "nothing to restore" if self.noise_share <= 0 else "nothing to go by"
                raise ValueError(
                    f"noise_share {self.noise_share:g} would leave {what}; give one between 0 and "
                    "1, such as 0.15"
                )
        if self.mean_span is not None:
            if self.hiding not in WITH_SPANS:
                raise ValueError(
                    f"mean_span is for {' and '.join(WITH_SPANS)}, and this is {self.noise}"
                )
            if self.mean_span < 1:
                raise ValueError(f"mean_span {self.mean_span:g} is less than 1; a span has tokens")
        if self.hiding == "spans" and self.share / self.span > 1 - self.share:
            raise ValueError(
                f"noise_share {self.share:g} with mean_span {self.span:g}: there are more spans "
                "than tokens between them; lower the share or make spans longer"
            )
        return self

    @property
    def names(self) -> list[str]:
        """The noises."""
        return self.noise.split("+")

    @property
    def hiding(self) -> str | None:
        """The noise that hides tokens, if one does."""
        return next((name for name in self.names if name in HIDING), None)

    @property
    def share(self) -> float:
        """Share of the tokens that is hidden; 0 where none is."""
        return self.noise_share or (HIDING[self.hiding] if self.hiding else 0.0)

    @property
    def span(self) -> float:
        """Tokens of a span on average."""
        return self.mean_span or MEAN_SPAN
