"""A tokenizer from the files that people have: which layout they are in, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from llmctl.errors import InputError, UsageError, read_errors_naming
from llmctl.parsing import Malformed, parse_json
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.characters import CharacterTokenizer, takes_characters
from llmctl.tokenizers.checking import check_settings
from llmctl.tokenizers.fast import FastTokenizer, panics_told
from llmctl.tokenizers.gpt2 import MERGES_OF, load_merges
from llmctl.tokenizers.hf_config import CONFIG, read_companions, read_object, read_text
from llmctl.tokenizers.sentencepiece_model import T5_CLASSES, T5_EXTRA, SentencePieceTokenizer
from llmctl.tokenizers.tiktoken import holds_ranks, load_ranks
from llmctl.tokenizers.wordpiece import WordPieceTokenizer, build_wordpiece, looks_cased

MOST_EXTRA = 100_000
IN_A_FOLDER = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", *MERGES_OF)
"""What is looked for in a folder, in this order, before a rank file."""


def load(path: Path, *, cased: bool | None = None) -> Tokenizer:
    """Load a tokenizer: a folder (ours or Hugging Face's), a tokenizer.json, GPT-2's vocab.json
    with the merges.txt beside it, a sentencepiece .model, a .tiktoken or a BERT vocab.txt.

    Files beside it may name its special tokens and hold its chat template.
    cased: whether a vocab.txt is; None looks into the tokenizer_config.json beside it and, where
    that doesn't say, at the vocabulary: with capitals in it, it is cased.
    Raises InputError naming the file that is missing or malformed, UsageError where ``cased``
    contradicts the files or they have rules of their own.
    """
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file")
    tokenizer = _load_file(path, cased)
    read_companions(tokenizer, path.parent)
    return tokenizer


def _file_in(folder: Path) -> Path:
    for name in IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    ranked = sorted(folder.glob("*.tiktoken"))
    if len(ranked) > 1:
        raise InputError(f"{folder} has {len(ranked)} .tiktoken files; name the one to take")
    if ranked:
        return ranked[0]
    raise InputError(
        f"{folder} has no tokenizer.json, spiece.model, vocab.txt, vocab.json or .tiktoken; give a "
        "tokenizer's folder"
    )


def _load_file(path: Path, cased: bool | None) -> Tokenizer:
    vocabulary_of = {merges: vocabulary for vocabulary, merges in MERGES_OF.items()}
    if path.suffix == ".txt" and path.name not in vocabulary_of:
        return _load_vocabulary(path, cased)
    if cased is not None:
        raise UsageError(f"--cased is for a vocab.txt: {path} has its own rules; leave it out")
    if path.name in vocabulary_of:
        return load_merges(path.with_name(vocabulary_of[path.name]))
    if path.name in MERGES_OF:
        return load_merges(path)
    if path.suffix == ".json":
        return _load_json(path)
    if path.suffix == ".model":
        return _load_model(path)
    if path.suffix == ".tiktoken":
        return load_ranks(path)
    raise InputError(
        f"{path} is not a tokenizer: give a tokenizer.json, a vocab.json with its merges.txt, a "
        ".model, a .tiktoken or a vocab.txt"
    )


def _load_json(path: Path) -> Tokenizer:
    try:
        with read_errors_naming(path):
            text = path.read_bytes()
            settings = parse_json(text)
    except Malformed as error:
        where = f"line {error.line}: " if error.line else ""
        raise InputError(f"{path} is not a tokenizer.json: {where}{error}") from None
    check_settings(path, settings)
    try:
        with panics_told():
            rust = RustTokenizer.from_str(text.decode("utf-8-sig"))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is not a tokenizer.json: {error}") from None
    if not settings["model"].get("type"):  # older files don't name it
        settings = json.loads(rust.to_str())
    model = settings["model"]["type"]
    normalizer, splitter = settings.get("normalizer") or {}, settings.get("pre_tokenizer") or {}
    if model == "WordPiece":
        if normalizer.get("type") == "BertNormalizer" and splitter.get("type") == (
            "BertPreTokenizer"
        ):
            return WordPieceTokenizer(rust)
        return FastTokenizer("wordpiece", rust)
    if model == "BPE":
        return FastTokenizer(
            "sentencepiece-bpe" if settings["model"].get("byte_fallback") else "bpe", rust
        )
    if model == "Unigram":
        return FastTokenizer("unigram", rust)
    if model == "WordLevel" and takes_characters(json.loads(rust.to_str())):
        return CharacterTokenizer(rust)
    raise InputError(
        f"{path} holds a {model or 'nameless'} model; WordPiece, BPE, Unigram and WordLevel of "
        "characters are supported"
    )


def _load_model(path: Path) -> Tokenizer:
    try:
        model = path.read_bytes()
        if not model:  # sentencepiece takes it, and fails later
            raise InputError(f"{path} is empty; give a sentencepiece .model")
        if holds_ranks(model):
            return load_ranks(path)
        return SentencePieceTokenizer(model, _sentinels_beside(path.with_name(CONFIG)))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a sentencepiece model: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a piece is not UTF-8 ({error.object!r}); take the tokenizer's own file"
        ) from None


def _sentinels_beside(path: Path) -> int:
    """The sentinels that a T5's tokenizer_config.json says of its sentencepiece model."""
    fields = read_object(path)
    if fields.get("tokenizer_class") not in list(T5_CLASSES):
        return 0
    extra = fields.get("extra_ids", T5_EXTRA)
    if type(extra) is not int or not 0 <= extra <= MOST_EXTRA:
        raise InputError(
            f"{path}: extra_ids is {extra!r}, not a number of sentinels; mend the file"
        )
    return extra


def _load_vocabulary(path: Path, cased: bool | None) -> Tokenizer:
    lines = read_text(path, "a vocab.txt has one piece a line").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    vocabulary = [line.rstrip("\r") for line in lines]
    rules_path = path.with_name(CONFIG)
    rules = read_object(rules_path)
    for rule in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(rules.get(rule), bool | None):
            raise InputError(
                f"{rules_path}: {rule} is {rules[rule]!r}, not true, false or null; mend the file"
            )
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
            split_chinese=rules.get("tokenize_chinese_chars") is not False,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}; give the vocab.txt of a BERT") from None
