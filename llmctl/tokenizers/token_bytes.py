"""The bytes of text that an entry of a vocabulary stands for.

Text is decoded by joining the bytes of its pieces, so what a growing list of ids stands for grows
at its end alone, and a character whose bytes are spread over pieces appears once its last has come.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

SPACE_MARK = "▁"
"""Sentencepiece's sign for a space (U+2581)."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _printable() -> dict[str, int]:
    """GPT-2's alphabet: bytes that are printable in Latin-1 stand for themselves, the others are
    the characters from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {
        **{chr(byte): byte for byte in plain},
        **{chr(0x100 + number): byte for number, byte in enumerate(others)},
    }


BYTE_OF = _printable()
"""The byte that each character of a byte-level vocabulary stands for."""
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def spelled(piece: bytes) -> str:
    """Bytes as a byte-level vocabulary writes them.

    >>> spelled(b" the")
    'Ġthe'
    """
    return "".join(map(CHARACTER_OF.__getitem__, piece))


@dataclass(frozen=True)
class PieceReader:
    """How a tokenizer.json's decoder reads pieces."""

    replacements: tuple[tuple[str, str], ...] = ()
    byte_level: bool = False
    byte_fallback: bool = False
    """Whether ``<0x0A>`` is a byte."""
    strips_first: bool = False
    """Whether the space that was put before a text is taken away again."""

    def __call__(self, piece: str) -> bytes:
        if self.byte_level and all(character in BYTE_OF for character in piece):
            return bytes(map(BYTE_OF.__getitem__, piece))
        if self.byte_fallback and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode()


def piece_reader(decoder: Any) -> PieceReader:
    """What a decoder of the `tokenizers` library does, WordPiece's apart, which looks at words."""
    if decoder is None:
        return PieceReader(replacements=((SPACE_MARK, " "),))
    settings = json.loads(decoder.__getstate__())
    steps = settings.get("decoders", [settings])
    types = {step.get("type") for step in steps}
    replacements = [
        (step["pattern"]["String"], step["content"])
        for step in steps
        if step.get("type") == "Replace" and "String" in step["pattern"]
    ]
    replacements += [
        (step["replacement"], " ") for step in steps if step.get("type") == "Metaspace"
    ]
    replacements += [(step["suffix"], " ") for step in steps if step.get("type") == "BPEDecoder"]
    return PieceReader(
        tuple(replacements),
        byte_level="ByteLevel" in types,
        byte_fallback="ByteFallback" in types,
        strips_first=any(
            (step.get("type") == "Strip" and step.get("content") == " " and step.get("start"))
            or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
            for step in steps
        ),
    )
