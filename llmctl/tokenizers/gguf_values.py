"""A tokenizer as a GGUF file's head has it, checked by reading it back.

What llama.cpp can't cut as the tokenizer does is refused by name: another pattern than those that
it knows, unigram pieces with bytes for what no piece has, characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.errors import InputError
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.gguf_vocabulary import (
    BYTE,
    CONTROL,
    CUTS,
    KEY_PREFIX,
    NORMAL,
    ROLE_KEYS,
    TEMPLATE_KEY,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_tokenizer,
)
from llmctl.tokenizers.patterns import GPT2, WORD, byte_level
from llmctl.tokenizers.scored_pieces import is_byte, scores_of_merges
from llmctl.tokenizers.token_bytes import SPACE_MARK

PREFERRED = (
    "gpt-2",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "deepseek-r1-qwen",
    "gpt-4o",
    "tekken",
    "smollm",
)
"""The names that are written, of those that cut text in one way."""
READ_BACK_TEXTS = (
    "The quick brown fox, isn't it? I'LL say 'tis 12345.678!",
    "  two  spaces\ttab\n\n line ends \r\n and none at the end",
    "naïve Ünïcödé ŁÓDŹ ﬁ Ⅷ ½ 𝕏 don’t “quoted” … — –",
    "日本語のテキスト、中文。 한국어 עברית العربية हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\u00a0\u3000 \x07 def f(x):\n    return x**2  # <s> [MASK] </s>",
    "", " ", "\n", "a",
)  # fmt: skip
"""Texts whose ids must be the same when a tokenizer is read back."""


def tokenizer_values(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """What a head says of a tokenizer. rows: of the model's token embedding; llama.cpp wants a
    piece for each.

    Raises InputError for a tokenizer that no such file can hold.
    """
    writers = {"bpe": _bpe, "sentencepiece-bpe": _scored, "wordpiece": _wordpiece}
    if not isinstance(tokenizer, FastTokenizer) or tokenizer.kind not in writers:
        reason = {
            "unigram": "the files' kind for unigram pieces has no bytes for what no piece has",
            "characters": "the files have no kind for characters",
        }.get(tokenizer.kind, "it has no pieces that could be listed")
        raise InputError(
            f"a GGUF file can't hold the tokenizer, whose kind is {tokenizer.kind}: {reason}; "
            f"export to hf or onnx, or train with one of {', '.join(writers)}"
        )
    settings = tokenizer.settings()
    values = {
        **writers[tokenizer.kind](tokenizer, settings, rows),
        **_around(tokenizer),
        **{
            KEY_PREFIX + key: tokenizer.special[role]
            for role, key in ROLE_KEYS.items()
            if role in tokenizer.special
        },
    }
    if tokenizer.kind == "wordpiece":
        # llama.cpp begins a text with bos and ends it with the separator, whatever their names.
        values[f"{KEY_PREFIX}bos_token_id"] = tokenizer.special["cls"]
        values[f"{KEY_PREFIX}eos_token_id"] = tokenizer.special["sep"]
    if tokenizer.chat_template is not None:
        values[TEMPLATE_KEY] = tokenizer.chat_template
    _check_read_back(tokenizer, values, rows)
    return values


def _listed(tokenizer: FastTokenizer, settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The pieces by id with their types, as they are; where an id has none, a name for it."""
    added = {token["id"]: token for token in settings["added_tokens"]}
    unknown = settings["model"].get("unk_token")
    texts, types = [], []
    holes = set(tokenizer.holes)
    for number in range(rows):
        if number >= tokenizer.vocab_size or number in holes:
            texts.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        text = tokenizer.id_to_token(number)
        texts.append(text)
        if text == unknown:
            types.append(UNKNOWN)
        elif number in added or number in tokenizer.special_ids:
            special = number in tokenizer.special_ids or added[number]["special"]
            types.append(CONTROL if special else USER_DEFINED)
        else:
            types.append(NORMAL)
    return {"tokens": texts, "token_type": np.asarray(types, dtype=np.int32)}


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {KEY_PREFIX + name: value for name, value in values.items()}


