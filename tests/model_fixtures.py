"""What tests of evaluation share: a workspace with small language models, and transformers' view
of one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.workspace.artefacts import Workspace
from tests.once import own_copy


def make_models(root: Path, corpus_file: Path, labelled_file: Path) -> None:
    # Not above: pytest's own process loads this file, too.
    from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
    from llmctl.stages.train import finetune, pretrain
    from llmctl.tasks.finetuning import resolve as resolve_finetune
    from llmctl.tasks.pretraining import resolve
    from tests.language_models import DATA, MODEL, TRAINING

    place = Workspace(root)
    for name, kind in (("stories", "bpe"), ("other", "characters")):
        config = TokenizeConfig(
            tokenizer=kind, document="line", validation=0.05, workers=1,
            **{"vocab_size": 330} if kind == "bpe" else {},
        )  # fmt: skip
        tokenize(place, [str(corpus_file)], config, name=name)
    for arch, further in (("gpt", {}), ("llama", {"num_kv_heads": 1})):
        layers = {"model": {**MODEL, **further}, "data": DATA, "training": TRAINING}
        pretrain(place, resolve(arch, "nano", layers), shards_name="stories", name=arch)
    for name, shards in (("grams", "stories"), ("other", "other")):
        order = {"model": {"order": 4}}
        pretrain(place, resolve("ngram", None, order), shards_name=shards, name=name)
    tuning = {"training": {**TRAINING, "max_steps": 15}}
    finetune(place, "gpt", labelled_file, resolve_finetune("classify", tuning), name="subjects")


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, labelled_file: Path
) -> Workspace:
    """Shards ``stories`` with a GPT ``gpt``, a Llama ``llama`` and an n-gram model ``grams``;
    ``other``, an n-gram model with another tokenizer; a classifier ``subjects``."""
    root = own_copy(
        tmp_path_factory, "models", lambda root: make_models(root, corpus_file, labelled_file)
    )
    return Workspace(root)


@pytest.fixture(scope="session")
def theirs(models: Workspace) -> tuple[Any, Callable[[Sequence[int]], np.ndarray]]:
    """transformers' tokenizer of the GPT, and its log-probabilities after each token of a text."""
    transformers = pytest.importorskip("transformers")
    import torch

    path = models.path("run", "gpt") / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()

    def log_probs(ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.tensor([list(ids)])).logits[0]
        return logits.double().log_softmax(-1).numpy()

    return transformers.AutoTokenizer.from_pretrained(path), log_probs


@pytest.fixture
def template(tmp_path: Path) -> Path:
    from tests.language_models import TEMPLATE

    path = tmp_path / "subject.toml"
    path.write_text(TEMPLATE)
    return path
