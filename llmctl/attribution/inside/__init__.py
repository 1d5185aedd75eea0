"""What happens inside a network while it reads a text: one way of looking a file, entered here."""

from __future__ import annotations

from collections.abc import Mapping

from llmctl.attribution.inside.attention import Attention
from llmctl.attribution.inside.base import Way
from llmctl.attribution.inside.heads import Importance
from llmctl.attribution.inside.induction import Induction
from llmctl.attribution.inside.lens import LogitLens
from llmctl.attribution.inside.patching import Patching

VIEWS: Mapping[str, type[Way]] = {
    way.name: way for way in (Attention, LogitLens, Induction, Importance, Patching)
}
"""By the name that ``--inside`` takes."""
