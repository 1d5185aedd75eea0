"""What is looked into, and what is found there.

B rows, L layers, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from llmctl.attribution.explained import ExplainedText
from llmctl.models.spec import Backbone
from llmctl.reporting.heat_maps import HeatMap, WeightMaps
from llmctl.reporting.report import ReportPart
from llmctl.tokenizers import Tokenizer


@dataclass(frozen=True)
class Subject:
    """A network, and the texts that it reads."""

    name: str
    network: nn.Module
    body: Backbone
    tokenizer: Tokenizer
    texts: Sequence[ExplainedText] = ()
    data: Any = None
    """What a way looks at beside texts: of the class that its module has for it."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Is told what is done, and how much of it."""

    def tokens(self, text: ExplainedText) -> list[str]:
        """A text's tokens as the tokenizer writes them."""
        return [self.tokenizer.id_to_token(token) for token in text.ids_T.tolist()]


@dataclass(frozen=True)
class Insight:
    """What was found, in JSON values and as it is shown."""

    record: dict[str, Any]
    parts: Sequence[ReportPart]
    maps: Sequence[HeatMap | WeightMaps] = ()
    """What a page shows in colours besides."""


class Way(ABC):
    """A way of looking inside."""

    name: ClassVar[str]
    described: ClassVar[str]
    """In a few words, with its source."""
    num_texts: ClassVar[int] = 1
    """How many texts it looks at."""
    takes: ClassVar[Literal["none", "texts", "labels", "documents"]] = "none"
    """What it takes ``--data`` for: nothing, texts in the place of the one, texts with a class or
    words with tags, or documents beside the text."""
    of_answer: ClassVar[bool] = True
    """Whether it looks at a number that the model answers with; if not, any network will do, and
    of one of two stacks the encoder is looked into."""

    @abstractmethod
    def look(self, subject: Subject) -> Insight:
        """What is to be seen. Raises InputError for a network that has nothing of the kind."""


def head_inputs(layer: nn.Module) -> nn.Linear:
    """The projection behind a layer's heads: its input is all heads' outputs, side by side."""
    found = layer.get_submodule("attention").get_submodule("output")
    assert isinstance(found, nn.Linear)
    return found
