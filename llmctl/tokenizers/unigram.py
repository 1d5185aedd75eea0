"""Unigram language-model pieces (Kudo 2018), learned by sentencepiece.

The pieces and their scores move into a tokenizer.json, so that one library encodes and every tool
opens the result. Text is normalised (NFKC, spaces collapsed) before sentencepiece sees it, as its
own normaliser has no counterpart elsewhere. A ``.model`` of somebody else is used as it is.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import Unigram

from llmctl.errors import InputError
from llmctl.tokenizers.base import (
    AlphabetError,
    FastTokenizer,
    Tokenizer,
    VocabularyError,
    roles_in,
    roomy,
    write_transformers_config,
)

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
SPECIAL_START = "<(?=(?:pad|unk|s|/s|mask)>)"
"""Text is cut behind this: the special tokens are pieces, and text must not match them."""
SPACES = r"[\s\x1c-\x1f]+"
"""What str.split() takes for spaces, as the learner sees the text."""
MAX_SENTENCES = 2_000_000
"""Sentencepiece holds its sample in memory; this many lines are about a gigabyte."""
LONGEST_LINE = 4192
"""Bytes; sentencepiece leaves out longer ones, so they are cut here."""


def learn_unigram(texts: Iterable[str], vocab_size: int, *, exact: bool = True) -> FastTokenizer:
    """Learn pieces. If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its alphabet doesn't fit."""
    written = io.BytesIO()
    lines = _Lines(texts)
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=exact,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=["<mask>"],
            # The vocabulary changes with the number of threads.
            num_threads=1,
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        if lines.error is not None:
            raise lines.error from None
        text = str(error)
        most = re.search(r"value <= (\d+)", text)
        if most:
            raise VocabularyError(vocab_size, int(most[1])) from None
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
        if least:
            if not exact:
                return learn_unigram(texts, roomy(int(least[1])), exact=False)
            raise AlphabetError(vocab_size, int(least[1])) from None
        raise InputError(
            f"sentencepiece can't learn {vocab_size} pieces from this corpus: {text.strip()}; "
            "give more text or a smaller --vocab-size"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [
        (processor.id_to_piece(number), processor.get_score(number))
        for number in range(processor.get_piece_size())
    ]
    rust = RustTokenizer(Unigram(pieces, unk_id=1, byte_fallback=False))
    rust.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(SPACES), " "),
            normalizers.Strip(),
        ]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(SPECIAL_START), "merged_with_previous"),
        ]
    )
    rust.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    rust.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    rust.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    # Scores lose digits in JSON: go through it once, so that a loaded copy is the same.
    return FastTokenizer("unigram", RustTokenizer.from_str(rust.to_str()))


class _Lines:
    """Lines of some texts as the learner takes them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: Exception | None = None
        """What went wrong in the texts: sentencepiece makes it an error of its own."""

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in unicodedata.normalize("NFKC", text).splitlines():
                    yield from _short(" ".join(line.split()))
        except Exception as error:
            self.error = error
            raise


def _short(line: str) -> Iterator[str]:
    """A line in parts of at most ``LONGEST_LINE`` bytes, cut at spaces if there are any."""
    most = LONGEST_LINE // 4  # characters; one has four bytes at most
    start = 0
    while len(line) - start > most:
        space = line.rfind(" ", start + 1, start + most + 1)
        end = start + most if space == -1 else space
        yield line[start:end]
        start = end if space == -1 else end + 1
    if start < len(line):
        yield line[start:]


class SentencePieceTokenizer(Tokenizer):
    """A ``.model`` file of sentencepiece, as it is."""

    kind = "unigram"

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.get_piece_size()
        self.special = roles_in(self.token_to_id)

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
        found = self._processor.encode(text, out_type="offset_mapping")
        ids = np.asarray(found["ids"], dtype=np.uint32)
        begins = np.fromiter((begin for begin, _ in found["offsets"]), dtype=np.int64)
        return ids, np.maximum.accumulate(begins)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        kept = [i for i in ids if not (skip_special and i in self.special_ids)]
        return str(self._processor.decode(kept))

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
