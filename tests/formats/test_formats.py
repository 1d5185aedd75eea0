"""A format is a folder of code and a line in the table: shown by one that is made up here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from llmctl import tokenizers
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.formats import FORMATS
from llmctl.formats.base import Pretrained
from llmctl.formats.description import Purpose
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.formats.open import input_record, open_folder, open_model
from llmctl.models import ARCHITECTURES
from llmctl.stages.predict import predict
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.tensors import read_tensor, tensor_heads


class Toy:
    """Folders with ``toy.json``, and our tensors under our names in ``toy.safetensors``."""

    name = "toy"

    def recognises(self, path: Path) -> bool:
        """Whether there is a description."""
        return (path / "toy.json").is_file()

    def open(self, path: Path) -> Pretrained:
        """The model of a folder."""
        described = json.loads((path / "toy.json").read_text())
        spec, weights = ARCHITECTURES[described["arch"]], path / "toy.safetensors"
        return Pretrained(
            path=path,
            files=(path / "toy.json", weights),
            fields=described["more"],
            config=spec.config.model_validate(described["model"]),
            tokenizer=tokenizers.load(path),
            purpose=Purpose(described["kind"]),
            tensors=LazyTensors(
                {name: partial(read_tensor, weights, name) for name in tensor_heads(weights)}
            ),
            architecture=spec,
        )

    def save(
        self, folder: Path, model: Pretrained, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write a classifier."""
        folder.mkdir()
        described = {
            "arch": model.spec.name,
            "kind": model.kind,
            "model": model.config.model_dump(),
            "more": dict(extra),
        }
        (folder / "toy.json").write_text(json.dumps(described))
        save_file(model.classifier().state_dict(), folder / "toy.safetensors")
        tokenizer.save(folder)


def test_a_format_is_a_folder_of_code_and_a_line(
    tiny_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workspace, path = Workspace(tiny_workspace), tmp_path / "model"
    model, _ = open_model(workspace, "subjects")
    Toy().save(path, model, model.tokenizer, model.fields)
    with pytest.raises(InputError, match="no run or model folder"):
        open_model(workspace, str(path))
    monkeypatch.setitem(FORMATS, Toy.name, Toy())
    examples = [Example("the ship sails over the sea", None, None, "text 1")]
    assert list(predict(workspace, str(path), examples)) == list(
        predict(workspace, "subjects", examples)
    )
    assert input_record(*open_model(workspace, str(path))).digest == open_folder(path).digest()


def test_an_adapter_without_its_base_is_no_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="names no base_model_name_or_path; write the folder"):
        open_model(Workspace(tmp_path / "w"), str(tmp_path))
