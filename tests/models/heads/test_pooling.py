"""Vectors of texts that lie end to end, against each text alone in transformers' own class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmctl.inference.embedding import embed_ids, groups, narrowed, pack_texts
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.gpt import Gpt, GptConfig
from llmctl.models.heads.embed import POOLINGS, Embedder, Pooling, pooled

SHAPE: dict[str, Any] = {
    "vocab_size": 50, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 64,
    "initializer_range": 0.3,
}  # fmt: skip


def some_texts(count: int = 23, longest: int = 40) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, 50, size=generator.integers(1, longest)) for _ in range(count)]


def by_hand(hidden_TD: np.ndarray, pooling: Pooling) -> np.ndarray:
    return {
        "mean": hidden_TD.mean(0), "max": hidden_TD.max(0), "cls": hidden_TD[0],
        "last": hidden_TD[-1],
    }[pooling]  # fmt: skip


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_each_text_alone(kind: str, pooling: Pooling, normalize: bool):
    torch.manual_seed(0)
    body = Bert(BertConfig(**SHAPE)) if kind == "encoder" else Gpt(GptConfig(**SHAPE))
    model = Embedder(body, pooling, normalize=normalize).eval()
    texts = some_texts()
    together = embed_ids(model, texts, pad=0)
    for text, vector in zip(texts, together, strict=True):
        with torch.no_grad():
            hidden = body(torch.from_numpy(text)[None])[0].double().numpy()
        expected = by_hand(hidden, pooling)
        if normalize:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_pooling_are_those_of_each_text_alone(pooling: Pooling):
    lengths = [3, 1, 5]
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    (pooled(hidden, torch.tensor(lengths), pooling) * weights).sum().backward()
    apart = hidden.detach().clone().requires_grad_()
    parts = apart.split(lengths)
    take = {
        "mean": lambda part: part.mean(0), "max": lambda part: part.amax(0),
        "cls": lambda part: part[0], "last": lambda part: part[-1],
    }[pooling]  # fmt: skip
    (torch.stack([take(part) for part in parts]) * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, apart.grad)


def test_a_projection_is_for_training_alone():
    torch.manual_seed(0)
    model = Embedder(Bert(BertConfig(**SHAPE)), projection=True)
    plain = Embedder(model.body)
    texts = some_texts(5)
    np.testing.assert_array_equal(embed_ids(model, texts, 0), embed_ids(plain, texts, 0))
    rows = pack_texts(texts, 0)
    inputs = rows.input_ids_BT, rows.position_ids_BT, rows.packed, rows.lengths_S
    assert (model.train()(*inputs) - plain(*inputs)).abs().max() > 0.01


def test_rows_hold_every_text_once_and_little_padding():
    texts = some_texts(60, 30)
    rows = pack_texts(texts, pad=0)
    flat = []
    for row, count in enumerate(rows.tokens_B):
        flat += rows.input_ids_BT[row, :count].tolist()
    lengths = rows.lengths_S.tolist()
    pieces = np.split(np.asarray(flat), np.cumsum(lengths)[:-1])
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(pieces[rows.place_S[number]], text)
    assert rows.texts_B.sum() == len(texts)
    assert rows.tokens_B.sum() / rows.input_ids_BT.numel() > 0.9
    with pytest.raises(ValueError, match="without tokens"):
        pack_texts([np.asarray([], dtype=np.int64)], pad=0)


def test_groups_hold_every_text_once():
    lengths = np.asarray([5, 300, 1, 7, 8, 2])
    taken = [part.tolist() for part in groups(lengths, 10)]
    assert sorted(place for part in taken for place in part) == list(range(6))
    assert [1] in taken  # one that is longer than all of them may be


def test_narrow_vectors_have_length_one():
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    narrow = narrowed(vectors, 3)
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        narrow[0], vectors[0, :3] / np.linalg.norm(vectors[0, :3]), rtol=1e-6
    )
    assert narrowed(vectors, None) is vectors
