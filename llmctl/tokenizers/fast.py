"""Tokenizers that run on the `tokenizers` library."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as RustTokenizer

from llmctl.errors import InputError
from llmctl.tokenizers.base import Layout, Tokenizer, roles_in, write_transformers_config
from llmctl.tokenizers.cuts import Rule, rule_of
from llmctl.tokenizers.token_bytes import piece_reader


@contextmanager
def panics_told() -> Iterator[None]:
    """Turns a panic of the library, which isn't even an Exception, into an InputError: a regular
    expression of a foreign tokenizer may take for ever on some text, and is stopped so."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the tokenizer failed on a text ({reason[:200]}); leave that text out, or take "
            "another tokenizer"
        ) from None


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library."""

    keeps_layout = True

    def __init__(self, kind: str, rust: RustTokenizer) -> None:
        self.kind = kind
        self._rust = rust
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True
        # Not the number of pieces: a file may skip ids, or repeat a piece.
        self.vocab_size = max(rust.get_vocab().values(), default=-1) + 1
        self.special = roles_in(rust.token_to_id)
        self._reader = piece_reader(rust.decoder)
        self._strips_first = self._reader.strips_first

    @cached_property
    def _cut_rule(self) -> Rule | None:
        return rule_of(self._rust)

    def normalized(self, text: str) -> str:
        normalizer = self._rust.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        self._rust.encode_special_tokens = not allow_special
        try:
            with panics_told():
                return list(self._rust.encode(text, add_special_tokens=False).ids)
        finally:
            self._rust.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        with panics_told():
            encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        parts = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return (np.concatenate(parts) if parts else np.empty(0, np.uint32)), lengths

    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        if self.kind != "wordpiece" and self._rust.normalizer is None:
            # Where nothing of a text is lost the ids tell the places, in half the time.
            ids, _ = self.encode_batch([text])
            ends = np.cumsum(self.token_bytes[ids])
            data = np.frombuffer(text.encode(), dtype=np.uint8)
            if len(ids) and ends[-1] == len(data):
                starts_character = (data & 0xC0) != 0x80
                return ids, np.cumsum(starts_character)[np.append(0, ends[:-1])] - 1
        with panics_told():
            encoding = self._rust.encode(text, add_special_tokens=False)
        begins = np.fromiter((begin for begin, _ in encoding.offsets), dtype=np.int64)
        return np.asarray(encoding.ids, dtype=np.uint32), np.maximum.accumulate(begins)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return str(self._rust.decode(list(ids), skip_special_tokens=skip_special))

    def id_to_token(self, id: int) -> str:
        return self._rust.id_to_token(id) or ""

    def token_to_id(self, token: str) -> int | None:
        number: int | None = self._rust.token_to_id(token)
        return number

    def for_encoder(self, *, segments: bool = True) -> Tokenizer:
        if not {"cls", "sep"} <= self.special.keys():
            return self
        cls, sep = self.special["cls"], self.special["sep"]
        framed = self._rust.encode("", add_special_tokens=True).ids == [cls, sep]
        if framed and (segments or self.layout.first_segment is None):
            return self
        first, last = self.id_to_token(cls), self.id_to_token(sep)
        second = ["$B:1"] if segments else [f"{last}:0", "$B:0"]
        wrapped = self._copied()
        wrapped._rust.post_processor = processors.TemplateProcessing(
            single=[f"{first}:0", "$A:0", f"{last}:0"],
            pair=[f"{first}:0", "$A:0", f"{last}:0", *second, f"{last}:{int(segments)}"],
            special_tokens=[(first, cls), (last, sep)],
        )
        return wrapped

    def for_texts(self, *, opens: bool) -> Tokenizer:
        before, after = self._around_texts(opens=opens)
        if self.adds is None and (self.layout.before, self.layout.after) == (before, after):
            return self
        first = [f"{self.id_to_token(number)}:0" for number in before]
        last = [f"{self.id_to_token(number)}:0" for number in after]
        wrapped = self._copied()
        wrapped._rust.post_processor = processors.TemplateProcessing(
            single=[*first, "$A:0", *last],
            pair=[*first, "$A:0", *last, "$B:0", *last],
            special_tokens=[(self.id_to_token(n), n) for n in dict.fromkeys((*before, *after))],
        )
        wrapped.adds = None
        return wrapped

    def _copied(self) -> FastTokenizer:
        """This tokenizer, whose post-processor is to be another."""
        wrapped = copy.copy(self)
        wrapped.__dict__.pop("_own_layout", None)
        wrapped._rust = RustTokenizer.from_str(self._rust.to_str())
        wrapped._rust.encode_special_tokens = True
        return wrapped

    def extended(self, tokens: Sequence[str]) -> FastTokenizer:
        """This tokenizer with further special tokens behind its vocabulary."""
        grown = self._copied()
        for name in ("_own_layout", "_pieces", "token_bytes", "holes", "sentinels"):  # computed
            grown.__dict__.pop(name, None)
        grown._rust.add_special_tokens([AddedToken(token, special=True) for token in tokens])
        grown.vocab_size = max(grown._rust.get_vocab().values()) + 1
        grown.special = {**roles_in(grown._rust.token_to_id), **self.special}
        return grown

    @property
    def layout(self) -> Layout:
        if self.adds is not None:
            return super().layout
        return self._own_layout

    @cached_property
    def _own_layout(self) -> Layout:
        """What the post-processor puts around texts, found by giving it some."""
        for text in ("a", "1", *map(self.id_to_token, self.ordinary[:PROBES])):
            one = self._rust.encode(text, add_special_tokens=True)
            if one.ids and 0 in one.sequence_ids:
                break
        else:
            return Layout()
        two = self._rust.encode(text, text, add_special_tokens=True)
        before, after = _around(one.ids, one.sequence_ids, 0)
        first, rest = _around(two.ids, two.sequence_ids, 0)
        second_at = two.sequence_ids.index(1)
        between = tuple(two.ids[len(two.ids) - len(rest) : second_at])
        _, last = _around(two.ids, two.sequence_ids, 1)
        types = two.type_ids[second_at - len(between) : second_at]
        first_segment = types.count(0) if two.type_ids[second_at] == 1 else None
        return Layout(before, after, first, between, last, first_segment)

    def for_decoder(self, *, pairs: bool = False) -> Tokenizer:
        bos, between = self._decoder_tokens(pairs=pairs)
        layout = self.layout
        single = self.adds is None and layout.before == (bos,) and not layout.after
        if single and (
            not pairs
            or (layout.pair_before, layout.between, layout.pair_after) == ((bos,), (between,), ())
        ):
            return self
        wrapped = self._copied()
        begin_with(wrapped._rust, self.id_to_token(bos), self.id_to_token(between))
        wrapped.adds = None
        return wrapped

    @cached_property
    def holes(self) -> list[int]:
        taken = set(self._rust.get_vocab().values())
        return [number for number in range(self.vocab_size) if number not in taken]

    def _bytes_of_pieces(self) -> list[bytes]:
        tokens = [self.id_to_token(number) for number in range(self.vocab_size)]
        if self.kind == "wordpiece":
            pieces = [
                token[2:].encode() if token.startswith("##") else f" {token}".encode()
                for token in tokens
            ]
        else:
            pieces = list(map(self._reader, tokens))
        for number, added in self._rust.get_added_tokens_decoder().items():
            pieces[number] = b"" if added.special else added.content.encode()
        for number in self.special_ids:
            pieces[number] = b""
        return pieces

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        # WordPiece's decoder looks at the words on both sides of a space.
        return self.decode(ids).encode() if self.kind == "wordpiece" else super().decode_bytes(ids)

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = self._rust.to_str(pretty=False)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        write_transformers_config(folder, self, max_length, self._transformers_fields())

    def digest(self) -> str:
        told, processor = self._rust.to_str(pretty=False), self._rust.post_processor
        if _adds_nothing(processor):  # which transformers writes where there was none
            key = '"post_processor":'
            told = told.replace(key + processor.__getstate__().decode(), f"{key}null", 1)
        return hashlib.sha256(told.encode()).hexdigest()

    def pieces_digest(self) -> str:
        settings = {**self.settings(), "post_processor": None}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """All that a tokenizer.json says."""
        value: dict[str, Any] = json.loads(self._rust.to_str(pretty=False))
        return value

    def _transformers_fields(self) -> dict[str, Any]:
        return {"tokenizer_class": "PreTrainedTokenizerFast"}


def _adds_nothing(processor: Any) -> bool:
    """Whether a post-processor leaves texts and pairs as they are."""
    if not isinstance(processor, processors.TemplateProcessing):
        return False
    settings = json.loads(processor.__getstate__())
    parts = [*settings["single"], *settings["pair"]]
    return not settings["special_tokens"] and all("Sequence" in part for part in parts)


PROBES = 300
"""Pieces that are tried until one of them, as a text, has an id."""


def _around(
    ids: Sequence[int], sequences: Sequence[int | None], number: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and behind those of the text of a number."""
    places = [place for place, sequence in enumerate(sequences) if sequence == number]
    return tuple(ids[: places[0]]), tuple(ids[places[-1] + 1 :])


def begin_with(rust: RustTokenizer, token: str, between: str | None = None) -> None:
    """Have transformers put a token before each text, as Llama has it.

    Every document begins so in training and every prompt of ours does, so a text that
    ``transformers`` tokenizes is met as the model knows it. Nothing goes behind: a prompt goes on.
    between: the token before the second of two texts, if it is another.
    """
    between = between or token
    rust.post_processor = processors.TemplateProcessing(
        single=[f"{token}:0", "$A:0"],
        pair=[f"{token}:0", "$A:0", f"{between}:1", "$B:1"],
        special_tokens=[(one, rust.token_to_id(one)) for one in dict.fromkeys((token, between))],
    )
