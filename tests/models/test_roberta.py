"""RoBERTa and XLM-R beside transformers' classes: the same logits from the same weights, both ways,
and each field of their config.json read or refused.

fp32 sums in another order: 1e-5 of logits that are about 1, as layers are a few products of width
16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmctl.config import build
from llmctl.errors import ConfigError, InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.regress import Regressor
from llmctl.models.heads.tag import Tagger
from llmctl.models.layers.packing import PackedSequences
from tests.foreign_models import learned, save_model

transformers = pytest.importorskip("transformers")
PAD = 1
IDS = torch.tensor([[0, 9, 14, 7, 22, 2, 2, 5, 2], [0, 20, 11, 5, 2, PAD, PAD, PAD, PAD]])
SEGMENTS = torch.tensor([[0] * 7 + [1] * 2, [0] * 9])
REAL = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
FAMILIES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
ENDINGS = {
    "masked_lm": "ForMaskedLM",
    "classify": "ForSequenceClassification",
    "regress": "ForSequenceClassification",
    "tag": "ForTokenClassification",
}
LABELS = {"classify": {"num_labels": 3}, "regress": {"num_labels": 1}, "tag": {"num_labels": 3}}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@torch.no_grad()
def theirs(model: Any, segments: Tensor | None = None) -> Tensor:
    logits: Tensor = model(
        input_ids=IDS, token_type_ids=segments, attention_mask=REAL.long()
    ).logits
    return logits if len(logits.shape) == 2 else logits[REAL]


@torch.no_grad()
def ours(model: Any, segments: Tensor | None = None) -> Tensor:
    model = model.eval()
    if isinstance(model, Classifier):
        return model(IDS, torch.zeros_like(IDS) if segments is None else segments, REAL)
    if isinstance(model, Tagger):
        return model(IDS, REAL)[REAL]
    return model.token_logits(model.body(IDS, segments, REAL))[REAL]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.parametrize("like", FAMILIES)
def test_a_folder_of_transformers_gives_its_logits(
    tmp_path: Path, like: str, kind: str, tied: bool
):
    model = save_model(
        tmp_path, FAMILIES[like] + ENDINGS[kind], like=like, type_vocab_size=1,
        tie_word_embeddings=tied, **LABELS.get(kind, {}),
    )  # fmt: skip
    opened = open_folder(tmp_path)
    assert (opened.kind, opened.spec.name) == (kind, like)
    # 64 rows, of which padding's and the one before it are no text's.
    assert opened.longest_text == 62
    torch.testing.assert_close(ours(opened.network()), theirs(model), **CLOSE)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 301},
        {"hidden_size": 24},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 4},
        {"intermediate_size": 40},
        {"hidden_act": "relu"},  # in the blocks; the head has a GELU
        {"max_position_embeddings": 20},
        {"layer_norm_eps": 1e-2},
        {"pad_token_id": 0, "type_vocab_size": 1},
        {"pad_token_id": 5},  # which a text has, and so tokens behind it have a row less
        {"type_vocab_size": 2},
        {"type_vocab_size": 5},
        {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2},
        {"attention_probs_dropout_prob": 0.4},
        {"initializer_range": 0.5, "use_cache": False},
    ],
    ids=str,
)
def test_each_field_changes_what_it_changes_in_transformers(tmp_path: Path, fields: dict[str, Any]):
    model = save_model(
        tmp_path / "m", "RobertaForMaskedLM", like="roberta", **{"type_vocab_size": 1, **fields}
    )
    segments = None if model.config.type_vocab_size == 1 else SEGMENTS
    network: Any = open_folder(tmp_path / "m").network()
    expected = theirs(model, segments)
    torch.testing.assert_close(ours(network, segments), expected, **CLOSE)
    write_model_folder(tmp_path / "again", network, open_folder(tmp_path / "m").tokenizer, {})
    again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(theirs(again, segments), expected, **CLOSE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pad_token_id": None}, "pad_token_id is null"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2"),
        ({"max_position_embeddings": 63}, "position_embeddings.weight is 64"),
        ({"pad_token_id": "1"}, 'pad_token_id is "1"'),
        ({"type_vocab_size": 2}, "token_type_embeddings.weight is 1"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"adapter_layers": 3}, "adapter_layers is 3"),
        ({"embedding_size": 8}, "embedding_size is 8"),
    ],
    ids=str,
)
def test_what_would_change_the_numbers_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str
):
    save_model(tmp_path, "RobertaForMaskedLM", like="roberta", type_vocab_size=1)
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
@pytest.mark.parametrize("like", FAMILIES)
def test_transformers_opens_our_folder_with_the_same_logits(tmp_path: Path, like: str, kind: str):
    """With a tokenizer of ours, whose padding token has another number than the published."""
    spec, tokenizer = ARCHITECTURES[like], learned("wordpiece")
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_heads": 2}
    config = spec.config(max_positions=30, initializer_range=0.3, **shape).with_vocabulary(
        tokenizer.vocab_size, tokenizer.special
    )
    torch.manual_seed(0)
    model = NETWORKS[kind](spec.build(config))
    names = {str(number): name for number, name in enumerate("abc")}
    extra: dict[str, Any] = {}
    if kind in ("classify", "tag"):
        extra = {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}}
    elif kind == "regress":
        extra = {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}
    write_model_folder(tmp_path, model, tokenizer, extra)
    name = FAMILIES[like] + ENDINGS[kind]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    opened, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.config.pad_token_id == tokenizer.special["pad"] == 0
    # A text has no padding within, which the first token here would be.
    row = torch.tensor([[2, 9, 14, 7, 22, 3]])
    with torch.no_grad():
        expected = opened.eval()(row).logits
        asked = torch.ones_like(row, dtype=torch.bool)
        body = model.eval().body
        found = (
            model(row, torch.zeros_like(row), asked)
            if isinstance(model, Classifier)
            else model(row, asked)
            if isinstance(model, Tagger)
            else model.token_logits(body(row))
        )
    torch.testing.assert_close(found, expected, **CLOSE)
    again = open_folder(tmp_path)
    assert again.config == config
    assert torch.equal(ours(again.network()), ours(model))
    pair = transformers.AutoTokenizer.from_pretrained(tmp_path)("the ship", "waves")
    around = learned("wordpiece").encode("the ship"), learned("wordpiece").encode("waves")
    assert pair["input_ids"] == [2, *around[0], 3, 3, *around[1], 3]
    assert not any(pair.encodings[0].type_ids)  # of which there is one kind


@pytest.mark.parametrize("like", FAMILIES)
def test_the_body_alone_with_its_pooler_is_of_use_to_a_finetuning(tmp_path: Path, like: str):
    model = save_model(tmp_path, f"{FAMILIES[like]}Model", like=like, type_vocab_size=1)
    classifier = open_folder(tmp_path).new_classifier(2, dropout=0.0, scratch=False).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
        found = classifier.body(IDS, SEGMENTS, REAL)
    torch.testing.assert_close(found[REAL], expected[REAL], **CLOSE)


@torch.no_grad()
def test_texts_of_a_packed_row_are_as_alone():
    spec = ARCHITECTURES["roberta"]
    torch.manual_seed(0)
    body = spec.build(spec.config(vocab_size=50, num_layers=2, hidden_size=16, num_heads=2)).eval()
    row = torch.cat([IDS[0], IDS[1, :5]])[None]
    numbers = np.array([[0] * 9 + [1] * 5])
    positions = torch.cat([torch.arange(9), torch.arange(5)])[None]
    found = body(row, None, PackedSequences.of(numbers), positions)[0]
    alone = torch.cat([body(IDS[:1])[0], body(IDS[1:, :5])[0]])
    torch.testing.assert_close(found, alone, **CLOSE)


@torch.no_grad()
def test_embeddings_are_their_sum():
    """H = norm(E[x] + P[place + padding + 1] + S[0]), in NumPy."""
    spec = ARCHITECTURES["roberta"]
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    config = spec.config(vocab_size=50, padding_id=4, max_positions=12, **shape)
    body: Any = spec.build(config).eval()
    body.blocks = torch.nn.ModuleList()
    tables = body.token_embedding, body.position_embedding, body.segment_embedding
    E, P, S = (table.weight.double().numpy() for table in tables)
    assert P.shape == (12 + 5, 16)
    summed = E[IDS[0]] + P[5:14] + S[0]
    centred = summed - summed.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)
    np.testing.assert_allclose(body(IDS[:1], SEGMENTS[:1])[0].numpy(), expected, atol=1e-5)


def test_a_padding_token_that_is_not_the_tokenizer_s_is_refused():
    config = build(ARCHITECTURES["roberta"].config, {"padding_id": 7})
    with pytest.raises(ConfigError, match=r"padding_id 7: the tokenizer's padding token is 0"):
        config.with_vocabulary(60, {"pad": 0})
    # Counted as BertModel's published, with 514 rows of positions and one segment.
    with torch.device("meta"):
        base = ARCHITECTURES["roberta"].config(vocab_size=50265, num_layers=12, hidden_size=768)
        body = ARCHITECTURES["roberta"].build(base)
    # roberta-base's file without its language model's head and pooler.
    assert sum(parameter.numel() for parameter in body.parameters()) == 124_055_040
