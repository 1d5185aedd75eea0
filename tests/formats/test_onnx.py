"""ONNX files beside the networks that they were made from, by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.onnx import writing
from llmctl.formats.open import open_folder
from tests.foreign_models import save_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(folder: Path) -> object:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_a_decoder_writes_with_its_cache_as_transformers_does(tmp_path: Path):
    theirs = save_model(tmp_path / "m", "LlamaForCausalLM", like="ours")
    (tmp_path / "out").mkdir()
    writing.write_onnx(open_folder(tmp_path / "m"), tmp_path / "out")
    run = session(tmp_path / "out")
    ids = np.array([[5, 9, 7, 20, 31, 8]])
    names = [value.name for value in run.get_inputs()][2:]
    past = {name: np.zeros((1, 1, 0, 8), np.float32) for name in names}
    rows = []
    for stop in (4, 5, 6):  # four at once, then one by one
        begin = 0 if stop == 4 else stop - 1
        fed = {"input_ids": ids[:, begin:stop], "attention_mask": np.ones((1, stop), np.int64)}
        logits, *present = run.run(None, {**fed, **past})
        past = dict(zip(names, present, strict=True))
        rows.append(logits[0])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits[0].numpy()
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-4)


def test_a_classifier_of_any_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = save_model(tmp_path / "m", "BertForSequenceClassification", like="bert", num_labels=3)
    (tmp_path / "out").mkdir()
    writing.write_onnx(open_folder(tmp_path / "m"), tmp_path / "out")
    ids, mask = np.array([[2, 9, 7, 3], [2, 8, 3, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    fed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (logits,) = session(tmp_path / "out").run(None, fed)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    monkeypatch.setattr(writing, "write_description", lambda *arguments: None)
    monkeypatch.setattr(writing.torch.onnx, "export", lambda *arguments, **options: None)
    model = open_folder(tmp_path / "m")
    changed = model.network()
    with torch.no_grad():
        changed.output.bias.add_(1e-2)
    monkeypatch.setattr(type(model), "network", lambda self: changed)
    with pytest.raises(InputError, match="the ONNX file gives another logits than the model"):
        writing.write_onnx(model, tmp_path / "out")


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path):
    save_model(tmp_path / "m", "T5ForConditionalGeneration", like="t5")
    with pytest.raises(InputError, match="which is not exported to ONNX"):
        writing.write_onnx(open_folder(tmp_path / "m"), tmp_path / "out")
