"""ELECTRA beside transformers' classes: the same logits from the same weights, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models.electra import Electra, ElectraConfig
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.replaced_tokens import ReplacedTokenDetector
from llmctl.models.heads.tag import Tagger
from tests.foreign_models import learned, save_model

WIDTHS = pytest.mark.parametrize("embedding_size", [16, 8, 24])
"""That of the hidden states, less and more."""
IDS = torch.tensor([[2, 9, 14, 7, 22, 31, 3], [2, 40, 11, 5, 3, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
REAL = IDS != 0


def theirs(model: Any) -> torch.Tensor:
    alone = "TokenClassification" in type(model).__name__
    segments = torch.zeros_like(IDS) if alone else SEGMENTS
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_ids=IDS, token_type_ids=segments, attention_mask=REAL.long()
        ).logits
    return logits


@torch.no_grad()
def ours(model: Any) -> torch.Tensor:
    if isinstance(model, Classifier):
        return model.eval()(IDS, SEGMENTS, REAL)
    if isinstance(model, Tagger):
        return model.eval()(IDS, REAL)
    hidden_BTD = model.eval().body(IDS, SEGMENTS, REAL)
    if isinstance(model, MaskedLM):
        return model.token_logits(hidden_BTD)
    return model.logits(hidden_BTD)


CLASSES = {
    "electra": "ElectraForPreTraining",
    "masked_lm": "ElectraForMaskedLM",
    "classify": "ElectraForSequenceClassification",
    "tag": "ElectraForTokenClassification",
}


@WIDTHS
@pytest.mark.parametrize("kind", CLASSES)
def test_a_folder_of_transformers_gives_its_logits(tmp_path: Path, kind: str, embedding_size: int):
    pytest.importorskip("transformers")
    labels = {"num_labels": 3} if kind in ("classify", "tag") else {}
    model = save_model(
        tmp_path, CLASSES[kind], like="bert", embedding_size=embedding_size, **labels
    )
    opened = open_folder(tmp_path)
    assert opened.kind == kind
    found = ours(opened.network())
    # fp32; the layers are a few products of width 16.
    torch.testing.assert_close(found[REAL] if found.dim() > 1 and kind != "classify" else found,
                               theirs(model)[REAL] if kind != "classify" else theirs(model),
                               atol=2e-5, rtol=1e-4)  # fmt: skip


@WIDTHS
@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_opens_our_folder_with_the_same_logits(
    tmp_path: Path, kind: str, embedding_size: int
):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = learned("wordpiece")
    config = ElectraConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, hidden_size=16, num_heads=2,
        embedding_size=embedding_size, max_positions=64, initializer_range=0.3,
    )  # fmt: skip
    body = Electra(config)
    model: Any = {
        "electra": lambda: ReplacedTokenDetector(body),
        "masked_lm": lambda: MaskedLM(body, next_sentence=False),
        "classify": lambda: Classifier(body, 3),
        "tag": lambda: Tagger(body, 3),
    }[kind]()
    names = ["a", "b", "c"]
    extra = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    write_model_folder(tmp_path, model, tokenizer, extra if kind in ("classify", "tag") else {})
    opened = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [CLASSES[kind]]
    found = ours(model)
    torch.testing.assert_close(found[REAL] if kind != "classify" else found,
                               theirs(opened)[REAL] if kind != "classify" else theirs(opened),
                               atol=2e-5, rtol=1e-4)  # fmt: skip
    again = open_folder(tmp_path)
    assert again.kind == kind
    assert torch.equal(ours(again.network()), found)


def test_the_body_alone_is_of_use_to_a_finetuning(tmp_path: Path):
    pytest.importorskip("transformers")
    model = save_model(tmp_path, "ElectraModel", like="bert", embedding_size=8)
    opened = open_folder(tmp_path)
    classifier = opened.new_classifier(2, dropout=0.0, scratch=False).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, token_type_ids=SEGMENTS, attention_mask=REAL.long())
        found = classifier.body(IDS, SEGMENTS, REAL)
    torch.testing.assert_close(found[REAL], expected.last_hidden_state[REAL], atol=2e-5, rtol=1e-4)
    with pytest.raises(InputError, match="no head that tells replaced tokens"):
        opened.with_head("electra")


def test_a_classifier_s_pooler_is_not_bert_s():
    config = ElectraConfig(vocab_size=50, num_layers=1, hidden_size=16, num_heads=2)
    torch.manual_seed(0)
    model = Classifier(Electra(config), 2, dropout=0.0).eval()
    assert model.pooler is not None
    hidden_BD = model.body(IDS, SEGMENTS, REAL)[:, 0]
    expected = model.output(torch.nn.functional.gelu(model.pooler(hidden_BD)))
    torch.testing.assert_close(model(IDS, SEGMENTS, REAL), expected)
