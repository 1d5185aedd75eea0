"""The output layer of a network that reads both ways: what follows a token, and what a mask behind
it stands for (Charpentier and Samuel 2024, §2).

Reading from left to right it is a language model. Reading all of a text, it finds a masked token at
the place before the mask, where that token is the next: one output layer does both.

B batch, T tokens, D width, M masks, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llmctl.models.heads.causal_lm import CausalLM, CausalLMHead


class MaskedNextTokenLM(CausalLM):
    """A decoder with its output layer that has learned to read both ways."""

    def read(self, input_ids_BT: Tensor) -> Tensor:
        """Hidden states (B, T, D) of tokens that each see all others."""
        hidden_BTD: Tensor = self.body(input_ids_BT, bidirectional=True)
        return hidden_BTD

    def mask_logits(self, ids_T: Tensor, places_M: Tensor) -> Tensor:
        """Logits (M, V) of what stands at masks of a text, none of which is its first token."""
        return self.logits(self.read(ids_T[None])[0].index_select(0, places_M - 1))


class GptBertHead(CausalLMHead):
    """That of a network which reads both ways."""

    kind, described = "gpt_bert", "a language model that fills masks too"
    network: ClassVar[type[CausalLM]] = MaskedNextTokenLM
    endings: ClassVar[tuple[str, ...]] = ()
