"""Embeddings that start from the shards' co-occurrences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmctl.data.shards.cooccurrence import token_vectors
from llmctl.errors import ConfigError
from llmctl.tasks import task_of
from llmctl.tasks.embeddings import COOCCURRENCE_RANGE
from llmctl.tasks.pretraining import Pretraining, open_pretraining, resolve
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model
from tests.language_models import DATA, MODEL


def opened(models: Workspace, **layer: Any) -> Pretraining[Any, Any]:
    config = resolve("gpt", "nano", {"model": MODEL, "data": DATA, **layer})
    return open_pretraining(models.get("shards", "stories"), config)


def test_tokens_start_where_their_company_says(models: Workspace):
    random = opened(models, embeddings="random").build_model()
    task = opened(models, embeddings="cooccurrence")
    started = task.build_model()
    table = started.get_parameter("body.token_embedding.weight")
    known, vectors = token_vectors(task.reader("train"), *table.shape)
    assert 50 < len(known) < len(table)
    expected = torch.from_numpy(COOCCURRENCE_RANGE * vectors)
    torch.testing.assert_close(table[known].detach(), expected)
    grown = 0
    for name, parameter in random.named_parameters():
        other = started.get_parameter(name)
        if "position_embedding" in name:  # as large beside the tokens as before
            ratio = other / parameter
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
            assert 4 < ratio.mean().item() < 6  # 0.1 over GPT-2's 0.02
            grown += 1
        elif "token_embedding" not in name:
            assert torch.equal(other, parameter)
    assert grown == 1


@pytest.mark.parametrize(
    ("arch", "start"),
    [("bert", "cooccurrence"), ("modernbert", "cooccurrence"), ("gpt", "random")],
)
def test_masked_models_start_so_by_themselves(arch: str, start: str):
    assert resolve(arch, "nano").embeddings == "auto"  # as whoever asked for nothing did before
    assert task_of(arch).embeddings == start


def test_nothing_is_counted_for_a_network_without_weights(models: Workspace):
    with torch.device("meta"):
        network = opened(models, embeddings="cooccurrence").build_model()
    assert all(parameter.is_meta for parameter in network.parameters())


def test_a_model_brings_its_own(models: Workspace, tmp_path: Any):
    from llmctl.formats.open import open_folder

    pytest.importorskip("transformers")
    save_model(tmp_path / "theirs", "GPT2LMHeadModel", like="gpt2")
    base = open_folder(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="embeddings cooccurrence is how fresh weights start"):
        resolve_from(base, {"embeddings": "cooccurrence"})
    assert resolve_from(base).embeddings == "auto"


def resolve_from(base: Any, *layers: dict[str, Any]) -> Any:
    from llmctl.tasks.causal_lm.task import CausalPretraining

    return CausalPretraining.resolve("gpt", None, *layers, base=base)
