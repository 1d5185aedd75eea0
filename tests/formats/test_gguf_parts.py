"""Models in several GGUF files, cut as llama-gguf-split cuts them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.gguf.blocks import BLOCK_KINDS
from llmctl.formats.gguf.file import GgufFile, write_gguf
from llmctl.formats.gguf.writing import write_gguf_model
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.stages.import_model import import_model
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import learned

IDS = torch.tensor([[5, 9, 2, 30, 77, 140, 3]])


def cut(whole: Path, folder: Path, changed: Mapping[tuple[int, str], Any] | None = None) -> Path:
    """A file in three parts, the first without tensors; returns the first.

    changed: other values of (number, name)."""
    file = GgufFile(whole)
    names = list(file)
    shares = [[], names[:5], names[5:]]
    for number, share in enumerate(shares):
        said = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
        said |= {name: v for (n, name), v in (changed or {}).items() if n == number}
        values = {**(file.head if number == 0 else {}), **said}
        path = folder / f"m-{number + 1:05}-of-00003.gguf"
        write_gguf(path, values, file, dict.fromkeys(share, BLOCK_KINDS["F32"]))
    return folder / "m-00001-of-00003.gguf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    tokenizer, spec = learned("bpe"), ARCHITECTURES["llama"]
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "max_positions": 64}
    config = spec.config.model_validate({"vocab_size": tokenizer.vocab_size, **shape})
    write_gguf_model(path, CausalLM(spec.build(config)), tokenizer, {"quantisation": "f32"})
    return path


def logits(path: Path) -> torch.Tensor:
    model = open_folder(path).causal_lm().eval()
    with torch.no_grad():
        return model.logits(model.body(IDS))


def test_parts_are_the_model_that_was_cut(whole: Path, tmp_path: Path):
    first = cut(whole, tmp_path)
    last = first.with_name("m-00003-of-00003.gguf")
    assert torch.equal(logits(first), logits(whole))
    assert torch.equal(logits(last), logits(whole))
    model = open_folder(last)
    assert [path.name[:7] for path in model.files] == ["m-00001", "m-00002", "m-00003"]
    assert model.digest() == open_folder(first).digest()


def test_a_missing_part_is_named(whole: Path, tmp_path: Path):
    first = cut(whole, tmp_path)
    first.with_name("m-00002-of-00003.gguf").unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003\.gguf is missing, one of the 3 parts"):
        open_folder(first)


@pytest.mark.parametrize(
    ("number", "name", "value", "message"),
    [
        (1, "split.no", 2, r"m-00002.*split\.no is 2, not 1"),
        (2, "split.count", 4, r"m-00003.*split\.count is 4, not 3"),
        (2, "split.tensors.count", 9, r"m-00003.*split\.tensors\.count is 9, not"),
        (1, "split.no", "one", r"m-00002.*split\.no is not a whole number"),
        (0, "split.count", 2, r"one of 2 parts .*found by their names"),
        (0, "split.count", "3", r"split\.count is not a whole number"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    whole: Path, tmp_path: Path, number: int, name: str, value: Any, message: str
):
    first = cut(whole, tmp_path, {(number, name): value})
    with pytest.raises(InputError, match=message):
        open_folder(first)


def test_parts_of_too_few_tensors_are_refused(whole: Path, tmp_path: Path):
    changed = {(number, "split.tensors.count"): 99 for number in range(3)}
    first = cut(whole, tmp_path, changed)
    with pytest.raises(InputError, match=r"split\.tensors\.count is 99, and all 3 parts have"):
        open_folder(first)


def test_a_tensor_in_two_parts_is_refused(whole: Path, tmp_path: Path):
    first = cut(whole, tmp_path)
    second, third = (first.with_name(f"m-0000{n}-of-00003.gguf") for n in (2, 3))
    file = GgufFile(third)
    values = {**file.head, "split.no": 1}
    write_gguf(second, values, file, dict.fromkeys(file, BLOCK_KINDS["F32"]))
    with pytest.raises(InputError, match=r"has the tensor .*, as another part has"):
        open_folder(first)


@pytest.mark.parametrize("folder", ["", "Q8_0/"])
def test_all_parts_of_a_model_on_the_hub_come_with_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, asked = tmp_path / "cache" / "snapshots" / commit, []
    (tmp_path / "there").mkdir()
    cut(whole, tmp_path / "there")

    def one(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((repository, name, revision))
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "there" / path.name, path)
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", one)
    place, file = Workspace(tmp_path / "workspace"), "m-00002-of-00003.gguf"
    run, _ = import_model(place, f"some/model/{folder}{file}", revision="v2")
    assert run.manifest.name == "m"
    found = open_folder(run.folder / "model").causal_lm().eval()
    with torch.no_grad():
        assert torch.equal(found.logits(found.body(IDS)), logits(whole))
    others = [f"{folder}m-0000{number}-of-00003.gguf" for number in (1, 3)]
    assert asked == [
        ("some/model", folder + file, "v2"),
        *(("some/model", name, commit) for name in others),
    ]