def _bpe(tokenizer: FastTokenizer, settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    model = settings["model"]
    normalizer = (settings["normalizer"] or {}).get("type")
    whole = bool(model.get("ignore_merges"))
    for name in PREFERRED:
        cut = CUTS[name]
        same = _state(cut.pre_tokenizer()) == _without_offsets(settings["pre_tokenizer"])
        if same and cut.whole_words == whole and cut.composes == (normalizer == "NFC"):
            break
    else:
        raise InputError(
            "a GGUF file can't hold the tokenizer: the pattern by which it cuts text is none of "
            f"those that llama.cpp knows by a name ({', '.join(PREFERRED)}); export to hf or onnx"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    listed = _listed(tokenizer, settings, rows)
    return _named({"model": "gpt2", "pre": name, **listed, "merges": merges})


def _state(part: Any) -> Any:
    return _without_offsets(json.loads(part.__getstate__()))


def _without_offsets(settings: Any) -> Any:
    """A part's settings without what decides no ids; ByteLevel's own pattern is GPT-2's."""
    if isinstance(settings, dict):
        if settings.get("type") == "ByteLevel" and settings.get("use_regex"):
            own = {**settings, "add_prefix_space": False, "use_regex": False}
            cut = _state(byte_level(GPT2))
            return [cut, own] if settings["add_prefix_space"] else cut
        return {k: _without_offsets(v) for k, v in settings.items() if k != "trim_offsets"}
    return list(map(_without_offsets, settings)) if isinstance(settings, list) else settings


def _scored(tokenizer: FastTokenizer, settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    scores = scores_of_merges(tokenizer)
    words = {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Isolated", "invert": False}
    normalizer, splitter = settings["normalizer"] or {}, settings["pre_tokenizer"]
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    steps = [step["type"] for step in parts]
    known: tuple[list[str], ...] = ([], ["Replace"], ["Prepend", "Replace"])
    if scores is None or splitter not in (None, words) or steps not in known:
        raise InputError(
            "a GGUF file can't hold the tokenizer: its pieces are merged or its text is cut in "
            "another way than sentencepiece's; export to hf or onnx"
        )
    listed = _listed(tokenizer, settings, rows)
    types: np.ndarray = listed["token_type"]
    texts = []
    for number, text in enumerate(listed["tokens"]):
        if types[number] == NORMAL and is_byte(text):
            types[number] = BYTE
        texts.append(text.replace(" ", SPACE_MARK) if types[number] == NORMAL else text)
    lowest = -float(len(scores) + 1)
    numbers = [
        scores.get(text, lowest) if types[number] == NORMAL else 0.0
        for number, text in enumerate(listed["tokens"])
    ]
    return _named(
        {
            "model": "llama",
            "tokens": texts,
            "token_type": types,
            "scores": np.asarray(numbers, dtype=np.float32),
            "add_space_prefix": "Prepend" in steps,
        }
    )


def _wordpiece(tokenizer: FastTokenizer, settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    rules = settings["normalizer"] or {}
    if (
        rules.get("type") != "BertNormalizer"
        or not rules["clean_text"]
        or not rules["handle_chinese_chars"]
        or (settings["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer"
    ):
        raise InputError(
            "a GGUF file can't hold the tokenizer: its rules for text are not BERT's; export to hf "
            "or onnx"
        )
    if {"cls", "sep", "pad", "unk"} - tokenizer.special.keys():
        raise InputError("a GGUF file can't hold a WordPiece without [CLS], [SEP], [PAD] and [UNK]")
    listed = _listed(tokenizer, settings, rows)
    types = listed["token_type"]
    if UNUSED in types:
        raise InputError("a GGUF file can't hold a WordPiece whose ids have gaps; export to hf")
    texts = [
        text
        if types[number] != NORMAL
        else text[2:]
        if text.startswith("##")
        else SPACE_MARK + text
        for number, text in enumerate(listed["tokens"])
    ]
    lower, strips = bool(rules["lowercase"]), rules["strip_accents"]
    return _named(
        {
            "model": "bert",
            "pre": "default",
            "tokens": texts,
            "token_type": types,
            "token_type_count": 2,
            "normalizer.lowercase": lower,
            "normalizer.strip_accents": lower if strips is None else bool(strips),
        }
    )


def _around(tokenizer: Tokenizer) -> dict[str, bool]:
    """Whether llama.cpp is to put a token before and behind a text."""
    layout, special = tokenizer.layout, tokenizer.special
    starts: list[tuple[int | None, ...]] = [(), (special.get("bos"),), (special.get("cls"),)]
    ends: list[tuple[int | None, ...]] = [(), (special.get("eos"),), (special.get("sep"),)]
    if layout.before not in starts or layout.after not in ends:
        raise InputError(
            "a GGUF file can't hold the tokenizer: it puts "
            f"{[*map(tokenizer.id_to_token, (*layout.before, *layout.after))]} around a text"
        )
    sep = bool(layout.after) and tokenizer.kind == "wordpiece"
    return {
        f"{KEY_PREFIX}add_bos_token": bool(layout.before),
        f"{KEY_PREFIX}add_eos_token": bool(layout.after) and not sep,
        f"{KEY_PREFIX}add_sep_token": sep,
    }


def _check_read_back(tokenizer: Tokenizer, values: Mapping[str, Any], rows: int) -> None:
    again = read_tokenizer(Path("the GGUF file"), values, rows)
    for text in READ_BACK_TEXTS:
        if tokenizer.encode(text) != again.encode(text):
            raise InputError(
                f"a GGUF file can't hold the tokenizer: {text!r} would have other ids there; "
                "export to hf or onnx"
            )
