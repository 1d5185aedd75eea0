"""What is looked into, and what is found there.

B rows, L layers, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from llmctl.attribution.explained import ExplainedText
from llmctl.errors import InputError
from llmctl.models.spec import Backbone
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

    def __post_init__(self) -> None:
        """Raises InputError for a network of two stacks."""
        if self.body.kind == "encoder-decoder":
            raise InputError(
                f"{self.name} has an encoder and a decoder, and only networks of one stack are "
                "looked into; give an encoder or a language model"
            )

    def tokens(self, text: ExplainedText) -> list[str]:
        """A text's tokens as the tokenizer writes them."""
        return [self.tokenizer.id_to_token(token) for token in text.ids_T.tolist()]


@dataclass(frozen=True)
class Insight:
    """What was found, in JSON values and as it is shown."""

    record: dict[str, Any]
    parts: Sequence[ReportPart]


class Way(ABC):
    """A way of looking inside."""

    name: ClassVar[str]
    described: ClassVar[str]
    """In a few words, with its source."""
    num_texts: ClassVar[int] = 1
    """How many texts it looks at."""

    @abstractmethod
    def look(self, subject: Subject) -> Insight:
        """What is to be seen. Raises InputError for a network that has nothing of the kind."""


@contextmanager
def recorded_states(body: Backbone) -> Iterator[list[Tensor]]:
    """Keep the residual stream (B, T, D) of the next pass: what goes into the lowest layer, then
    what comes out of each, L + 1 of them."""
    states: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(inputs[0].detach())

    def behind(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        states.append(output.detach())

    layers = body.layers()
    handles = [layers[0].register_forward_pre_hook(before)]
    handles += [layer.register_forward_hook(behind) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def head_inputs(layer: nn.Module) -> nn.Linear:
    """The projection behind a layer's heads: its input is all heads' outputs, side by side."""
    found = layer.get_submodule("attention").get_submodule("output")
    assert isinstance(found, nn.Linear)
    return found
