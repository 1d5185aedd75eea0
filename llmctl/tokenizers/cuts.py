"""Where a long text may be cut so that its parts, encoded one by one, have the ids of the whole.

The tokenizers' library takes about a hundred bytes of memory for each character of a text, so a
text of a hundred megabytes must be encoded in parts. Two rules say where:

* ``between_words``: before a space, a line end or a mark of punctuation that a letter or digit
  precedes. The patterns of byte-level tokenizers look at no more than the character behind a part
  and never back, none of their parts goes over such a place, and their one look ahead, for white
  space, is not changed by a cut behind a letter. BERT's rules cut at every such place too.
* ``between_pieces``: between two characters that no piece has side by side. Merges can't go over
  it, and the best path of a unigram model is the best of both sides. (Its scores are added up from
  the start of a word: two ways of exactly equal score could be told apart by their rounding.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unicodedata import ucd_3_2_0

from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, QWEN, by_words, byte_level

LONG = 1 << 20
"""Characters; a text up to this length is encoded whole."""
STRETCH = 1 << 18
"""A longer text is encoded in stretches of at most this, if it has places to cut."""
MAX_STRETCH = 1 << 22
"""Without such a place for so long, it takes too much memory."""

PART = 1 << 16
"""Characters in each part of a long text that is learned from."""
LOOK_BACK = 1 << 12
"""Characters searched for the place to cut one."""

CUT_BEFORE = " \t\n,.;:!?，。！？、；："
"""None of them is composed with the character before it, nor begins a contraction."""

MAX_TOKEN_NAME = 16
"""Characters of a special token's name."""

Rule = Callable[[str, int], bool]
"""Whether a text may be cut before a place, which is neither its start nor its end."""


def between_words(text: str, place: int) -> bool:
    """The rule of byte-level patterns and of BERT.

    Letters are those of an old Unicode: libraries know younger ones from different versions on.
    """
    return text[place] in CUT_BEFORE and ucd_3_2_0.category(text[place - 1])[0] in "LN"


def between_pieces(pieces: Iterable[str]) -> Rule:
    """The rule of tokenizers that have pieces across anything but spaces."""
    together = {
        piece[place : place + 2] for piece in pieces for place in range(max(len(piece) - 1, 0))
    }

    def rule(text: str, place: int) -> bool:
        return (
            text[place - 1 : place + 1] not in together
            # The names of special tokens are looked for before pieces are.
            and "<" not in text[max(place - MAX_TOKEN_NAME, 0) : place]
        )

    return rule


def in_parts(texts: Iterable[str]) -> Iterator[str]:
    """Texts to learn words from, long ones in parts that cut no word, if words are of any common
    length: the library holds many texts at a time."""
    for text in texts:
        begin = 0
        while len(text) > LONG and len(text) - begin > PART:
            wanted = begin + PART
            places = range(wanted, max(wanted - LOOK_BACK, begin), -1)
            end = next((place for place in places if between_words(text, place)), wanted)
            yield text[begin:end]
            begin = end
        yield text[begin:] if begin else text


def stretches(
    text: str,
    rule: Rule | None,
    *,
    long: int = LONG,
    stretch: int = STRETCH,
    most: int = MAX_STRETCH,
) -> Iterator[tuple[int, int]]:
    """Begin and end of the parts of a text, each at most ``stretch`` characters where the rule
    finds a place, else up to the first that it finds. Raises NoPlace after ``most``."""
    if len(text) <= long:
        yield 0, len(text)
        return
    begin = 0
    while len(text) - begin > stretch:
        end = _place(text, rule, begin, begin + stretch, min(begin + most, len(text)))
        yield begin, end
        begin = end
    yield begin, len(text)


def _place(text: str, rule: Rule | None, begin: int, wanted: int, last: int) -> int:
    if rule is not None:
        for place in range(wanted, begin, -1):
            if rule(text, place):
                return place
        for place in range(wanted + 1, last):
            if rule(text, place):
                return place
    if last == len(text):
        return last
    raise NoPlace(begin, last - begin)


class NoPlace(Exception):
    """A text that goes on for too long without a place to cut."""

    def __init__(self, begin: int, length: int) -> None:
        super().__init__(begin, length)
        self.begin, self.length = begin, length


def _state(part: Any) -> Any:
    """A part's settings, but for trimmed offsets, which decide no ids."""
    if part is None:
        return None
    settings = json.loads(part.__getstate__())
    for step in (settings, *settings.get("pretokenizers", ())):
        step.pop("trim_offsets", None)
    return settings


_BYTE_LEVEL = [
    *(_state(byte_level(pattern)) for pattern in (GPT2, GPT4, GPT4O, QWEN)),
    _state(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)),
]
_BERT = _state(pre_tokenizers.BertPreTokenizer())
_WORDS = _state(by_words())


def rule_of(rust: RustTokenizer) -> Rule | None:
    """The rule for a tokenizer whose settings are known to allow cuts; None for any other."""
    added: Iterable[AddedToken] = rust.get_added_tokens_decoder().values()
    if any(
        token.lstrip or token.rstrip or token.single_word or set(token.content) & set(CUT_BEFORE)
        for token in added
        if not token.special
    ):
        return None
    normalizer, splitter = _state(rust.normalizer), _state(rust.pre_tokenizer)
    kind = normalizer["type"] if normalizer else None
    if splitter in _BYTE_LEVEL and kind in (None, "NFC"):
        return between_words
    if splitter == _BERT and kind in (None, "BertNormalizer"):
        return between_words
    first = splitter["pretokenizers"][0] if splitter and "pretokenizers" in splitter else splitter
    if first == _WORDS and kind is None and _state(rust.model)["byte_fallback"]:
        return between_pieces(rust.get_vocab())
    return None
