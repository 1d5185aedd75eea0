"""Finetuning of embedders: losses against sentence-transformers' and NumPy, data, bad input."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.errors import ConfigError, InputError
from llmctl.inference.embedding import embed_ids
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.heads.embed import Embedder
from llmctl.reporting.reporter import Reporter
from llmctl.stages.train import finetune
from llmctl.tasks.embed.batches import EncodedTexts, collate
from llmctl.tasks.embed.loss import EmbedLoss
from llmctl.tasks.finetuning import resolve
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl

SHAPE: dict[str, Any] = {
    "vocab_size": 40, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 32,
    "initializer_range": 0.3,
}  # fmt: skip
GENERATOR = np.random.default_rng(0)


def ids() -> np.ndarray:
    return GENERATOR.integers(1, 40, size=GENERATOR.integers(2, 20))


def examples(count: int = 9, negatives: int = 0, scored: bool = False) -> list[EncodedTexts]:
    numbers = iter(range(10_000))
    return [
        EncodedTexts(
            tuple(ids() for _ in range(2 + negatives)),
            tuple(next(numbers) for _ in range(2 + negatives)),
            float(GENERATOR.random()) if scored else None,
        )
        for _ in range(count)
    ]


def loss_of(kind: str, **options: Any) -> EmbedLoss:
    settings: dict[str, Any] = {
        "temperature": 0.05, "margin": 0.3, "symmetric": False, "widths": (None,), **options,
    }  # fmt: skip
    return EmbedLoss(kind, **settings)


def model() -> Embedder:
    torch.manual_seed(0)
    return Embedder(Bert(BertConfig(**SHAPE))).eval()


def value(loss: EmbedLoss, rows: list[EncodedTexts], network: Embedder | None = None) -> float:
    return loss(network or model(), collate(rows, 0)).total.item()


def vectors(rows: list[EncodedTexts]) -> list[np.ndarray]:
    """Vectors of the anchors, of the positives and of all negatives, by prediction's own path."""
    network = model()
    sides = [[row.texts[side] for row in rows] for side in (0, 1)]
    sides.append([text for row in rows for text in row.texts[2:]])
    return [embed_ids(network, side, 0).astype(np.float64) for side in sides if side]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_infonce_is_its_formula(negatives: int, symmetric: bool):
    rows = examples(negatives=negatives)
    anchors, *candidates = vectors(rows)
    logits = anchors @ np.concatenate(candidates).T / 0.05
    expected = -np.diag(log_softmax(logits)).mean()
    if symmetric:
        back = -np.diag(log_softmax(logits[:, : len(rows)].T)).mean()
        expected = (expected + back) / 2
    assert value(loss_of("infonce", symmetric=symmetric), rows) == pytest.approx(expected, rel=1e-4)


def test_false_negatives_are_left_out():
    """By hand: the same anchor again, the anchor's own text and the positive's as negatives."""
    texts = [ids() for _ in range(6)]
    a, b, c, d, e, f = range(6)

    def example(*keys: int) -> EncodedTexts:
        return EncodedTexts(tuple(texts[key] for key in keys), keys)

    rows = [example(a, b, f), example(a, c, b), example(d, e, d)]
    # Candidates: b, c, e, then the negatives f, b, d.
    expected = [
        [False, True, False, False, True, False],
        [True, False, False, False, False, False],
        [False, False, False, False, False, True],
    ]
    assert collate(rows, 0).false_EC.tolist() == expected
    assert not collate(rows, 0, mask_false_negatives=False).false_EC.any()
    anchors, positives, negatives = vectors(rows)
    logits = anchors @ np.concatenate([positives, negatives]).T / 0.05
    logits[np.asarray(expected)] = -np.inf
    assert value(loss_of("infonce"), rows) == pytest.approx(
        -np.diag(log_softmax(logits)).mean(), rel=1e-4
    )


def test_scored_losses_are_their_formulas():
    rows = examples(12, scored=True)
    anchors, positives = vectors(rows)
    cosines = (anchors * positives).sum(1)
    scores = np.asarray([row.score for row in rows])
    assert value(loss_of("mse"), rows) == pytest.approx(((cosines - scores) ** 2).mean(), rel=1e-4)
    wrong = [
        np.exp((cosines[j] - cosines[i]) / 0.05)
        for i in range(12) for j in range(12) if scores[i] > scores[j]
    ]  # fmt: skip
    assert value(loss_of("cosent"), rows) == pytest.approx(np.log1p(sum(wrong)), rel=1e-4)


