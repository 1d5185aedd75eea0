"""What happens inside a network while it reads a text: one way of looking a file, entered here."""

from __future__ import annotations

from collections.abc import Mapping

from llmctl.attribution.inside.attention import Attention
from llmctl.attribution.inside.base import Way
from llmctl.attribution.inside.heads import Importance
from llmctl.attribution.inside.induction import Induction
from llmctl.attribution.inside.lens import LogitLens
from llmctl.attribution.inside.nearest import Nearest
from llmctl.attribution.inside.patching import Patching
from llmctl.attribution.inside.probe import Probe
from llmctl.attribution.inside.tuned_lens import TunedLens

VIEWS: Mapping[str, type[Way]] = {
    way.name: way
    for way in (
        Attention, LogitLens, TunedLens, Importance, Patching, Induction, Probe, Nearest,
    )
}  # fmt: skip
"""By the name that ``--inside`` takes."""
