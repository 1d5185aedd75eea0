"""OpenAI's rank files (``.tiktoken``): a line for each piece, its bytes in base64 and its rank.

The rank is the id and the order of merging in one: of all neighbours, those are merged whose
joined bytes have the lowest rank. A tokenizer.json lists pairs instead, so every way to cut a
piece in two ranked pieces is listed, at the piece's rank. A part of a text that is a piece is
taken whole, whether or not merges lead there.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl.errors import InputError, read_errors_naming
from llmctl.tokenizers.checking import check_ids
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, QWEN, byte_level
from llmctl.tokenizers.token_bytes import spelled

END = "<|endoftext|>"
LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?")


@dataclass(frozen=True)
class Encoding:
    """What a rank file doesn't say."""

    pattern: str
    special: Mapping[str, int]
    """Ids of the special tokens."""
    composes: bool = False
    """Whether text is put into Unicode's composed form (NFC) first."""


_GPT2 = Encoding(GPT2, {END: 50256})
_FILL_IN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
ENCODINGS = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": Encoding(
        GPT4,
        {
            END: 100257,
            **{token: 100258 + number for number, token in enumerate(_FILL_IN)},
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding(GPT4O, {END: 199999, "<|endofprompt|>": 200018}),
}
"""OpenAI's, by the names of their files."""

TURNS = (END, "<|im_start|>", "<|im_end|>")
"""The special tokens behind the ranks in other files, as Qwen has them."""
LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|reserved_special_token_2|>",
    "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|reserved_special_token_4|>", "<|eot_id|>",
)  # fmt: skip
"""Those of Llama 3, whose ranks are in a file called tokenizer.model."""


def holds_ranks(head: bytes) -> bool:
    """Whether a file that begins so is a rank file."""
    return LINE.fullmatch(head.partition(b"\n")[0]) is not None


def load_ranks(path: Path) -> FastTokenizer:
    """A byte-level BPE from a rank file. Raises InputError naming the line that is malformed."""
    ranks = _read(path)
    encoding, note = _encoding(path, max(ranks.values()) + 1)
    vocabulary = {spelled(piece): rank for piece, rank in ranks.items()}
    taken = set(vocabulary.values())
    for token, number in encoding.special.items():
        if number in taken or token in vocabulary:
            raise InputError(
                f"{path}: {token} has to be id {number}, which the file gives to a piece; if it is "
                f"not OpenAI's {path.stem}, call it something else"
            )
        vocabulary[token] = number
    rust = RustTokenizer(BPE(vocabulary, list(_merges(ranks)), ignore_merges=True))
    if encoding.composes:
        rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = byte_level(encoding.pattern)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(token, special=True) for token in encoding.special])
    tokenizer = FastTokenizer("bpe", rust)
    if note:
        tokenizer.notes = (note,)
    return tokenizer


def _encoding(path: Path, size: int) -> tuple[Encoding, str | None]:
    """What goes with a file, by its name, and a note if it had to be assumed."""
    if path.stem in ENCODINGS:
        return ENCODINGS[path.stem], None
    if path.suffix == ".model":
        return Encoding(GPT4, {token: size + n for n, token in enumerate(LLAMA3)}), None
    special = {token: size + number for number, token in enumerate(TURNS)}
    if path.stem.lower().startswith("qwen"):
        return Encoding(QWEN, special, composes=True), None
    note = (
        f"{path.name} is none of {', '.join(ENCODINGS)}: cl100k_base's pattern was taken, and the "
        f"special tokens {' '.join(TURNS)} from id {size} on"
    )
    return Encoding(GPT4, special), note


def _read(path: Path) -> dict[bytes, int]:
    """The rank of each piece. Raises InputError if one of the 256 bytes has none."""
    ranks: dict[bytes, int] = {}
    taken: set[int] = set()
    with read_errors_naming(path):
        content = path.read_bytes()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            piece, rank = base64.b64decode(line.split()[0], validate=True), int(line.split()[1])
        except (binascii.Error, IndexError, ValueError):
            piece, rank = b"", -1
        if not piece or rank < 0 or len(line.split()) != 2:
            raise InputError(
                f"{path}:{number} is {line[:40].decode(errors='replace')!r}, not a piece in "
                "base64, a space and its rank; take the file anew"
            )
        if piece in ranks or rank in taken:
            what = f"the piece {piece!r}" if piece in ranks else f"the rank {rank}"
            raise InputError(f"{path}:{number} has {what} again; take the file anew")
        ranks[piece] = rank
        taken.add(rank)
    check_ids(path, ((repr(piece), rank) for piece, rank in ranks.items()), remedy="take it anew")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise InputError(f"{path} has no rank for the byte 0x{byte:02x}; take the file anew")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[str, str]]:
    for piece in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(piece)):
            if piece[:cut] in ranks and piece[cut:] in ranks:
                yield spelled(piece[:cut]), spelled(piece[cut:])
