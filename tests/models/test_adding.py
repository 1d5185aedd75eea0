"""An architecture is one file and its entry: it is pretrained, kept, opened, and finetuned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmctl import models
from llmctl.formats.open import open_folder
from llmctl.models.spec import roles_of
from llmctl.stages.train import finetune, pretrain
from llmctl.tasks import finetuning, pretraining
from llmctl.workspace.artefacts import Workspace
from tests.models.parallel_decoder import SPEC

LAYERS = {
    "model": {"max_positions": 128},
    "data": {"sequence_length": 64},
    "training": {"max_steps": 5, "batch_size": 4, "precision": "fp32"},
}


def test_an_architecture_is_one_file_and_its_entry(
    decoder_workspace: Path, labelled_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(models.ARCHITECTURES, SPEC.name, SPEC)
    monkeypatch.setitem(models.BY_MODEL_TYPE, SPEC.model_type, SPEC)
    workspace = Workspace(decoder_workspace)
    run, _ = pretrain(workspace, pretraining.resolve("parallel", "nano", LAYERS), name="parallel")
    folder = open_folder(run.folder / "model")
    assert folder.spec is SPEC
    assert folder.fields["architectures"] == ["ParallelForCausalLM"]
    model = folder.causal_lm().eval()
    matrices = [name for name, role in roles_of(model).items() if role.kind == "matrix"]
    assert len(matrices) == 2 * 4
    with torch.no_grad():
        logits = model.logits(model.body(torch.tensor([[5, 6, 7, 8]])))
    assert logits.shape == (1, 4, folder.tokenizer.vocab_size)
    more = {"training": {"max_steps": 3, "precision": "fp32"}, "method": "lora"}
    tuned, _ = finetune(
        workspace, "parallel", labelled_file, finetuning.resolve("classify", more), name="sorted"
    )
    assert open_folder(tuned.folder / "model").labels
