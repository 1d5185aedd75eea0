"""What every tokenizer does.

A tokenizer is a folder with ``tokenizer.json`` (or ``spiece.model``), in the layout that
``transformers.AutoTokenizer`` opens. Ids of special tokens are known by their role; the layout of
a chat travels beside them.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.tokenizers.cuts import LONG, NoPlace, Rule, stretches
from llmctl.tokenizers.token_bytes import SPACE_MARK

SPECIAL_SPELLINGS: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<|endoftext|>"),
    "sep": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "bos": ("<s>", "<|endoftext|>", "<|begin_of_text|>", "<bos>", "<|bos|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
    "turn_start": ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>"),
    "turn_end": ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|assistant_end|>"),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>"),
}
"""The usual spellings of each special token, in BERT, RoBERTa, GPT-2, Llama, Qwen, Gemma and
nanochat: where no file beside the tokenizer names them. A document begins with bos and ends with
eos; turn_end ends what one side of a chat says; the last three are those of fill-in-the-middle in
Qwen's coders, StarCoder, SantaCoder and DeepSeek's coders."""

TRANSFORMERS_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
"""Those that transformers has a name for."""

_STARTS = ("Ġ", "Ċ", "ĉ", SPACE_MARK, " ")
"""How a piece that begins with a space, a line end or a tab begins: byte-level or sentencepiece."""

CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Layout:
    """The special tokens that are put around a text, and around two."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pair_before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    pair_after: tuple[int, ...] = ()
    first_segment: int | None = None
    """How many of ``between`` belong to a BERT's first segment; None: everything does."""


BOUNDARIES = (("bos", "eos"), ("cls", "sep"))
"""The tokens around a document, by role: a language model's, or those of BERT's tokenizers."""


