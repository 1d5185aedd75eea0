"""Somebody's ``.model`` file of sentencepiece, used as it is, by sentencepiece itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from llmctl.tokenizers.base import Tokenizer, roles_in, write_transformers_config
from llmctl.tokenizers.token_bytes import SPACE_MARK, PieceReader


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model, whatever its kind."""

    kind = "unigram"

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.get_piece_size()
        for number in range(self.vocab_size):  # raises UnicodeDecodeError at one that isn't UTF-8
            self._processor.id_to_piece(number)
        self.special = roles_in(self.token_to_id)
        # Decoding takes away the space that encoding put before the text, or all that are there.
        left = len(self._processor.decode([SPACE_MARK, SPACE_MARK]))
        self._strips, self._strips_all = left < 2, left == 0

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if not allow_special or not self.special:
            return list(self._processor.encode(text))
        tokens = {self.id_to_token(number): number for number in self.special.values()}
        pattern = "(" + "|".join(map(re.escape, tokens)) + ")"
        ids: list[int] = []
        for part in re.split(pattern, text):
            ids += [tokens[part]] if part in tokens else self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        parts: list[list[int]] = self._processor.encode(list(texts))
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        flat = [number for part in parts for number in part]
        return np.asarray(flat, dtype=np.uint32), lengths

    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        mapping = self._processor.encode(text, out_type="offset_mapping")
        ids = np.asarray(mapping["ids"], dtype=np.uint32)
        begins = np.fromiter((begin for begin, _ in mapping["offsets"]), dtype=np.int64)
        return ids, np.maximum.accumulate(begins)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        skipped = self.special_ids if skip_special else frozenset()
        return str(self._processor.decode([number for number in ids if number not in skipped]))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        pieces = list(map(self._pieces.__getitem__, ids))
        for place, piece in enumerate(pieces if self._strips else ()):
            if piece:  # a special token's are none
                if not self._processor.is_byte(ids[place]):
                    pieces[place] = piece.removeprefix(b" ")
                if pieces[place] or not self._strips_all:
                    break
        return b"".join(pieces)

    def id_to_token(self, id: int) -> str:
        return str(self._processor.id_to_piece(id))

    def token_to_id(self, token: str) -> int | None:
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spiece.model").write_bytes(self._model)
        fields: dict[str, Any] = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
        write_transformers_config(folder, self, max_length, fields)

    def digest(self) -> str:
        return hashlib.sha256(self._model).hexdigest()

    def _bytes_of_pieces(self) -> list[bytes]:
        model = self._processor
        pieces = []
        for number in range(self.vocab_size):
            if number in self.special_ids or model.is_control(number) or model.is_unused(number):
                pieces.append(b"")
            else:
                read = PieceReader(((SPACE_MARK, " "),), byte_fallback=model.is_byte(number))
                pieces.append(read(self.id_to_token(number)))
        return pieces
