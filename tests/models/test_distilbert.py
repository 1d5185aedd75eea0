"""DistilBERT beside transformers' classes: the same logits from the same weights, both ways, and
each field of its config.json read or refused.

fp32 sums in another order: 1e-5 of logits that are about 1, as layers are a few products of width
16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models.bert import Bert
from llmctl.models.distilbert import PRESETS, DistilBertConfig
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.regress import Regressor
from llmctl.models.heads.tag import Tagger
from tests.foreign_models import learned, save_model

transformers = pytest.importorskip("transformers")
IDS = torch.tensor([[2, 9, 14, 7, 22, 3, 31, 5, 3], [2, 20, 11, 5, 3, 0, 0, 0, 0]])
REAL = IDS != 0
ENDINGS = {
    "masked_lm": "ForMaskedLM",
    "classify": "ForSequenceClassification",
    "regress": "ForSequenceClassification",
    "tag": "ForTokenClassification",
}
LABELS = {"classify": {"num_labels": 3}, "regress": {"num_labels": 1}, "tag": {"num_labels": 3}}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=IDS, attention_mask=REAL.long()).logits
    return logits if len(logits.shape) == 2 else logits[REAL]


@torch.no_grad()
def ours(model: Any) -> Tensor:
    model = model.eval()
    if isinstance(model, Classifier):
        # Segments, which a tokenizer of a BERT's may tell, change nothing.
        return model(IDS, (torch.arange(9) > 5).long().expand(2, 9), REAL)
    if isinstance(model, Tagger):
        return model(IDS, REAL)[REAL]
    return model.token_logits(model.body(IDS, None, REAL))[REAL]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ENDINGS)
def test_a_folder_of_transformers_gives_its_logits(tmp_path: Path, kind: str, tied: bool):
    model = save_model(
        tmp_path, f"DistilBert{ENDINGS[kind]}", like="bert", tie_word_embeddings=tied,
        **LABELS.get(kind, {}),
    )  # fmt: skip
    opened = open_folder(tmp_path)
    assert (opened.kind, opened.longest_text) == (kind, 64)
    torch.testing.assert_close(ours(opened.network()), theirs(model), **CLOSE)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 77},
        {"dim": 24},
        {"n_layers": 3},
        {"n_heads": 4},
        {"hidden_dim": 40},
        {"activation": "relu"},
        {"max_position_embeddings": 20},
        {"sinusoidal_pos_embds": True},
        {"pad_token_id": 5},
        {"dropout": 0.3, "attention_dropout": 0.2, "qa_dropout": 0.3, "seq_classif_dropout": 0.4},
        {"initializer_range": 0.5},
    ],
    ids=str,
)
def test_each_field_changes_what_it_changes_in_transformers(tmp_path: Path, fields: dict[str, Any]):
    model = save_model(tmp_path, "DistilBertForMaskedLM", like="bert", **fields)
    torch.testing.assert_close(ours(open_folder(tmp_path).network()), theirs(model), **CLOSE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": "gelu_new"}, "gelu_new"),
        ({"tie_weights_": False}, "tie_weights_"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2"),
        ({"hidden_size": 8}, "hidden_size is 8 and dim, which is the same, 16"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"max_position_embeddings": 63}, "position_embeddings.weight is 64"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
    ids=str,
)
def test_what_would_change_the_numbers_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str
):
    save_model(tmp_path, "DistilBertForMaskedLM", like="bert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=says):
        open_folder(tmp_path)


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "masked_lm": lambda body: MaskedLM(body, next_sentence=False),
    "classify": lambda body: Classifier(body, 3),
    "regress": Regressor,
    "tag": lambda body: Tagger(body, 3),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_transformers_opens_our_folder_with_the_same_logits(tmp_path: Path, kind: str):
    tokenizer = learned("wordpiece")
    config = DistilBertConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, hidden_size=16, num_heads=2,
        max_positions=30, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = NETWORKS[kind](Bert(config))
    names = {str(number): name for number, name in enumerate("abc")}
    extra: dict[str, Any] = {}
    if kind in ("classify", "tag"):
        extra = {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}}
    elif kind == "regress":
        extra = {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}
    write_model_folder(tmp_path, model, tokenizer, extra)
    theirs_kind = getattr(transformers, f"DistilBert{ENDINGS[kind]}")
    opened, info = theirs_kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(ours(model), theirs(opened.eval()), **CLOSE)
    again = open_folder(tmp_path)
    assert again.config == config
    assert torch.equal(ours(again.network()), ours(model))


def test_the_base_preset_has_the_published_size():
    """66,362,880 parameters, as DistilBertModel of distilbert-base-uncased."""
    with torch.device("meta"):
        body = Bert(DistilBertConfig(vocab_size=30522, **PRESETS["base"]))
    assert sum(parameter.numel() for parameter in body.parameters()) == 66_362_880
