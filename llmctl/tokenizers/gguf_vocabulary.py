"""The tokenizer in a GGUF file's head, in both directions.

A file names a tokenizer's kind (``tokenizer.ggml.model``: gpt2, llama or bert), its pieces by id
with their types, merges or scores, and for gpt2 not the pattern by which text is cut, but a name of
it (``tokenizer.ggml.pre``). A name that isn't known here is refused: text would be cut otherwise
than the model has learned. WordPiece begins words with ``▁`` there, where BERT continues them with
``##``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl.errors import InputError
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.fast import FastTokenizer, begin_with
from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, QWEN, TEKKEN, byte_level, digits_first
from llmctl.tokenizers.scored_pieces import build_scored
from llmctl.tokenizers.token_bytes import SPACE_MARK
from llmctl.tokenizers.wordpiece import build_wordpiece

KEY_PREFIX = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of pieces."""
ROLE_KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id",
    "sep": "seperator_token_id", "pad": "padding_token_id", "cls": "cls_token_id",
    "mask": "mask_token_id", "turn_end": "eot_token_id",
}  # fmt: skip
"""The names of special tokens' ids by our roles; one is misspelled there."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


class Cut(NamedTuple):
    """How a name of gpt2's kind cuts text."""

    pre_tokenizer: Callable[[], Any]
    whole_words: bool = False
    """Whether a part of a text that is a piece is taken whole, whether or not merges lead there."""
    composes: bool = False
    """Whether text is put into Unicode's composed form first."""
    begins: bool = False
    """Whether bos stands before a text where the file doesn't say."""


_GPT2_CUT = Cut(lambda: byte_level(GPT2))
_LLAMA3_CUT = Cut(lambda: byte_level(GPT4), whole_words=True, begins=True)
_GPT4_CUT = Cut(lambda: byte_level(GPT4))
_DIGITS_FIRST = Cut(lambda: digits_first(GPT2))
CUTS = {
    **dict.fromkeys(("gpt-2", "phi-2", "roberta-bpe", "modern-bert", "mpt", "olmo"), _GPT2_CUT),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3_CUT),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _GPT4_CUT),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS_FIRST),
    "qwen2": Cut(lambda: byte_level(QWEN), composes=True),
    "deepseek-r1-qwen": Cut(lambda: byte_level(QWEN)),
    "gpt-4o": Cut(lambda: byte_level(GPT4O)),
    "tekken": Cut(lambda: byte_level(TEKKEN), whole_words=True, begins=True),
}
"""By what ``tokenizer.ggml.pre`` says."""


def read_tokenizer(path: Path, values: Mapping[str, Any], rows: int) -> Tokenizer:
    """The tokenizer of a file. rows: of the model's token embedding.

    Raises InputError naming what is missing, malformed or not known.
    """
    kind = values.get(f"{KEY_PREFIX}model")
    readers = {"gpt2": _read_bpe, "llama": _read_scored, "bert": _read_wordpiece}
    if kind not in list(readers):
        raise InputError(
            f"{path}: tokenizer.ggml.model is {kind!r}; {', '.join(readers)} are supported"
        )
    pieces = _pieces(path, values, rows)
    ids = {
        role: int(values[KEY_PREFIX + key])
        for role, key in ROLE_KEYS.items()
        if KEY_PREFIX + key in values
    }
    if wrong := [role for role, number in ids.items() if not 0 <= number < len(pieces.texts)]:
        raise InputError(f"{path}: {ROLE_KEYS[wrong[0]]} is {ids[wrong[0]]}, which no piece has")
    if kind == "bert":  # whose start and end are called so for llama.cpp's sake
        also = {"bos": "cls", "eos": "sep"}
        ids = {also.get(role, role): number for role, number in ids.items()}
    tokenizer = readers[str(kind)](path, values, pieces, ids)
    tokenizer.special = {**tokenizer.special, **ids}
    tokenizer.further_ends = frozenset(
        int(values[KEY_PREFIX + key]) for key in ENDS if KEY_PREFIX + key in values
    )
    template = values.get(TEMPLATE_KEY)
    if template is not None and not isinstance(template, str):
        raise InputError(f"{path}: {TEMPLATE_KEY} is no text")
    tokenizer.chat_template = template
    return tokenizer


class _Pieces(NamedTuple):
    texts: list[str | None]
    """By id; None where it has none."""
    types: Sequence[int]

    def of(self, kind: int) -> list[str]:
        return [t for t, k in zip(self.texts, self.types, strict=True) if k == kind and t]


