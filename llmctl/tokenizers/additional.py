"""Special tokens that an objective needs beside a tokenizer's own: T5's sentinels, which stand for
the spans that were taken out of a text (Raffel et al. 2020, §3.1.4), and the three tokens of
fill-in-the-middle (Bavarian et al. 2022, §3).

They are put behind the vocabulary, so that no piece changes its id, and text never matches them.
Sentinels lie as T5 has them: ``<extra_id_0>`` is the last id, ``<extra_id_1>`` the one before.
"""

from __future__ import annotations

from llmctl.errors import UsageError
from llmctl.tokenizers.base import SPECIAL_SPELLINGS, Tokenizer
from llmctl.tokenizers.fast import FastTokenizer

FIM_ROLES = ("fim_prefix", "fim_suffix", "fim_middle")
"""The roles of the tokens before a text's beginning, its end, and what is to be written between."""
MOST_SENTINELS = 1000
"""More than any row has spans; T5 has 100."""


def sentinel(number: int) -> str:
    """T5's spelling of a sentinel."""
    return f"<extra_id_{number}>"


def with_additional(tokenizer: Tokenizer, *, sentinels: int = 0, fim: bool = False) -> Tokenizer:
    """A tokenizer with so many sentinels at least, and with the tokens of fill-in-the-middle; the
    same object where it has them already.

    Raises UsageError for somebody's sentencepiece model, whose vocabulary can't grow.
    """
    wanted = []
    if fim:
        wanted = [SPECIAL_SPELLINGS[r][0] for r in FIM_ROLES if r not in tokenizer.special]
    wanted += [sentinel(n) for n in range(len(tokenizer.sentinels), sentinels)][::-1]
    if not wanted:
        return tokenizer
    if not isinstance(tokenizer, FastTokenizer):
        options = " and ".join(["--sentinels"] * bool(sentinels) + ["--fim"] * fim)
        raise UsageError(
            f"{options}: the vocabulary of a sentencepiece .model can't grow; take the model's "
            "tokenizer.json, or learn a tokenizer"
        )
    return tokenizer.extended(wanted)
