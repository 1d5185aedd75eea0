"""WordPiece as BERT has it: words split at spaces and punctuation, each Chinese character a word,
words greedily matched against a vocabulary whose ``##`` pieces continue a word.

The vocabulary is learned by merging the most frequent pair, as the `tokenizers` library does
(Google's own learner was never published). That trainer numbers the ``##`` characters in the
order of a hash map, so ties fall differently from run to run; here every character has its number
beforehand, and the result is the same each time, with any number of threads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from llmctl.errors import InputError
from llmctl.tokenizers.base import CJK, FastTokenizer, VocabularyError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 100
"""Longer words become [UNK], as in BERT."""
COVERAGE = 0.9999
"""Rare characters are left out of the alphabet once the rest covers this share of the text …"""
SMALL_ALPHABET = 1000
"""… but an alphabet up to this size is kept whole."""
MIN_PAIR_COUNT = 2
"""A pair seen once tells nothing about other text."""

CACHE_WORDS = 1 << 19
"""Words remembered by the fast path: about 100 MB at most."""
CACHE_WORD_LENGTH = 32
"""Longer runs (of Chinese, of base64) seldom come again."""

# Characters that str.split() takes for spaces and BERT removes, joining what is around them.
_JOINED_BY_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_CJK = re.compile(f"[{CJK}]")


class WordPieceTokenizer(FastTokenizer):
    """BERT's tokenizer, with a fast path that looks whole words up.

    Most words of a text have been seen before, and BERT's rules never look across a space: so a
    text is split at spaces and each word's ids come from a table, filled by the exact rules.
    """

    def __init__(self, rust: RustTokenizer) -> None:
        super().__init__("wordpiece", rust)
        self._ids_of_word: dict[str, tuple[int, ...]] = {}

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        words_of_text = [[text] if _JOINED_BY_BERT.search(text) else text.split() for text in texts]
        table = self._ids_of_word
        unseen = list(
            dict.fromkeys(w for w in chain.from_iterable(words_of_text) if w not in table)
        )
        passing = []
        if unseen:
            encodings = self._rust.encode_batch_fast(unseen, add_special_tokens=False)
            for word, encoding in zip(unseen, encodings, strict=True):
                if len(word) > CACHE_WORD_LENGTH or len(table) >= CACHE_WORDS:
                    passing.append(word)
                table[word] = tuple(encoding.ids)
        ids: list[int] = []
        lengths = []
        for words in words_of_text:
            before = len(ids)
            ids.extend(chain.from_iterable(map(table.__getitem__, words)))
            lengths.append(len(ids) - before)
        for word in passing:
            del table[word]
        return np.asarray(ids, dtype=np.uint32), np.asarray(lengths, dtype=np.int64)

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        super().save(folder, max_length=max_length)
        lines = (self.id_to_token(number) + "\n" for number in range(self.vocab_size))
        (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")

    def _transformers_fields(self) -> dict[str, Any]:
        lowercase = getattr(self._rust.normalizer, "lowercase", True)
        return {"tokenizer_class": "BertTokenizer", "do_lower_case": bool(lowercase)}


def build_wordpiece(vocabulary: Sequence[str], *, cased: bool) -> WordPieceTokenizer:
    """BERT's tokenizer over a vocabulary in id order. Raises ValueError without its specials."""
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise ValueError(f"the vocabulary has no {' '.join(missing)}")
    ids = {token: number for number, token in enumerate(vocabulary)}
    rust = _bert_rules(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD), cased)
    rust.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    rust.decoder = decoders.WordPiece()
    return WordPieceTokenizer(rust)


def learn_wordpiece(
    texts: Iterable[str], vocab_size: int, *, cased: bool = False
) -> WordPieceTokenizer:
    """Learn a vocabulary. ``texts`` is iterated twice.

    Raises InputError if the corpus can't fill the vocabulary or its alphabet doesn't fit.
    """
    rust = _bert_rules(WordPiece(unk_token="[UNK]"), cased)
    counts = _character_counts(texts, rust.normalizer)
    alphabet = _alphabet(counts)
    # Punctuation and Chinese characters stand alone, so they never continue a word.
    isolated = set(_isolated(rust.pre_tokenizer, alphabet))
    continuations = [f"##{character}" for character in alphabet if character not in isolated]
    base = [*SPECIAL, *alphabet, *continuations]
    if len(base) > vocab_size:
        raise InputError(
            f"--vocab-size {vocab_size}: the corpus's alphabet alone needs {len(base)} pieces; "
            f"use --vocab-size {len(base)} or more"
        )
    trainer = WordPieceTrainer(
        # It also numbers the characters left out of the alphabet, alone and with ##.
        vocab_size=vocab_size + 2 * len(counts),
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=base,
        show_progress=False,
    )
    rust.train_from_iterator(iter(texts), trainer)
    learned = rust.get_vocab()
    in_merge_order = sorted(learned, key=learned.__getitem__)
    fixed = set(base)
    merged = [
        token for token in in_merge_order if token not in fixed and _character_count(token) > 1
    ]
    vocabulary = [*base, *merged][:vocab_size]
    if len(vocabulary) < vocab_size:
        raise VocabularyError(vocab_size, len(vocabulary))
    return build_wordpiece(vocabulary, cased=cased)


def _bert_rules(model: WordPiece, cased: bool) -> RustTokenizer:
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=not cased, lowercase=not cased
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return rust


def _character_count(token: str) -> int:
    return len(token.removeprefix("##"))


def _isolated(pre_tokenizer: Any, characters: Sequence[str]) -> list[str]:
    """The characters that always stand alone: Chinese ones and what BERT calls punctuation."""
    return [
        character
        for character in characters
        if _CJK.match(character)
        or len(pre_tokenizer.pre_tokenize_str(f"a{character}a")) == 3  # a, the character, a
    ]


def _character_counts(texts: Iterable[str], normalizer: Any) -> Counter[str]:
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in normalizer.normalize_str(character):
            if not normal.isspace():
                counts[normal] += count
    if not counts:
        raise InputError("the corpus has no text to learn a vocabulary from; give other files")
    return counts


def _alphabet(counts: Counter[str]) -> list[str]:
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    enough, covered = COVERAGE * counts.total(), 0
    kept: list[str] = []
    for character in ranked:
        if len(kept) >= SMALL_ALPHABET and covered >= enough:
            break
        kept.append(character)
        covered += counts[character]
    return sorted(kept)
