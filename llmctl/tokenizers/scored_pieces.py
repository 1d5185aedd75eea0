"""Pieces with scores, as Llama's sentencepiece models, GGUF files and llama2.c have them: of all
neighbours those are merged whose piece has the highest score, and a character that is no piece is
spelled in its bytes.

A tokenizer.json lists pairs by rank instead, so every way to cut a piece in two is listed, at the
piece's rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl.tokenizers.fast import FastTokenizer, begin_with
from llmctl.tokenizers.patterns import by_words
from llmctl.tokenizers.token_bytes import SPACE_MARK

_CROSSES = re.compile(f"[^{SPACE_MARK}]{SPACE_MARK}")
"""In a piece that goes over the end of a word."""


def build_scored(
    pieces: Sequence[str | None],
    scores: Sequence[float],
    *,
    special: Sequence[str],
    unknown: str,
    plain: Sequence[str] = (),
    space_first: bool,
    begins: str | None,
) -> FastTokenizer:
    """The tokenizer of some pieces by id, ``▁`` for a space; None where an id has none.

    special: those that no text matches. plain: those found in a text before it is cut. space_first:
    whether a space is put before each text. begins: the token before each text.
    """
    apart = {*special, *plain}
    score_of = {
        piece: score
        for piece, score in zip(pieces, scores, strict=True)
        if piece is not None and piece not in apart and not is_byte(piece)
    }
    # Spaces as they are, and words one by one, where nothing is lost by it: long texts can be cut.
    worded = not space_first and not any(map(_CROSSES.search, score_of))
    mark = " " if worded else SPACE_MARK
    vocabulary = {
        piece if piece in apart else piece.replace(SPACE_MARK, mark): number
        for number, piece in enumerate(pieces)
        if piece is not None
    }
    merges = [
        (first.replace(SPACE_MARK, mark), second.replace(SPACE_MARK, mark))
        for first, second in _merges(score_of)
    ]
    rust = RustTokenizer(
        BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True, fuse_unk=False)
    )
    if worded:
        rust.pre_tokenizer = by_words()
        rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        replaced = normalizers.Replace(" ", SPACE_MARK)
        first = [normalizers.Prepend(SPACE_MARK)] if space_first else []
        rust.normalizer = normalizers.Sequence([*first, replaced])
        steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        rust.decoder = decoders.Sequence(
            [*steps, decoders.Strip(" ", 1, 0)] if space_first else steps
        )
    rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    rust.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    if begins is not None:
        begin_with(rust, begins)
    return FastTokenizer("sentencepiece-bpe", rust)


def is_byte(piece: str) -> bool:
    """Whether a piece stands for a byte: ``<0x0A>``."""
    return re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None


def _merges(score_of: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for piece in sorted(score_of, key=score_of.__getitem__, reverse=True):
        for cut in range(1, len(piece)):
            if piece[:cut] in score_of and piece[cut:] in score_of:
                yield piece[:cut], piece[cut:]


def scores_of_merges(tokenizer: FastTokenizer) -> dict[str, float] | None:
    """A score of each merged piece by which its merges are made in the order of a tokenizer.json;
    None where none can be: one piece's merges stand among another's."""
    merges = tokenizer.settings()["model"]["merges"]
    scores: dict[str, float] = {}
    last = ""
    for merge in merges:
        first, second = merge if isinstance(merge, list) else merge.split(" ")
        piece = first + second
        if piece != last and piece in scores:
            return None
        scores.setdefault(piece, -float(len(scores)))
        last = piece
    return scores
