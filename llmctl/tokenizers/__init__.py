"""WordPiece, byte-level BPE and unigram behind one class: learned from text or loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.tokenizers.base import FastTokenizer, Tokenizer, count_words
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.unigram import SentencePieceTokenizer, learn_unigram
from llmctl.tokenizers.wordpiece import (
    WordPieceTokenizer,
    build_wordpiece,
    learn_wordpiece,
    looks_cased,
)

LEARNERS: dict[str, Callable[..., Tokenizer]] = {
    "wordpiece": learn_wordpiece,
    "bpe": learn_bpe,
    "unigram": learn_unigram,
}


def learn(
    kind: str,
    texts: Iterable[str],
    vocab_size: int,
    *,
    cased: bool = False,
    exact: bool = True,
) -> Tokenizer:
    """Learn a tokenizer from texts, which may be iterated more than once.

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
    options = {"cased": cased} if kind == "wordpiece" else {}
    return LEARNERS[kind](texts, vocab_size, exact=exact, **options)


def load(path: Path, *, cased: bool | None = None) -> Tokenizer:
    """Load a tokenizer: a folder (ours or Hugging Face's), a tokenizer.json, a sentencepiece
    .model or a BERT vocab.txt.

    cased: whether a vocab.txt is; None looks into the tokenizer_config.json beside it and, where
    that doesn't say, at the vocabulary: with capitals in it, it is cased.
    Raises InputError naming the file that is missing or malformed, UsageError where ``cased``
    contradicts the files or they have rules of their own.
    """
    if path.is_dir():
        for name in ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt"):
            if (path / name).is_file():
                return load(path / name, cased=cased)
        raise InputError(
            f"{path} has no tokenizer.json, spiece.model or vocab.txt; give a tokenizer's folder"
        )
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file")
    if path.suffix == ".txt":
        return _load_vocabulary(path, cased)
    if cased is not None:
        raise UsageError(f"--cased is for a vocab.txt: {path} has its own rules; leave it out")
    if path.suffix == ".json":
        return _load_json(path)
    if path.suffix == ".model":
        return _load_sentencepiece(path)
    raise InputError(f"{path} is not a tokenizer: give a tokenizer.json, a .model or a vocab.txt")


def _load_json(path: Path) -> Tokenizer:
    try:
        rust = RustTokenizer.from_str(path.read_text(encoding="utf-8"))
        value = json.loads(rust.to_str())  # older files don't name the model's type
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is not a tokenizer.json: {error}") from None
    model = value.get("model", {}).get("type", "")
    normalizer, splitter = value.get("normalizer") or {}, value.get("pre_tokenizer") or {}
    if model == "WordPiece":
        if normalizer.get("type") == "BertNormalizer" and splitter.get("type") == (
            "BertPreTokenizer"
        ):
            return WordPieceTokenizer(rust)
        return FastTokenizer("wordpiece", rust)
    kinds = {"BPE": "bpe", "Unigram": "unigram"}
    if model not in kinds:
        raise InputError(
            f"{path} holds a {model or 'nameless'} model; WordPiece, BPE and Unigram are supported"
        )
    return FastTokenizer(kinds[model], rust)


def _load_sentencepiece(path: Path) -> Tokenizer:
    try:
        model = path.read_bytes()
        if not model:  # sentencepiece takes it, and fails later
            raise InputError(f"{path} is empty; give a sentencepiece .model")
        return SentencePieceTokenizer(model)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a sentencepiece model: {error}") from None


def _load_vocabulary(path: Path, cased: bool | None) -> Tokenizer:
    lines = _read_text(path, "a vocab.txt has one piece a line").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    vocabulary = [line.rstrip("\r") for line in lines]
    rules_path = path.with_name("tokenizer_config.json")
    rules = _rules(rules_path)
    lower = rules.get("do_lower_case")
    if lower is not None and cased is not None and cased == bool(lower):
        raise UsageError(
            f"--cased: {rules_path} says do_lower_case = {str(bool(lower)).lower()}; leave the "
            "option out or mend the file"
        )
    if cased is None:
        cased = looks_cased(vocabulary) if lower is None else not lower
    try:
        return build_wordpiece(
            vocabulary,
            cased=cased,
            strip_accents=rules.get("strip_accents"),
            split_chinese=bool(rules.get("tokenize_chinese_chars", True)),
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}; give the vocab.txt of a BERT") from None


def _rules(path: Path) -> dict[str, Any]:
    """What transformers' tokenizer_config.json says, if it is there."""
    if not path.is_file():
        return {}
    try:
        rules = json.loads(_read_text(path, "it ought to be"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(rules, dict):
        raise InputError(f"{path} is not an object; take the tokenizer's own file")
    return rules


def _read_text(path: Path, ought: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not "
            f"UTF-8; {ought}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None


__all__ = ["LEARNERS", "Tokenizer", "count_words", "learn", "load"]
