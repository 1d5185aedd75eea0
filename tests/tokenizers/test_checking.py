"""Tokenizer files of others: nothing is believed before it is checked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer

from llmctl.errors import InputError
from llmctl.tokenizers import load
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.hf_config import CONFIG
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, build_wordpiece

BPE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "é": 3, "aé": 4},
        "merges": [["a", "b"], ["a", "é"]],
    },
}
UNIGRAM: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0], ["a", -2.0]], "unk_id": 0},
}


def added(content: Any, number: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def written(folder: Path, settings: Any, **model: Any) -> Path:
    settings = copy.deepcopy(settings)
    settings["model"].update(model)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"vocab": {"a": 0, "b": 10**7}, "merges": []}, "'b' has id 10000000, and there are 2"),
        ({"vocab": {"a": 0, "b": 2**63}, "merges": []}, "'b' has id 9223372036854775808, and"),
        ({"vocab": {"a": 0, "b": 0}, "merges": []}, "'b' has id 0, which another piece has"),
        ({"vocab": {"a": 0, "b": -1}, "merges": []}, "'b' has -1, not an id"),
        ({"vocab": {"a": 0, "b": 1.5}, "merges": []}, "'b' has 1.5, not an id"),
        ({"vocab": {"a": 0, "b": True}, "merges": []}, "'b' has True, not an id"),
        ({"continuing_subword_prefix": "f"}, "continuing_subword_prefix 'f' of a BPE is not"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix '##' of a BPE is not"),
        ({"type": "WordPiece", "continuing_subword_prefix": "f"}, "'f' of a WordPiece is not"),
        ({"type": "WordPiece", "unk_token": "no"}, "unk_token 'no' is no piece of the vocabulary"),
        ({"dropout": 0.5}, "with dropout 0.5 the ids of a text are a matter of chance"),
        ({"dropout": 7}, "dropout"),
        ({"vocab": 3}, "is not a tokenizer.json"),
        ({"merges": [["a", "x"]]}, "is not a tokenizer.json"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(
    tmp_path: Path, model: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=rf"tokenizer\.json.*{says}"):
        load(written(tmp_path, BPE, **model))


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (added("<x>", 10), "added token '<x>' has id 10, where the vocabulary makes it 5"),
        (added("<x>", 2), "added token '<x>' has id 2, where the vocabulary makes it 5"),
        (added("ab", 5), "added token 'ab' has id 5, where the vocabulary makes it 2"),
        (added("<x>", None), "added token '<x>' has id None"),
        (added(None, 5), "not a token"),
        (3, "not a token"),
    ],
)
def test_an_added_token_has_the_id_that_it_says(tmp_path: Path, token: Any, says: str) -> None:
    """The library gives it another, and saves that."""
    with pytest.raises(InputError, match=says):
        load(written(tmp_path, {**BPE, "added_tokens": [token]}))


@pytest.mark.parametrize("settings", [BPE, UNIGRAM])
def test_what_agrees_is_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    size = len(settings["model"]["vocab"])
    tokens = [
        added("a", 2 if settings is UNIGRAM else 0),
        added("<x>", size),
        added("<y>", size + 1),
    ]
    path = written(tmp_path, {**settings, "added_tokens": tokens})
    tokenizer = load(path)
    assert [tokenizer.token_to_id(name) for name in ("<x>", "<y>")] == [size, size + 1]
    theirs = RustTokenizer.from_file(str(path))
    assert tokenizer.token_to_id("a") == theirs.token_to_id("a")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}', "nul\0", '{"a": 1, "a": 2}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(path)


def vocabulary(folder: Path, **rules: Any) -> Path:
    (folder / "vocab.txt").write_text("\n".join([*WORDPIECE_SPECIAL, "a", "A"]), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(rules))
    return folder / "vocab.txt"


@pytest.mark.parametrize("rule", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", ["false", 1, [], 0.5])
def test_rules_of_another_type_are_refused(tmp_path: Path, rule: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{rule} is .+, not true, false or null"):
        load(vocabulary(tmp_path, **{rule: value}))
    load(vocabulary(tmp_path, **{rule: None}))


@pytest.mark.parametrize(
    "template",
    [
        [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}],
        {"default": "a"},
    ],
)
def test_of_several_chat_templates_the_default_is_taken(tmp_path: Path, template: Any) -> None:
    assert load(vocabulary(tmp_path, chat_template=template)).chat_template == "a"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (["a"], "lists what are no templates"),
        ([{"name": "tool_use", "template": "b"}], "tool_use none is called default"),
        ([{"name": "default", "template": 3}], "is no text"),
        (3, "is no text"),
    ],
)
def test_chat_templates_without_a_default_are_refused(
    tmp_path: Path, template: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        load(vocabulary(tmp_path, chat_template=template))


def test_a_piece_of_sentencepiece_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Field 1 of a ModelProto is a piece; its field 1 the text, field 2 a score, field 3 a type."""

    def piece(text: bytes, kind: int = 1) -> bytes:
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0\x18" + bytes([kind])
        return b"\x0a" + bytes([len(inner)]) + inner

    path = tmp_path / "x.model"
    path.write_bytes(piece(b"<unk>", 2) + piece(b"a"))
    assert load(path).vocab_size == 2
    path.write_bytes(piece(b"<unk>", 2) + piece(b"a\xff"))
    with pytest.raises(InputError, match=r"x\.model: a piece is not UTF-8"):
        load(path)


def test_a_rank_far_beyond_the_others_is_refused(tmp_path: Path) -> None:
    import base64

    lines = [base64.b64encode(bytes([n])) + f" {n}".encode() for n in range(256)]
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"\n".join([*lines, base64.b64encode(b"ab") + b" 10000000"]))
    with pytest.raises(InputError, match="has id 10000000, and there are 257 pieces"):
        load(path)


def test_the_smallest_vocabulary_of_bytes_is_named_and_works() -> None:
    texts = ["a few words, a few words"]
    with pytest.raises(InputError, match="need 261; use --vocab-size 261 or more"):
        learn_bpe(texts, 260)
    assert learn_bpe(texts, 261).vocab_size == 261


def test_our_own_files_pass(tmp_path: Path) -> None:
    made = build_wordpiece([*WORDPIECE_SPECIAL, "a", "##b"], cased=False)
    made.save(tmp_path)
    assert load(tmp_path).digest() == made.digest()
