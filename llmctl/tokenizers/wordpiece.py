"""WordPiece as BERT has it: words split at spaces and punctuation, each Chinese character a word,
words greedily matched against a vocabulary whose ``##`` pieces continue a word.

The vocabulary is learned by merging the most frequent pair, as the `tokenizers` library does
(Google's own learner was never published). That trainer numbers the characters in the order of a
hash map, so ties fall differently from run to run; here every character that may be in a piece has
its number beforehand and no other gets one, and the result is the same each time, with any number
of threads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from llmctl.tokenizers.cuts import in_parts
from llmctl.tokenizers.fast import FastTokenizer, panics_told
from llmctl.tokenizers.vocabulary_size import AlphabetError, VocabularyError, roomy
from llmctl.tokenizers.words import CJK

WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 100
"""Longer words become [UNK], as in BERT."""
COVERAGE = 0.9999
"""Rare characters are left out of the alphabet once the rest covers this share of the text."""
SMALL_ALPHABET = 1000
"""An alphabet up to this size is kept whole."""
MIN_PAIR_COUNT = 2
"""A pair seen once tells nothing about other text."""

CACHE_WORDS = 1 << 19
"""Words remembered by the fast path."""
CACHE_WORD_IDS = 8
"""Pieces of a remembered word at most: about 160 MB when the memory is full. Longer ones seldom
come again."""
GROUP_WORDS = 512
"""Words encoded in one call: that costs a quarter less than one by one."""

# Characters that str.split() takes for spaces and BERT removes, joining what is around them.
_JOINED_BY_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_CJK = re.compile(f"[{CJK}]")


class WordPieceTokenizer(FastTokenizer):
    """BERT's tokenizer, with a fast path that looks whole words up.

    Most words of a text have been seen before, and BERT's rules never look across a space: so a
    text is split at spaces and each word's ids come from a table, filled by the exact rules.
    """

    sentencewise = True

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
            for word, ids_of_word in zip(unseen, self._words(unseen), strict=True):
                if (
                    len(ids_of_word) > CACHE_WORD_IDS
                    or len(word) > MAX_WORD  # one [UNK]
                    or len(table) >= CACHE_WORDS
                    or _CJK.search(word)  # a run of Chinese is no word
                ):
                    passing.append(word)
                table[word] = ids_of_word
        ids: list[int] = []
        lengths = []
        for words in words_of_text:
            before = len(ids)
            ids.extend(chain.from_iterable(map(table.__getitem__, words)))
            lengths.append(len(ids) - before)
        for word in passing:
            del table[word]
        return np.asarray(ids, dtype=np.uint32), np.asarray(lengths, dtype=np.int64)

    def _words(self, words: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """The ids of each word by BERT's rules."""
        groups = [words[i : i + GROUP_WORDS] for i in range(0, len(words), GROUP_WORDS)]
        # Not encode_batch_fast: it doesn't say which word an id is of.
        with panics_told():
            encodings = self._rust.encode_batch(
                groups, is_pretokenized=True, add_special_tokens=False
            )
        for group, encoding in zip(groups, encodings, strict=True):
            word_of_id = np.asarray(encoding.word_ids, dtype=np.int64)
            ends = np.cumsum(np.bincount(word_of_id, minlength=len(group))).tolist()
            ids = encoding.ids
            for first, end in zip([0, *ends], ends, strict=False):
                yield tuple(ids[first:end])

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        super().save(folder, max_length=max_length)
        lines = (self.id_to_token(number) + "\n" for number in range(self.vocab_size))
        (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")

    def _transformers_fields(self) -> dict[str, Any]:
        if self.layout.first_segment is None:  # that class would put its own around a pair
            return super()._transformers_fields()
        rules = self._rust.normalizer
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": bool(rules.lowercase),
            "strip_accents": rules.strip_accents,
            "tokenize_chinese_chars": bool(rules.handle_chinese_chars),
        }


def build_wordpiece(
    vocabulary: Sequence[str],
    *,
    cased: bool,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
) -> WordPieceTokenizer:
    """BERT's tokenizer over a vocabulary in id order. Raises ValueError without its specials.

    strip_accents: None does so unless cased, as BERT does.
    """
    missing = [token for token in WORDPIECE_SPECIAL if token not in vocabulary]
    if missing:
        raise ValueError(f"the vocabulary has no {' '.join(missing)}")
    ids = {token: number for number, token in enumerate(vocabulary)}
    model = WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD)
    rust = _bert_rules(model, cased, strip_accents, split_chinese)
    rust.add_special_tokens([AddedToken(token, special=True) for token in WORDPIECE_SPECIAL])
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    rust.decoder = decoders.WordPiece()
    return WordPieceTokenizer(rust)


def learn_wordpiece(
    texts: Iterable[str], vocab_size: int, *, cased: bool = False, exact: bool = True
) -> WordPieceTokenizer:
    """Learn a vocabulary. ``texts`` is iterated twice.

    If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary, AlphabetError if
    its alphabet doesn't fit.
    """
    rust = _bert_rules(WordPiece(unk_token="[UNK]"), cased)
    counts = _character_counts(texts, rust.normalizer)
    alphabet = _alphabet(counts)
    # Punctuation and Chinese characters stand alone, so they never continue a word.
    isolated = set(_isolated(rust.pre_tokenizer, alphabet))
    continuations = [f"##{character}" for character in alphabet if character not in isolated]
    base = [*WORDPIECE_SPECIAL, *alphabet, *continuations]
    if len(base) > vocab_size:
        if exact:
            raise AlphabetError(vocab_size, len(base))
        vocab_size = roomy(len(base))
    trainer = WordPieceTrainer(
        # It counts the ## forms of characters that only stand alone too.
        vocab_size=vocab_size + 2 * len(alphabet),
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=base,
        # Characters left out of the alphabet are left out of pieces.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    with panics_told():
        rust.train_from_iterator(in_parts(texts), trainer)
    learned = rust.get_vocab()
    in_merge_order = sorted(learned, key=learned.__getitem__)
    fixed = set(base)
    merged = [
        token
        for token in in_merge_order
        if token not in fixed and len(token.removeprefix("##")) > 1
    ]
    vocabulary = [*base, *merged][:vocab_size]
    if exact and len(vocabulary) < vocab_size:
        raise VocabularyError(vocab_size, len(vocabulary))
    return build_wordpiece(vocabulary, cased=cased)


def looks_cased(vocabulary: Iterable[str]) -> bool:
    """Whether a vocabulary has capitals, special tokens and the like in brackets aside."""
    return any(
        piece.lower() != piece and not (piece.startswith("[") and piece.endswith("]"))
        for piece in vocabulary
    )


def _bert_rules(
    model: WordPiece, cased: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> RustTokenizer:
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=split_chinese,
        strip_accents=not cased if strip_accents is None else strip_accents,
        lowercase=not cased,
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return rust


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