class Tokenizer(ABC):
    """Text to ids and back."""

    kind: str
    """``wordpiece``, ``bpe``, ``unigram``, ``sentencepiece-bpe`` or ``characters``."""
    vocab_size: int
    special: Mapping[str, int]
    """Ids by role: those of ``SPECIAL_SPELLINGS`` that the vocabulary has."""
    chat_template: str | None = None
    """Jinja source that lays a conversation out, as transformers keeps it. Not in the digest: it
    decides no ids."""
    notes: tuple[str, ...] = ()
    """What had to be assumed when it was loaded, for whoever uses it."""
    sentencewise = False
    """Whether the ids of a text are those of its sentences end to end. Elsewhere a start of text
    may get a piece of its own (``▁``), so a text must be encoded whole."""
    further_ends: frozenset[int] = frozenset()
    """Ids that end a text besides those of the roles; see ``read_companions``."""
    adds: tuple[bool, bool] | None = None
    """Whether bos stands before each text and eos behind it, where tokenizer_config.json says it of
    a tokenizer whose own file can't."""
    cuts_left = False
    """Whether a text that is too long loses its beginning, as tokenizer_config.json may say."""
    keeps_layout = False
    """Whether the tokenizer's own file says what is put around a text."""
    _laid_out: Layout | None = None
    """Where it doesn't: what is."""
    _strips_first = False
    """Whether decoding takes away the space that encoding puts before a text."""

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text, with nothing added around it.

        allow_special: read ``[MASK]`` and the like in the text as special tokens; by default
        they are ordinary text, so a corpus can't smuggle them in.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of many texts, concatenated, and the number of ids of each."""

    @abstractmethod
    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of a text, and the character at which each begins, in rising order."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of some ids."""

    def stretches(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of the parts of a text whose ids, end to end, are the text's.

        A text of common length is one part. Raises InputError for a very long one that has no
        place to cut.
        """
        try:
            yield from stretches(text, self._cut_rule if len(text) > LONG else None)
        except NoPlace as error:
            raise InputError(
                f"a text with {text[error.begin : error.begin + 30]!r} in it goes on for "
                f"{error.length:,} characters without a place where {self.kind} can cut it (a "
                "space behind a letter, say), too long to be encoded whole; divide it into lines "
                "or documents, or leave it out"
            ) from None

    @cached_property
    def _cut_rule(self) -> Rule | None:
        return None

    def normalized(self, text: str) -> str:
        """A text as it is before it is cut into pieces: in lower case, say."""
        return text

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of some ids, special tokens left out.

        Byte-level, sentencepiece's and character ids stand for bytes of their own, so the bytes
        of a list that grows grow at their end alone; they may stop within a character.
        """
        text = b"".join(map(self._pieces.__getitem__, ids))
        return text.removeprefix(b" ") if self._strips_first else text

    @abstractmethod
    def id_to_token(self, id: int) -> str:
        """The vocabulary's entry at an id."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary entry."""

    @abstractmethod
    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        """Write the files that ``load`` and ``transformers.AutoTokenizer`` read."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what decides the ids: equal tokenizers have equal digests."""

    def pieces_digest(self) -> str:
        """SHA-256 of what decides the ids of a text itself, whatever is put around it."""
        return self.digest()

    def for_encoder(self, *, segments: bool = True) -> Tokenizer:
        """This tokenizer as a BERT's folder has it: transformers puts cls and sep around a text.

        segments: whether the second of two texts is of another segment. If not, sep stands twice
        before it. The same object where it does so already, or has no such tokens.
        """
        if not {"cls", "sep"} <= self.special.keys():
            return self
        cls, sep = self.special["cls"], self.special["sep"]
        if not segments:
            return self._with(Layout((cls,), (sep,), (cls,), (sep, sep), (sep,)))
        return self._with(Layout((cls,), (sep,), (cls,), (sep,), (sep,), 1))

    def for_texts(self, *, opens: bool) -> Tokenizer:
        """This tokenizer as an encoder–decoder's folder has it: the end of a document behind each
        text, and with ``opens`` its start before.

        The same object where it is so already. Raises InputError if there are no such tokens.
        """
        before, after = self._around_texts(opens=opens)
        return self._with(Layout(before, after, before, after, after))

    def _around_texts(self, *, opens: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.text_end is None or (opens and self.boundaries is None):
            raise InputError(
                f"the tokenizer has no token for a text's {'start and ' if opens else ''}end, "
                "beside which sources and targets stand; use one of llmctl tokenize"
            )
        return (self.boundaries[:1] if opens and self.boundaries else ()), (self.text_end,)

    def _with(self, layout: Layout) -> Tokenizer:
        laid_out = copy.copy(self)
        laid_out._laid_out = layout
        return laid_out

    @property
    def layout(self) -> Layout:
        """What transformers puts around a text that it is given with this tokenizer's files."""
        if self._laid_out is not None:
            return self._laid_out
        adds_bos, adds_eos = self.adds or (True, False)
        before = (self.special["bos"],) if adds_bos and "bos" in self.special else ()
        after = (self.special["eos"],) if adds_eos and "eos" in self.special else ()
        return Layout(before, after, before, (*after, *before), after, len(after))

    def for_decoder(self, *, pairs: bool = False) -> Tokenizer:
        """This tokenizer as a language model's folder has it: bos stands before a text, as before
        every document in training, and with ``pairs`` eos between two.

        Nothing goes behind: a prompt goes on. The same object where it is so already. Raises
        InputError if there are no such tokens.
        """
        bos, between = self._decoder_tokens(pairs=pairs)
        return self._with(Layout((bos,), (), (bos,), (between,)))

    def _decoder_tokens(self, *, pairs: bool) -> tuple[int, int]:
        needed = ("bos", "eos") if pairs else ("bos",)
        if missing := [role for role in needed if role not in self.special]:
            raise InputError(
                f"the tokenizer has no token for {' and '.join(missing)}, which stand around a "
                "text; use a model that has one"
            )
        return self.special["bos"], self.special["eos" if pairs else "bos"]

    @cached_property
    def holes(self) -> list[int]:
        """Ids below ``vocab_size`` that no piece has."""
        return []

    def said_beside(self) -> list[Any]:
        """What the files beside the tokenizer's own say that decides what a model answers."""
        ends = sorted(self.further_ends - self.special_ids)
        return [part for part in (self.adds, ends, self.cuts_left and "left") if part]

    @abstractmethod
    def _bytes_of_pieces(self) -> list[bytes]:
        """The bytes of text that each id stands for; none for special tokens."""

    @cached_property
    def _pieces(self) -> list[bytes]:
        return self._bytes_of_pieces()

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """(vocab_size,): bytes of UTF-8 text that each id stands for, 0 for special tokens.

        Exact where decoding joins pieces; the space that sentencepiece may put before a text is
        counted. A WordPiece that begins a word has the space before it. An unknown has 1, the
        least that it can stand for, so that bits per byte are never too few.
        """
        counts = np.fromiter(map(len, self._pieces), dtype=np.int64, count=self.vocab_size)
        unknown = self.special.get("unk", -1)
        if list(self.special.values()).count(unknown) == 1:  # GPT-2's is its <|endoftext|>
            counts[unknown] = 1
        return counts

    @property
    def boundaries(self) -> tuple[int, int] | None:
        """The tokens at a document's start and end; None if there are none."""
        for start, end in BOUNDARIES:
            if start in self.special and end in self.special:
                return self.special[start], self.special[end]
        return None

    @cached_property
    def sentinels(self) -> tuple[int, ...]:
        """The ids of T5's ``<extra_id_0>``, ``<extra_id_1>``, …: as many as there are."""
        found = (self.token_to_id(f"<extra_id_{number}>") for number in count())
        return tuple(takewhile(lambda number: number is not None, found))  # type: ignore[arg-type]

    @property
    def text_end(self) -> int | None:
        """The token at a document's end, which a T5's tokenizer has without one at its start."""
        return self.boundaries[1] if self.boundaries is not None else self.special.get("eos")

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values()).union(self.sentinels)

    @property
    def continuation(self) -> NDArray[np.bool_]:
        """(vocab_size,): whether a token continues the word before it."""
        tokens = map(self.id_to_token, range(self.vocab_size))
        if self.kind == "wordpiece":
            flags = [token.startswith("##") for token in tokens]
        else:
            flags = [not token.startswith(_STARTS) for token in tokens]
        result = np.asarray(flags, dtype=bool)
        result[list(self.special_ids)] = False
        return result

    @property
    def ordinary(self) -> NDArray[np.int64]:
        """Every id that is not a special token's."""
        return np.setdiff1d(np.arange(self.vocab_size), list(self.special_ids))


def roles_in(token_to_id: Any) -> dict[str, int]:
    """The special tokens that a vocabulary has, by role."""
    roles = {}
    for role, spellings in SPECIAL_SPELLINGS.items():
        for spelling in spellings:
            number = token_to_id(spelling)
            if number is not None:
                roles[role] = number
                break
    return roles


def write_transformers_config(
    folder: Path, tokenizer: Tokenizer, max_length: int | None, fields: Mapping[str, Any]
) -> None:
    """Write tokenizer_config.json, special_tokens_map.json and chat_template.jinja as transformers
    reads them."""
    tokens = {
        f"{role}_token": tokenizer.id_to_token(tokenizer.special[role])
        for role in TRANSFORMERS_ROLES
        if role in tokenizer.special
    }
    config: dict[str, Any] = {**fields, **tokens}
    if max_length is not None:
        config["model_max_length"] = max_length
    if tokenizer.cuts_left:
        config["truncation_side"] = "left"
    for name, value in (("tokenizer_config", config), ("special_tokens_map", tokens)):
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if tokenizer.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
