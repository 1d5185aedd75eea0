"""WordPiece, byte-level BPE, sentencepiece's unigram and BPE, and characters behind one class:
learned from text or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.tokenizers.base import Layout, Tokenizer
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.characters import learn_characters
from llmctl.tokenizers.chat import CHATML
from llmctl.tokenizers.loading import load
from llmctl.tokenizers.sentencepiece_training import learn_sentencepiece_bpe, learn_unigram
from llmctl.tokenizers.wordpiece import learn_wordpiece
from llmctl.tokenizers.words import count_words

LEARNERS: dict[str, Callable[..., Tokenizer]] = {
    "wordpiece": learn_wordpiece,
    "bpe": learn_bpe,
    "unigram": learn_unigram,
    "sentencepiece-bpe": learn_sentencepiece_bpe,
    "characters": learn_characters,
}


def learn(
    kind: str,
    texts: Iterable[str],
    vocab_size: int | None,
    *,
    cased: bool = False,
    split_pattern: str | None = None,
    exact: bool = True,
) -> Tokenizer:
    """Learn a tokenizer from texts, which may be iterated more than once.

    vocab_size: None for characters, which are as many as there are.
    cased: for wordpiece. split_pattern: for bpe; None is the default.
    exact: the size is the user's; otherwise a corpus with fewer pieces gives those, and one whose
    alphabet needs more gets them.
    Raises UsageError for an unknown kind, VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its characters alone don't fit.
    """
    if kind not in LEARNERS:
        raise UsageError(
            f"--tokenizer {kind!r} is not a kind{did_you_mean(kind, LEARNERS)}; "
            f"choose one of {', '.join(LEARNERS)}"
        )
    if not any(text and not text.isspace() for text in texts):
        raise InputError("the corpus has no text to learn a vocabulary from; give other files")
    options: dict[str, Any] = {}
    if kind != "characters":
        options = {"vocab_size": vocab_size, "exact": exact}
    if kind == "wordpiece":
        options["cased"] = cased
    if kind == "bpe" and split_pattern is not None:
        options["split_pattern"] = split_pattern
    learned = LEARNERS[kind](texts, **options)
    if "turn_start" in learned.special:
        learned.chat_template = CHATML
    return learned


__all__ = ["LEARNERS", "Layout", "Tokenizer", "count_words", "learn", "load"]