def test_triplets_are_their_formula():
    rows = examples(6, negatives=2)
    anchors, positives, negatives = vectors(rows)
    near = (anchors * positives).sum(1)
    far = (anchors[:, None] * negatives.reshape(6, 2, -1)).sum(-1)
    expected = np.maximum(0, far - near[:, None] + 0.3).mean()
    assert value(loss_of("triplet"), rows) == pytest.approx(expected, rel=1e-4)


def test_matryoshka_is_the_mean_over_the_widths():
    rows = examples()
    anchors, positives = vectors(rows)
    each = []
    for width in (16, 4):
        a, b = (v[:, :width] / np.linalg.norm(v[:, :width], axis=1, keepdims=True)
                for v in (anchors, positives))  # fmt: skip
        each.append(-np.diag(log_softmax(a @ b.T / 0.05)).mean())
    found = value(loss_of("infonce", widths=(None, 4)), rows)
    assert found == pytest.approx(np.mean(each), rel=1e-4)


class Given(torch.nn.Module):
    """Stands in for a model of sentence-transformers: it gives vectors that are there already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["infonce", "triplet", "cosent", "mse"])
def test_losses_and_gradients_are_sentence_transformers(kind: str):
    st = pytest.importorskip("sentence_transformers", reason="no sentence-transformers here")
    from sentence_transformers.sentence_transformer import losses

    del st
    rows = examples(10, negatives=1 if kind in ("infonce", "triplet") else 0, scored=True)
    batch = collate(rows, 0)
    torch.manual_seed(1)
    encoded = torch.randn(len(batch.lengths_S), 16, requires_grad=True)
    loss_of(kind).compare(encoded, batch).total.backward()
    theirs = encoded.detach().clone().requires_grad_()
    sides = theirs[batch.place_S].split(10)
    reference = {
        "infonce": lambda: losses.MultipleNegativesRankingLoss(Given(), scale=20.0),
        "triplet": lambda: losses.TripletLoss(
            Given(), distance_metric=losses.TripletDistanceMetric.COSINE, triplet_margin=0.3
        ),
        "cosent": lambda: losses.CoSENTLoss(Given(), scale=20.0),
        "mse": lambda: losses.CosineSimilarityLoss(Given()),
    }[kind]()
    # theirs: their own normalisation follows.
    found = reference([{"vectors": side} for side in sides], batch.scores_E)
    found.backward()
    torch.testing.assert_close(loss_of(kind).compare(encoded, batch).total, found)
    torch.testing.assert_close(encoded.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_come_to_the_same_vectors():
    rows = examples(20, negatives=1)
    batch, network, loss = collate(rows, 0), model(), loss_of("infonce")
    whole = loss.encode(network, batch)
    edges = [0, 1, 3, len(batch)]
    parts = [loss.encode(network, batch.rows(a, b)) for a, b in pairwise(edges)]
    torch.testing.assert_close(torch.cat(parts), whole)
    loss.compare(torch.cat(parts), batch.rows(0, 1))  # what is compared is not cut


def write_pairs(path: Path, negatives: bool = False, count: int = 60) -> Path:
    """Sentences of one subject belong together."""
    import random

    from tests.conftest import SUBJECTS, make_sentences

    generator, subjects = random.Random(3), list(SUBJECTS)
    rows = []
    for number in range(count):
        own, other = subjects[number % 3], subjects[(number + 1) % 3]
        row = {"anchor": make_sentences(own, 1, generator)}
        row["positive"] = make_sentences(own, 1, generator)
        if negatives:
            row["negative"] = make_sentences(other, 1, generator)
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUICK = {"training": {"epochs": 2, "batch_size": 16, "precision": "fp32"}}


def test_cached_gradients_are_the_plain_ones_of_a_model(own_workspace: Path, tmp_path: Path):
    """Of a BERT without dropout: the weights after a few steps, in parts and all at once."""
    pairs, place = write_pairs(tmp_path / "pairs.jsonl", negatives=True), Workspace(own_workspace)
    weights = []
    for parts in (0, 3):
        training = {**QUICK["training"], "micro_batch": parts}
        config = resolve("embed", {"dropout": 0.0, "training": training})
        run, _ = finetune(place, "tiny", pairs, config, name=f"parts-{parts}", force=True)
        from llmctl.formats.open import open_folder

        weights.append(open_folder(run.folder / "model").tensors)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_it_learns_and_is_measured(own_workspace: Path, tmp_path: Path):
    pytest.importorskip("sklearn")
    pairs = write_pairs(tmp_path / "pairs.jsonl", count=150)
    llmctl(own_workspace, "finetune", "--from", "tiny", "--task", "embed", "--data", pairs,
           "--name", "vectors", "--set", "training.epochs=4", "--set", "training.precision=fp32",
           "--set", "matryoshka=8", "--set", "data.validation=0.2")  # fmt: skip
    test = write_pairs(tmp_path / "test.jsonl")
    out = llmctl(own_workspace, "eval", "--from", "vectors", "--data", test, "--json",
                 "--compare", "tiny", "--set", "widths=8").stdout  # fmt: skip
    report = json.loads(out)
    rows = report["results"]
    assert rows.keys() == {"model", "model, 8 wide", "tiny", "untrained body", "TF-IDF cosine"}
    assert report["queries"] == report["examples"] == 60
    for row in rows.values():
        low, high = row["intervals"]["ndcg"]
        assert low <= row["ndcg"] <= high
        assert row["recall_1"] <= row["recall_5"] <= row["recall_10"] <= 1
    shown = llmctl(own_workspace, "eval", "--from", "vectors", "--data", test,
                   "--compare", "tiny", "--set", "widths=8").stdout  # fmt: skip
    assert "vectors, 8 wide" in shown
    assert "nDCG over untrained body" in shown


@pytest.mark.parametrize(
    ("config", "rows", "says"),
    [
        ({"loss": "triplet"}, [{"anchor": "a", "positive": "b"}] * 4, "has no negative, which"),
        ({"loss": "mse"}, [{"anchor": "a", "positive": "b"}] * 4, "has no scores, which the loss"),
        (
            {"loss": "infonce"},
            [{"text1": "a", "text2": "b", "score": n} for n in range(4)],
            "takes each pair for one that belongs together",
        ),
        ({}, [{"anchor": "", "positive": "b"}] * 4, "no pair of two texts that are not empty"),
        ({}, [{"anchor": "a", "positive": "b"}], "they are compared with one another; give more"),
        (
            {"loss": "mse"},
            [{"text1": "a", "text2": "b", "score": 0}] * 4,
            "all scores are 0; give some that differ",
        ),
    ],
)
def test_data_that_does_not_suit_is_refused(
    own_workspace: Path, tmp_path: Path, config: dict[str, Any], rows: list[Any], says: str
):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=says):
        finetune(Workspace(own_workspace), "tiny", path, resolve("embed", config), name="refused")


def test_options_that_do_not_suit_are_refused(own_workspace: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"batch_size 1: .* use 2 or more"):
        resolve("embed", {"training": {"batch_size": 1}})
    pairs = write_pairs(tmp_path / "pairs.jsonl", count=6)
    with pytest.raises(ConfigError, match="matryoshka: 32 is no part of vectors 32 wide"):
        finetune(Workspace(own_workspace), "tiny", pairs, resolve("embed", {"matryoshka": "32"}))


def test_empty_texts_are_left_out_and_counted(own_workspace: Path, tmp_path: Path):
    path = write_pairs(tmp_path / "pairs.jsonl", count=20)
    with path.open("a") as stream:
        stream.write(json.dumps({"anchor": "a", "positive": " "}) + "\n")
    notes: list[str] = []

    class Noting(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    config = resolve("embed", {"training": {"max_steps": 1}})
    finetune(Workspace(own_workspace), "tiny", path, config, name="left", reporter=Noting())
    assert any("left out 1 examples of which a text is empty" in note for note in notes)


def test_cosine_similarity_is_of_vectors_of_any_length():
    a = torch.randn(3, 5)
    from llmctl.tasks.embed.loss import cosines

    torch.testing.assert_close(
        cosines(a, 7 * a).diagonal(), F.cosine_similarity(a, a), rtol=1e-5, atol=1e-6
    )


def test_the_weights_of_scored_pairs_are_chosen_by_their_correlation():
    """From sums over batches of other sizes, as NumPy has it of all pairs at once."""
    from llmctl.tasks.embed.loss import MOMENTS, correlation, moments

    cosines, scores = GENERATOR.normal(size=30), GENERATOR.normal(size=30)
    parts = [slice(0, 7), slice(7, 30)]
    found = [moments(torch.tensor(cosines[p]), torch.tensor(scores[p])) for p in parts]
    means = {
        name: sum(float(part[name].total) for part in found) / sum(p[name].count for p in found)
        for name in MOMENTS
    }
    assert correlation(means) == pytest.approx(np.corrcoef(cosines, scores)[0, 1])
    assert correlation(dict.fromkeys(MOMENTS, 0.0)) == 0.0
    with torch.no_grad():
        parts_of_loss = loss_of("cosent")(model(), collate(examples(5, scored=True), 0))
    assert set(parts_of_loss.metrics) == set(MOMENTS)
    assert not loss_of("cosent")(model(), collate(examples(5, scored=True), 0)).metrics
