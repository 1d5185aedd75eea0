"""Folders of n-gram models: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmctl import tokenizers
from llmctl.errors import InputError
from llmctl.formats.ngram.folder import MODEL_TYPE, NGRAM_WEIGHTS, NgramFormat
from llmctl.formats.open import open_folder
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.model import NgramModel
from llmctl.models.ngram.smoothing import NgramConfig, train
from llmctl.tokenizers import Tokenizer

TEXTS = ["the sea is wide and the waves are high", "the waves rise and the ship sails over the sea"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.learn("bpe", TEXTS, 300, exact=False)


def trained(tokenizer: Tokenizer, config: NgramConfig) -> NgramModel:
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    rows = [[bos, *tokenizer.encode(text), eos] for text in TEXTS]
    block = TokenBlock(np.concatenate(rows), np.array([0, len(rows[0])]))
    return train([block], tokenizer.vocab_size, bos, config, dtype=np.float32).model


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    config = NgramConfig(order=3)
    NgramFormat().save(
        tmp_path / "model", trained(tokenizer, config), tokenizer, config.model_dump()
    )
    return tmp_path / "model"


@pytest.mark.parametrize(
    "fields",
    [{}, {"order": 1}, {"order": 60}, {"smoothing": "katz"}, {"smoothing": "add-k", "k": 2}],
)
def test_what_is_written_is_read(tokenizer: Tokenizer, tmp_path: Path, fields: dict[str, Any]):
    config = NgramConfig.model_validate(fields)
    model = trained(tokenizer, config)
    NgramFormat().save(tmp_path / "model", model, tokenizer, config.model_dump())
    assert NgramFormat().recognises(tmp_path / "model")
    read = open_folder(tmp_path / "model")
    assert read.config == config
    assert read.tokenizer.digest() == tokenizer.digest()
    tables = read.ngram()
    assert tables.parameters == model.parameters
    rows = [tokenizer.special["bos"], *tokenizer.encode("the ship is high over the waves")]
    block = TokenBlock(np.array(rows), np.array([0]))
    assert tables.log_probabilities(block).tolist() == model.log_probabilities(block).tolist()


def test_other_folders_are_none(tmp_path: Path, folder: Path):
    assert not NgramFormat().recognises(tmp_path)
    for content in ("[]", "{", '{"model_type": "bert"}', "\udcff"):
        (folder / "config.json").write_text(content, errors="surrogateescape")
        assert not NgramFormat().recognises(folder)
        with pytest.raises(
            InputError, match=r"(config\.json is damaged|model\.safetensors is missing)"
        ):
            open_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"order": 4}, "not the tensors of order 4"),
        ({"order": 2}, "not the tensors of order 2"),
        ({"order": None}, "order: "),
        ({"smoothing": "none"}, "smoothing: "),
        ({"llmctl_tokenizer": "0"}, "don't belong together"),
    ],
)
def test_a_configuration_of_another_model(folder: Path, fields: dict[str, Any], says: str):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(InputError, match=says) as error:
        open_folder(folder).ngram()
    assert "\n" not in str(error.value)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name].copy())

    return edit


def with_entry(place: int, value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda tensors: tensors.pop("3.word"), "not the tensors"),
        (changed("1.probability", lambda a: a[:-1]), "tokens and the tokenizer"),
        (changed("1.probability", with_entry(3, np.nan)), "no probabilities"),
        (changed("2.probability", with_entry(0, 1.5)), "no probabilities"),
        (changed("2.probability", with_entry(0, 0.0)), "no probabilities"),
        (changed("2.probability", lambda a: a[1:]), "don't fit together"),
        (changed("2.probability", lambda a: a.reshape(1, -1)), "of 2 dimensions"),
        (changed("2.word", lambda a: a.astype(np.float32)), "2.word is float32"),
        (changed("3.backoff", with_entry(1, np.inf)), "not positive numbers"),
        (changed("3.backoff", lambda a: a[1:]), "don't fit together"),
        (changed("3.first", with_entry(0, 1)), "does not rise"),
        (changed("3.first", with_entry(5, 4_000_000_000)), "does not rise"),
        (changed("3.first", with_entry(-1, 4_000_000_000)), "does not rise"),
        (changed("3.first", lambda a: a[:0]), "don't fit together"),
        (changed("3.word", with_entry(0, 65535)), "beyond the vocabulary"),
    ],
)
def test_tables_in_which_looking_up_would_go_wrong(
    folder: Path, edit: Callable[[dict[str, Any]], None], says: str
):
    tensors = load_file(folder / NGRAM_WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / NGRAM_WEIGHTS)
    with pytest.raises(InputError, match=says) as error:
        open_folder(folder).ngram()
    assert "copy the whole folder again" in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "empty"])
def test_a_file_that_is_none(folder: Path, damage: str):
    path = folder / NGRAM_WEIGHTS
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": content[:-100], "other": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(InputError, match=r"ngram\.safetensors"):
        open_folder(folder)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path):
    other = tokenizers.learn("bpe", ["quite another text, with other pieces"], 280, exact=False)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(InputError, match="don't belong together"):
        open_folder(folder)


def test_the_kind_is_ours(folder: Path):
    assert json.loads((folder / "config.json").read_text())["model_type"] == MODEL_TYPE
