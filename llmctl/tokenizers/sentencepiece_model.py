"""Somebody's ``.model`` file of sentencepiece, used as it is, by sentencepiece itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from llmctl.tokenizers.base import Tokenizer, roles_in, write_transformers_config
from llmctl.tokenizers.token_bytes import SPACE_MARK, PieceReader

EXTRA_ID = re.compile(r"<extra_id_(0|[1-9][0-9]{0,5})>")
T5_CLASSES = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast")
"""Classes of transformers' whose tokenizers have sentinels beside a sentencepiece model."""
T5_EXTRA = 100
"""Sentinels of theirs where their configuration doesn't say how many."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model, whatever its kind."""

    kind = "unigram"

    def __init__(self, model: bytes, extra: int = 0) -> None:
        """extra: T5's sentinels, of which the model doesn't know: they lie behind its pieces,
        ``<extra_id_0>`` last."""
        self._model, self._extra = model, extra
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._pieces_there = self._processor.get_piece_size()
        self.vocab_size = self._pieces_there + extra
        for number in range(self._pieces_there):  # raises UnicodeDecodeError: one isn't UTF-8
            self._processor.id_to_piece(number)
        self.special = roles_in(self.token_to_id)
        # Decoding takes away the space that encoding put before the text, or all that are there.
        left = len(self._processor.decode([SPACE_MARK, SPACE_MARK]))
        self._strips, self._strips_all = left < 2, left == 0

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if not allow_special or not self.special:
            return list(self._processor.encode(text))
        tokens = {self.id_to_token(number): number for number in self.special_ids}
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
        kept = [number for number in ids if number not in skipped]
        if not self._extra:
            return str(self._processor.decode(kept))
        parts = groupby(kept, self._is_extra)
        return " ".join(
            " ".join(map(self.id_to_token, part)) if extra else self._processor.decode(list(part))
            for extra, part in parts
        )

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        pieces = list(map(self._pieces.__getitem__, ids))
        for place, piece in enumerate(pieces if self._strips else ()):
            if piece:  # a special token's are none
                if not self._processor.is_byte(ids[place]):
                    pieces[place] = piece.removeprefix(b" ")
                if pieces[place] or not self._strips_all:
                    break
        return b"".join(pieces)

    def _is_extra(self, id: int) -> bool:
        return id >= self._pieces_there

    def id_to_token(self, id: int) -> str:
        if self._is_extra(id):
            return f"<extra_id_{self.vocab_size - 1 - id}>"
        return str(self._processor.id_to_piece(id))

    def token_to_id(self, token: str) -> int | None:
        if sentinel := EXTRA_ID.fullmatch(token):
            below = int(sentinel[1]) < self._extra
            return self.vocab_size - 1 - int(sentinel[1]) if below else None
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spiece.model").write_bytes(self._model)
        fields: dict[str, Any] = {"tokenizer_class": "T5Tokenizer", "extra_ids": self._extra}
        write_transformers_config(folder, self, max_length, fields)

    def digest(self) -> str:
        extra = f"extra_ids {self._extra}".encode() if self._extra else b""
        return hashlib.sha256(self._model + extra).hexdigest()

    def _bytes_of_pieces(self) -> list[bytes]:
        model = self._processor
        pieces = []
        for number in range(self.vocab_size):
            if (
                self._is_extra(number)
                or number in self.special_ids
                or model.is_control(number)
                or model.is_unused(number)
            ):
                pieces.append(b"")
            else:
                read = PieceReader(((SPACE_MARK, " "),), byte_fallback=model.is_byte(number))
                pieces.append(read(self.id_to_token(number)))
        return pieces
