"""The special tokens around a text are those that transformers puts there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.tables.encoded import add_special_tokens
from llmctl.errors import InputError
from llmctl.tokenizers import load
from tests.foreign_models import learned, save_tokenizer

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "gpt2": ("gpt2", {}),
    "gpt2 that adds bos": ("gpt2", {"add_bos_token": True}),
    "gpt2 that adds eos": ("gpt2", {"add_eos_token": True}),
    "qwen": ("qwen", {}),
    "qwen without bos that adds it": ("qwen", {"add_bos_token": True}),
    "llama": ("llama", {}),
    "llama that adds both": ("llama", {"add_bos_token": True, "add_eos_token": True}),
    "llama that adds nothing": ("llama", {"add_bos_token": False, "add_eos_token": False}),
    "ours": ("ours", {}),
}
TEXTS = [("the ship", None), ("the ship", "sails over"), ("the ship", ""), ("", "sails")]


def ids_of(tokenizer: Any, first: str, second: str | None) -> tuple[list[int], list[int]]:
    """Ours, and which of two segments each is in."""
    encode = tokenizer.encode
    pair = None if second is None else encode(second)
    example = add_special_tokens(encode(first), pair, tokenizer.layout, max_length=64)
    ids = example.ids.tolist()
    return ids, [int(place >= example.second) for place in range(len(ids))]


def in_transformers(tokenizer: Any, first: str, second: str | None) -> Any:
    """In lists, as an empty second text is none otherwise."""
    return tokenizer([first], None if second is None else [second])


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_pairs_are_laid_out_as_transformers_does_it(tmp_path: Path, kind: str):
    transformers = pytest.importorskip("transformers")
    like, config = KINDS[kind]
    save_tokenizer(tmp_path, like, **config)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load(tmp_path)
    for first, second in TEXTS:
        found, segments = ids_of(ours, first, second)
        expected = in_transformers(theirs, first, second)
        assert [found] == expected["input_ids"], (first, second)
        if like == "bert":
            assert [segments] == expected["token_type_ids"]


@pytest.mark.reference
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("bert")])
def test_what_a_decoder_is_trained_on_is_what_its_files_say(tmp_path: Path, kind: str):
    transformers = pytest.importorskip("transformers")
    like, config = KINDS[kind]
    save_tokenizer(tmp_path / "before", like, **config)
    tokenizer = load(tmp_path / "before").for_decoder(pairs=True)
    assert tokenizer.for_decoder(pairs=True) is tokenizer
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    tokenizer.save(tmp_path / "after")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "after")
    again = load(tmp_path / "after")
    for first, second in TEXTS:
        found, _ = ids_of(tokenizer, first, second)
        assert [found] == in_transformers(theirs, first, second)["input_ids"]
        assert found == ids_of(again, first, second)[0]
        text = tokenizer.encode(first)
        assert found[: len(text) + 1] == [bos, *text]
        if second is not None:
            assert found[len(text) + 1 :] == [eos, *tokenizer.encode(second)]


def test_a_language_model_of_ours_has_its_tokenizer_as_it_is(tmp_path: Path):
    for like in ("ours", "llama"):
        save_tokenizer(tmp_path / like, like)
        tokenizer = load(tmp_path / like)
        assert tokenizer.for_decoder() is tokenizer
    save_tokenizer(tmp_path / "bert", "bert")
    encoder = load(tmp_path / "bert")
    assert encoder.for_encoder() is encoder
    with pytest.raises(InputError, match="no token for bos and eos"):
        encoder.for_decoder(pairs=True)


@pytest.mark.parametrize("value", ["yes", 1, True, False])
def test_what_is_added_where_the_tokenizers_file_can_not_say_it(tmp_path: Path, value: object):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": value}))
    rust = json.loads(learned("bpe")._rust.to_str())["model"]  # type: ignore[attr-defined]
    (tmp_path / "vocab.json").write_text(json.dumps(rust["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in rust["merges"])
    (tmp_path / "merges.txt").write_text(merges + "\n")
    if isinstance(value, bool):
        tokenizer = load(tmp_path)
        eos = tokenizer.special["eos"]
        assert tokenizer.layout.before == ((eos,) if value else ())
        assert tokenizer.for_decoder().layout.before == (eos,)
        return
    with pytest.raises(InputError, match=r"add_bos_token is .*, not true or false"):
        load(tmp_path)