def _pieces(path: Path, values: Mapping[str, Any], rows: int) -> _Pieces:
    texts = values.get(f"{KEY_PREFIX}tokens")
    if not isinstance(texts, list) or not texts:
        raise InputError(f"{path} has no tokenizer.ggml.tokens, the pieces of its tokenizer")
    if len(texts) > rows:
        raise InputError(
            f"{path}: the tokenizer has {len(texts)} pieces and the model {rows}; they don't "
            "belong together"
        )
    types = values.get(f"{KEY_PREFIX}token_type")
    kinds = [NORMAL] * len(texts) if types is None else [int(number) for number in types]
    if len(kinds) != len(texts):
        raise InputError(f"{path} has {len(texts)} pieces and {len(kinds)} types of pieces")
    there = [None if kind == UNUSED else text for text, kind in zip(texts, kinds, strict=True)]
    named = [text for text in there if text is not None]
    if len(set(named)) < len(named):
        twice = next(text for number, text in enumerate(named) if text in named[:number])
        raise InputError(f"{path} has the piece {twice!r} twice")
    return _Pieces(there, kinds)


def _read_bpe(
    path: Path, values: Mapping[str, Any], pieces: _Pieces, ids: Mapping[str, int]
) -> FastTokenizer:
    name = values.get(f"{KEY_PREFIX}pre")
    if name not in list(CUTS):
        raise InputError(
            f"{path}: tokenizer.ggml.pre is {name!r}, and how text is cut by that is not known "
            f"here; known: {', '.join(CUTS)}"
        )
    cut = CUTS[str(name)]
    vocabulary = {text: number for number, text in enumerate(pieces.texts) if text is not None}
    merges = []
    for number, line in enumerate(values.get(f"{KEY_PREFIX}merges", ())):
        # A piece may be a space itself.
        rest, space, second = line[1:].partition(" ")
        first = line[:1] + rest
        if not space or not {first, second, first + second} <= vocabulary.keys():
            raise InputError(
                f"{path}: merge {number} is {line!r}, which are not two pieces that make a third"
            )
        merges.append((first, second))
    rust = RustTokenizer(BPE(vocabulary, merges, ignore_merges=cut.whole_words))
    if cut.composes:
        rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = cut.pre_tokenizer()
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(t, special=True) for t in pieces.of(CONTROL)])
    rust.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in pieces.of(USER_DEFINED)]
    )
    if values.get(f"{KEY_PREFIX}add_bos_token", cut.begins) and "bos" in ids:
        begin_with(rust, str(pieces.texts[ids["bos"]]))
    return FastTokenizer("bpe", rust)


def _read_scored(
    path: Path, values: Mapping[str, Any], pieces: _Pieces, ids: Mapping[str, int]
) -> FastTokenizer:
    scores = values.get(f"{KEY_PREFIX}scores")
    if scores is None or len(scores) != len(pieces.texts):
        raise InputError(f"{path} has no score for each piece (tokenizer.ggml.scores)")
    merged = {
        float(score)
        for text, score, kind in zip(pieces.texts, scores, pieces.types, strict=True)
        if kind == NORMAL and text and len(text) > 1
    }
    if len(merged) == 1 and len(pieces.of(NORMAL)) > 300:
        raise InputError(
            f"{path}: all pieces have one score, so which are merged first can't be told; take a "
            "file that was made from a sentencepiece model"
        )
    unknown = pieces.of(UNKNOWN) or ["<unk>"]
    if unknown[0] not in pieces.texts:
        raise InputError(f"{path} has no piece of the type unknown")
    if any(f"<0x{byte:02X}>" not in pieces.texts for byte in range(256)):
        raise InputError(f"{path} has no piece for each byte (<0x00> to <0xFF>)")
    begins = values.get(f"{KEY_PREFIX}add_bos_token", True) and "bos" in ids
    return build_scored(
        pieces.texts,
        list(map(float, scores)),
        special=[*unknown, *pieces.of(CONTROL)],
        unknown=unknown[0],
        plain=pieces.of(USER_DEFINED),
        space_first=bool(values.get(f"{KEY_PREFIX}add_space_prefix", True)),
        begins=str(pieces.texts[ids["bos"]]) if begins else None,
    )


def _read_wordpiece(
    path: Path, values: Mapping[str, Any], pieces: _Pieces, ids: Mapping[str, int]
) -> Tokenizer:
    if None in pieces.texts:
        raise InputError(f"{path} has ids without a piece, which a WordPiece hasn't")
    texts = [str(text) for text in pieces.texts]
    special = {*pieces.of(CONTROL), *pieces.of(UNKNOWN), *(texts[n] for n in ids.values())}
    vocabulary = [
        text
        if text in special
        else text.removeprefix(SPACE_MARK)
        if text.startswith(SPACE_MARK)
        else f"##{text}"
        for text in texts
    ]
    lower = bool(values.get(f"{KEY_PREFIX}normalizer.lowercase", True))
    strips = bool(values.get(f"{KEY_PREFIX}normalizer.strip_accents", lower))
    try:
        return build_wordpiece(vocabulary, cased=not lower, strip_accents=strips)
    except ValueError as error:
        raise InputError(f"{path}: {error}; take the GGUF of a BERT") from None
