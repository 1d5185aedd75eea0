"""Byte-pair encoding over characters with byte fallback, as Llama has it, learned by sentencepiece.

Sentencepiece merges whichever neighbours make the piece of the highest score. A tokenizer.json
lists pairs by rank instead, so every way to cut a piece in two is listed, at the piece's rank.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.sentencepiece_training import Pieces, finish, learn_pieces


def learn_sentencepiece_bpe(
    texts: Iterable[str], vocab_size: int, *, exact: bool = True
) -> FastTokenizer:
    """Learn pieces. If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its alphabet doesn't fit."""
    learned = learn_pieces(texts, "bpe", vocab_size, exact=exact)
    vocabulary = {name: number for number, name in enumerate(learned.names)}
    rust = RustTokenizer(
        BPE(vocabulary, _merges(learned), unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    )
    finish(rust)
    return FastTokenizer("sentencepiece-bpe", rust)


def _merges(learned: Pieces) -> list[tuple[str, str]]:
    first = learned.first_learned
    names = learned.names[first:]
    score_of = dict(zip(names, learned.scores[first:], strict=True))
    return [
        (name[:cut], name[cut:])
        for name in sorted(names, key=score_of.__getitem__, reverse=True)
        for cut in range(1, len(name))
        if name[:cut] in score_of and name[cut:] in score_of
    ]
