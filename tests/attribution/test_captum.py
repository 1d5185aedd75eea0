"""Weights against captum's, through transformers' networks: word by word the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.stages.explain.words import open_explainer
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model

captum_attr = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.reference


def opened(folder: Path, kind: str, like: str) -> tuple[ExplainedText, Any, Any]:
    """A text with its answer, transformers' network, and the answer's number of what it gives."""
    classifier = kind.endswith("SequenceClassification")
    fields = {"num_labels": 3, "pad_token_id": 0} if classifier else {}
    theirs = save_model(folder, kind, like=like, **fields).float()
    answer = "LABEL_1" if classifier else None
    explainer = open_explainer(
        Workspace(folder.parent), str(folder), ExplainedAnswer(answer=answer), device="cpu"
    )
    sentence = "the ship sails over the wide sea"
    text = explainer.explained(Example(sentence, None, None, "text 1"))
    if classifier:
        return text, theirs, lambda output: output.logits[:, 1]
    token = int(theirs(text.ids_T[None]).logits[0, -1].argmax())
    return text, theirs, lambda output: output.logits[:, -1].log_softmax(-1)[:, token]


def of_words(text: ExplainedText, weights_T: torch.Tensor) -> np.ndarray:
    values = weights_T.detach().double().numpy()
    return np.array([values[text.word_T == word].sum() for word in range(len(text.words))])


@pytest.mark.parametrize(
    ("kind", "like"),
    [
        ("BertForSequenceClassification", "bert"),
        ("ModernBertForSequenceClassification", "bert"),
        ("GPT2LMHeadModel", "gpt2"),
        ("LlamaForCausalLM", "llama"),
    ],
)
def test_weights_are_captums(tmp_path: Path, kind: str, like: str):
    text, theirs, number = opened(tmp_path / "model", kind, like)
    ids, own_T = text.ids_T[None], torch.from_numpy(text.word_T)
    blank = text.ids_T.masked_fill(own_T >= 0, text.blank)[None]
    embedding = theirs.get_input_embeddings()

    def forward(ids: torch.Tensor) -> torch.Tensor:
        return number(theirs(ids))

    def of_vectors(vectors: torch.Tensor) -> torch.Tensor:
        return number(theirs(inputs_embeds=vectors))

    # Integrated gradients, by the same rule with as many steps.
    method = ATTRIBUTION_METHODS["integrated-gradients"]()
    found = method.weights(text)
    steps = int(method.facts()["steps"])
    integrated = captum_attr.LayerIntegratedGradients(forward, embedding)
    expected, missed = integrated.attribute(
        ids, baselines=blank, n_steps=steps, method="gausslegendre", return_convergence_delta=True
    )
    expected_W = of_words(text, expected[0].sum(-1))
    np.testing.assert_allclose(found, expected_W, atol=1e-7 + 2e-4 * abs(expected_W).max())
    assert abs(float(missed)) <= 0.011 * abs(expected_W.sum())
    # The gradient times the input.
    vectors = embedding(ids).detach().requires_grad_(True)
    expected = captum_attr.InputXGradient(of_vectors).attribute(vectors)
    expected_W = of_words(text, expected[0].sum(-1))
    found = ATTRIBUTION_METHODS["gradient-input"]().weights(text)
    np.testing.assert_allclose(found, expected_W, atol=1e-7 + 2e-4 * abs(expected_W).max())
    # Leaving one word out: the tokens of a word are one feature; what stays is another, last.
    features = torch.where(own_T >= 0, own_T, len(text.words))[None]
    ablation = captum_attr.FeatureAblation(forward)
    expected = ablation.attribute(ids, baselines=blank, feature_mask=features)[0]
    first_W = [int(np.flatnonzero(text.word_T == word)[0]) for word in range(len(text.words))]
    found = ATTRIBUTION_METHODS["occlusion"]().weights(text)
    np.testing.assert_allclose(found, expected[first_W].numpy(), atol=1e-4)
