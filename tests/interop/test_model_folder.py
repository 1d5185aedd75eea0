"""Model folders that are foreign, damaged, or have another's tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import InputError
from llmctl.interop.model_folder import read_model_folder
from llmctl.stages.inputs import open_model
from llmctl.workspace.artefacts import Workspace


@pytest.fixture
def folder(tiny_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_workspace / "runs" / "tiny" / "model", tmp_path / "model"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def made_elsewhere(folder: Path, **fields: Any) -> None:
    """Take away what only llmctl writes."""
    path = folder / "config.json"
    known = json.loads(path.read_text())
    theirs = {key: value for key, value in known.items() if not key.startswith("llmctl_")}
    path.write_text(json.dumps({**theirs, **fields}))


def edit_vocabulary(folder: Path, edit: Callable[[dict[str, int]], None]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    edit(value["model"]["vocab"])
    path.write_text(json.dumps(value))


def swap_two_pieces(vocabulary: dict[str, int]) -> None:
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def drop_a_piece(vocabulary: dict[str, int]) -> None:
    del vocabulary[max(vocabulary, key=vocabulary.__getitem__)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": 48}, r"model\.safetensors is not the model"),
        ({"hidden_size": 64}, r"model\.safetensors is not the model"),
        ({"num_attention_heads": 5}, "num_heads 5"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"vocab_size": 500}, "don't belong together"),
        ({"vocab_size": None}, "vocab_size"),
        ({"model_type": ["bert"]}, "model_type"),
    ],
)
def test_a_configuration_of_another_model(folder: Path, fields: dict[str, Any], says: str):
    change(folder / "config.json", **fields)
    with pytest.raises(InputError, match=says) as error:
        read_model_folder(folder).masked_lm()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", "3", "null"])
def test_a_configuration_that_is_none(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        read_model_folder(folder)


@pytest.mark.parametrize("edit", [swap_two_pieces, drop_a_piece])
def test_another_tokenizer_is_refused(folder: Path, edit: Callable[[dict[str, int]], None]):
    read_model_folder(folder)
    edit_vocabulary(folder, edit)
    with pytest.raises(InputError, match="don't belong together"):
        read_model_folder(folder)


def test_a_vocabulary_may_be_padded_in_the_models_of_others(folder: Path):
    made_elsewhere(folder, vocab_size=128)
    assert read_model_folder(folder).config.vocab_size == 128


def test_the_tokenizer_counts_in_the_digest_of_a_folder(folder: Path, tmp_path: Path):
    made_elsewhere(folder)
    workspace = Workspace(tmp_path / "w")
    _, before = open_model(workspace, str(folder))
    edit_vocabulary(folder, swap_two_pieces)
    _, after = open_model(workspace, str(folder))
    assert before.digest != after.digest


def test_the_folder_of_a_run_is_its_model(tiny_workspace: Path, tmp_path: Path):
    found, _ = open_model(Workspace(tmp_path / "w"), str(tiny_workspace / "runs" / "tiny"))
    assert found.path == tiny_workspace / "runs" / "tiny" / "model"
    with pytest.raises(InputError, match="no run or model folder 'some/dir'"):
        open_model(Workspace(tmp_path / "w"), "some/dir")
