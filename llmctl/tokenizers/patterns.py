"""The patterns by which byte-level tokenizers cut text before they merge bytes.

No piece crosses a cut. GPT-2's keeps a number whole and every space of a run but the last apart;
GPT-4's takes digits three at a time, contractions in any case, a sign before a word and line ends
after punctuation, so code and dialogue need fewer pieces.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of cl100k_base: GPT-3.5, GPT-4, Llama 3."""
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
"""Digits one by one."""
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of o200k_base: capitals begin a new piece in the middle of a word."""

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of Mistral's later tokenizers: as GPT-4o's, digits one by one."""

LEARNABLE = {"gpt2": GPT2, "gpt4": GPT4}
"""What a learned BPE is cut by. Measured on held-out text, GPT-4's gives more bytes a token on
tinyshakespeare (+12 %, 8,000 pieces), Chinese reviews (+5 %), python:code (+1.8 %, 16,000 pieces)
and web pages (+0.8 %), and less on Wikipedia (-1.8 %), which is full of years."""
DEFAULT_PATTERN = "gpt4"


WORD = " *[^ ]+| +"
"""A word with the spaces before it: no piece crosses to the next, in learning and in encoding."""


def by_words(also_cut: str | None = None) -> pre_tokenizers.PreTokenizer:
    """Text cut into words. also_cut: a pattern behind which it is cut, too."""
    words = pre_tokenizers.Split(Regex(WORD), "isolated")
    if also_cut is None:
        return words
    return pre_tokenizers.Sequence(
        [words, pre_tokenizers.Split(Regex(also_cut), "merged_with_previous")]
    )


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Text cut by a pattern, then spelled in bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits_first(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Digits cut off one by one, then the rest by a pattern, spelled in bytes: as StarCoder and
    SmolLM have it."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(pattern)]
    )
