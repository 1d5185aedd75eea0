"""Replaced-token detection: what is drawn, its two losses, and what each of them teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from llmctl.models.electra import Electra, ElectraConfig
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator
from llmctl.tasks.electra.batches import ReplacedBatch, ReplacedBatches
from llmctl.tasks.electra.config import ElectraObjective
from llmctl.tasks.electra.learned import describe_detection, entropy_of_share
from llmctl.tasks.electra.loss import electra_loss, replaced_rows
from llmctl.tasks.electra.task import generator_width
from llmctl.tasks.learned import CONTEXT, LEARNED, LITTLE, NOTHING
from tests.tasks.test_masked_lm import MASK, VOCABULARY, T, V, original_ids, stream

WEIGHT = 50.0


def batches(seed: int = 11, **objective: float) -> ReplacedBatches:
    return ReplacedBatches(stream(overhead=2), VOCABULARY, ElectraObjective(**objective), T, seed)  # type: ignore[arg-type]


def model(seed: int = 0) -> DetectorWithGenerator:
    torch.manual_seed(seed)
    config = ElectraConfig(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=T,
        initializer_range=0.2,
    )  # fmt: skip
    narrow = config.replace(hidden_size=8, embedding_size=32, num_heads=1, intermediate_size=32)
    return DetectorWithGenerator(Electra(config), MaskedLM(Electra(narrow), next_sentence=False))


def read(body: torch.nn.Module, ids_BT: Tensor, batch: ReplacedBatch) -> Tensor:
    hidden_BTD: Tensor = body(ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT)
    return hidden_BTD


def test_every_hidden_token_is_a_mask_and_all_but_special_ones_are_judged():
    for number in range(3):
        batch = batches()(number)
        ids_BT = original_ids(batch)
        shown_M = batch.input_ids_BT.flatten()[batch.masked_M]
        assert (shown_M == MASK).all()
        assert np.array_equal(batch.judged_BT.numpy(), ids_BT >= 5)
        assert batch.loss_denominators == {
            "generator_loss": len(batch.labels_M), "detection_loss": int((ids_BT >= 5).sum()),
        }  # fmt: skip
        assert not batch.segment_ids_BT.any()  # no pairs


def test_some_hidden_tokens_are_shown_as_they_are_where_that_is_asked_for():
    batch = batches(mask_share=0.5, mask_rate=0.5)(0)
    shown_M = batch.input_ids_BT.flatten()[batch.masked_M]
    as_they_are = shown_M == batch.labels_M
    assert ((shown_M == MASK) | as_they_are).all()
    assert 0.2 < float(as_they_are.float().mean()) < 0.8


def test_a_batch_is_a_pure_function_of_its_number():
    one, other = batches(), batches()
    for number in (3, 0, 3):
        assert torch.equal(one(number).drawn_M, other(number).drawn_M)
    assert not torch.equal(one(0).drawn_M, one(1).drawn_M[: len(one(0).drawn_M)])
    drawn = torch.cat([one(number).drawn_M for number in range(20)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    # A uniform number's mean is a half, its standard deviation 1/√12.
    assert abs(float(drawn.mean()) - 0.5) < 5 / (12 * len(drawn)) ** 0.5


def test_the_losses_are_those_of_the_formula():
    network, batch = model(), batches()(0)
    parts = electra_loss(network, batch, WEIGHT)
    with torch.no_grad():
        flat = read(network.generator.body, batch.input_ids_BT, batch).flatten(0, 1)
        z_MV = network.generator.token_logits(flat[batch.masked_M]).double().numpy()
        replaced = replaced_rows(network, batch)
        z_BT = network.logits(read(network.body, replaced.ids_BT, batch)).double().numpy()
    labels_M, places_M = batch.labels_M.numpy(), batch.masked_M.numpy()
    log_p_MV = z_MV - np.log(np.exp(z_MV).sum(1, keepdims=True))
    generator_nll = -log_p_MV[np.arange(len(labels_M)), labels_M].sum()
    # What is drawn: the inverse of the distribution at the number of each place.
    edges_MV = np.cumsum(np.exp(log_p_MV), axis=1)
    expected_M = (edges_MV < batch.drawn_M.numpy()[:, None]).sum(1)
    sampled_M = replaced.ids_BT.flatten().numpy()[places_M]
    assert np.array_equal(sampled_M, expected_M)
    ids = original_ids(batch)
    untouched = np.ones(ids.size, dtype=bool)
    untouched[places_M] = False
    assert np.array_equal(replaced.ids_BT.numpy().ravel()[untouched], ids.ravel()[untouched])
    y_BT = replaced.ids_BT.numpy() != ids
    assert np.array_equal(replaced.is_replaced_BT.numpy(), y_BT)
    p_BT = 1 / (1 + np.exp(-z_BT))
    nll_BT = -np.where(y_BT, np.log(p_BT), np.log1p(-p_BT))
    judged_BT = batch.judged_BT.numpy()
    detection = nll_BT[judged_BT].sum()
    losses = parts.losses
    assert float(losses["generator_loss"].total.detach()) == pytest.approx(generator_nll, rel=1e-5)
    assert float(losses["detection_loss"].total.detach()) == pytest.approx(detection, rel=1e-5)
    count = int(judged_BT.sum())
    total = generator_nll / len(labels_M) + WEIGHT * detection / count
    assert float(parts.total.detach()) == pytest.approx(total, rel=1e-5)
    right = ((z_BT > 0) == y_BT)[judged_BT].mean()
    assert float(parts.metrics["detection_accuracy"].mean) == pytest.approx(right)
    assert float(parts.metrics["original_share"].mean) == pytest.approx(1 - y_BT.sum() / count)


def test_a_token_that_is_put_back_counts_as_original():
    network, batch = model(), batches()(0)
    often = int(batch.labels_M.mode().values)
    with torch.no_grad():
        network.generator.output_bias[often] = 1e4
    replaced = replaced_rows(network, batch)
    assert (replaced.ids_BT.flatten()[batch.masked_M] == often).all()
    assert int(replaced.is_replaced_BT.sum()) == int((batch.labels_M != often).sum())
    assert 0 < int(replaced.is_replaced_BT.sum()) < len(batch.labels_M)


def gradients(network: DetectorWithGenerator, loss: Tensor) -> dict[str, bool]:
    """Whether a loss teaches each parameter."""
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: grad is not None and bool(grad.abs().sum() > 0)
            for name, grad in zip(parameters, found, strict=True)}  # fmt: skip


def test_each_loss_teaches_its_own_network_and_both_the_embeddings():
    network, batch = model(), batches()(0)
    parts = electra_loss(network, batch, WEIGHT).losses
    by_detection = gradients(network, parts["detection_loss"].total)
    by_generator = gradients(
        network, electra_loss(network, batch, WEIGHT).losses["generator_loss"].total
    )
    for name, taught in by_detection.items():
        embeds = name.startswith("body.") and "blocks" not in name
        assert taught == (not name.startswith("generator.")), name
        assert by_generator[name] == (name.startswith("generator.") or embeds), name


def test_a_batch_in_parts_has_the_losses_of_the_whole():
    network, batch = model(), batches()(1)
    whole = electra_loss(network, batch, WEIGHT)
    parts = [electra_loss(network, batch.rows(n, n + 1), WEIGHT) for n in range(len(batch))]
    assert len(parts) > 1
    for kind in ("losses", "metrics"):
        for name, figure in getattr(whole, kind).items():
            divided = [getattr(part, kind)[name] for part in parts]
            assert sum(part.count for part in divided) == figure.count
            total = sum(float(part.total.detach()) for part in divided)
            # Sums of fp32 in another order.
            assert total == pytest.approx(float(figure.total.detach()), rel=1e-4), name


def test_the_widths_of_generators():
    # Clark et al. 2020, table 6: a quarter of 256 (in their code), a third of 768.
    assert generator_width(256, 0.25) == 64
    assert generator_width(768, 1 / 3) == 256
    assert generator_width(768, 0.25) == 192
    for width in (32, 96, 128, 320, 1024):
        for share in (0.1, 0.25, 0.5, 1.0):
            found = generator_width(width, share)
            assert found % max(1, found // 64) == 0  # heads divide it


def test_what_was_learned_in_words():
    def learned(loss: float) -> tuple[str, str]:
        values = {"detection_loss": loss, "detection_accuracy": 0.93, "original_share": 0.9}
        found = describe_detection({"validation": values})[LEARNED]
        return found["from"], found["says"]

    chance = entropy_of_share(0.9)
    assert chance == pytest.approx(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))
    assert learned(chance)[0] == NOTHING
    assert learned(0.9 * chance)[0] == LITTLE
    how, says = learned(0.5 * chance)
    assert how == CONTEXT
    assert "93.0% right" in says
    assert "90.0%" in says
    assert describe_detection({}) == {}
