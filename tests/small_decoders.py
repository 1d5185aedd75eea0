"""What tests of writing share: a vocabulary of 18, and models whose random weights use it all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, Completion, GenerationConfig, generate
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.characters import learn_characters

TOKENIZER = learn_characters(["abcdefghijk "])
V = TOKENIZER.vocab_size
ENDS = sorted({TOKENIZER.special["eos"], TOKENIZER.special["turn_end"]})
PROMPTS = [
    TOKENIZER.encode(text) for text in ("a", "bad cab", "jig", "hide a big bee", "kk", "e f")
]


def make_model(
    arch: str = "gpt",
    *,
    seed: int = 0,
    vocab_size: int = V,
    max_positions: int = 64,
    spread: float = 0.25,
    **shape: Any,
) -> CausalLM:
    """A model that is sure of some tokens and not of others, and whose texts end.

    spread: of what is added to every weight; fresh norms and zeros would hide mistakes.
    """
    architecture = ARCHITECTURES[arch]
    fields = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "tie_embeddings": False, **shape}
    config = architecture.config(vocab_size=vocab_size, max_positions=max_positions, **fields)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = CausalLM(architecture.build(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def write(
    model: CausalLM | DecoderRunner,
    prompts: Iterable[Sequence[int]] = PROMPTS,
    *,
    draft: CausalLM | DecoderRunner | None = None,
    batch_size: int = 8,
    tokenizer: Tokenizer = TOKENIZER,
    **fields: Any,
) -> list[list[Completion]]:
    """What is written behind each prompt."""
    rules = CompiledSamplingParams(GenerationConfig(**fields), tokenizer)
    reader = None if draft is None else _decoder(draft)
    return list(generate(_decoder(model), prompts, rules, draft=reader, batch_size=batch_size))


def _decoder(model: CausalLM | DecoderRunner) -> DecoderRunner:
    return CausalDecoder(model) if isinstance(model, CausalLM) else model


@torch.no_grad()
def reread(model: CausalLM, ids: Sequence[int]) -> Tensor:
    """The logits (T, V) after each token of a text, read at once and without a cache."""
    return model.logits(model.body(torch.tensor([list(ids)])))[0]


class Letters:
    """A constraint by which only these letters may come, one after another."""

    def __init__(self, text: str) -> None:
        self.letters = [TOKENIZER.encode(letter)[0] for letter in text]

    def barred(self) -> Tensor:
        """True for each token that may not come."""
        allowed = torch.ones(V, dtype=torch.bool)
        allowed[self.letters[0]] = False
        return allowed

    def accept(self, token: int) -> bool:
        """Whether the text ends with this token."""
        assert token == self.letters.pop(0)
        return not self.letters
