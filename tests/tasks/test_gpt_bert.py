"""Both ways of reading in one network: what is hidden, what is scored, and who sees what."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.shards.windows import TokenStream, WindowBatches
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.gpt_bert import MaskedNextTokenLM
from llmctl.models.llama import Llama, LlamaConfig
from llmctl.tasks.gpt_bert.batches import GptBertBatch, GptBertBatches
from llmctl.tasks.gpt_bert.config import GptBertObjective
from llmctl.tasks.gpt_bert.loss import gpt_bert_loss
from tests.tasks.test_masked_lm import MASK, UNK, Documents, V

T, ROWS = 24, 8
START = 2


class Pieces:
    """What batches ask of a tokenizer."""

    special: ClassVar[dict[str, int]] = {"bos": START, "eos": START, "mask": MASK, "unk": UNK}
    ordinary = np.arange(5, V)
    continuation = np.zeros(V, dtype=bool)
    token_bytes = np.ones(V, dtype=np.int64)


def batches(
    *, evenly: bool = False, seed: int = 5, repeat: bool = True, **objective: Any
) -> GptBertBatches:
    documents = Documents(np.random.default_rng(1).integers(5, 90, 40).tolist())
    windows = WindowBatches(
        TokenStream(documents, START, START),  # type: ignore[arg-type]
        sequence_length=T, batch_size=ROWS, seed=seed, repeat=repeat,
    )  # fmt: skip
    pieces: Any = Pieces()
    return GptBertBatches(windows, pieces, GptBertObjective(**objective), seed=seed, evenly=evenly)


def model() -> MaskedNextTokenLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=64,
        initializer_range=0.2,
    )  # fmt: skip
    return MaskedNextTokenLM(Llama(config)).eval()


def original(made: GptBertBatches, number: int) -> NDArray[np.int64]:
    return made.windows.batch(number).ids


def test_rows_from_left_to_right_are_as_they_are_and_all_is_scored():
    made = batches(causal_share=0.5)
    for number in range(4):
        batch, ids = made(number), original(made, number)
        K = batch.causal_rows
        assert K == 4
        assert np.array_equal(batch.input_ids_BT[:K].numpy(), ids[:K, :-1])
        assert np.array_equal(batch.labels_BT[:K].numpy(), ids[:K, 1:])
        assert batch.loss_denominators["lm_loss"] == K * T


def test_a_hidden_token_is_the_label_of_the_place_before_it():
    made = batches(causal_share=0.0, mask_rate=0.4)
    hidden = shown = 0
    for number in range(12):
        batch, ids = made(number), original(made, number)
        labels, inputs = batch.labels_BT.numpy(), batch.input_ids_BT.numpy()
        rows, places = np.nonzero(labels != IGNORED)
        assert np.array_equal(labels[rows, places], ids[rows, places + 1])
        assert (places + 1 < T).all()  # a token behind the row is not hidden, but absent
        assert not (ids[rows, places + 1] < 5).any()  # special ones never are
        changed = inputs != ids[:, :-1]
        is_hidden = np.zeros_like(changed)
        is_hidden[rows, places + 1] = True
        assert not (changed & ~is_hidden).any()
        assert batch.loss_denominators == {"lm_loss": 0, "mntp_loss": len(rows)}
        shown += int((inputs[is_hidden] == MASK).sum())
        hidden += len(rows)
        ordinary = int((ids[:, 1:-1] >= 5).sum())
        assert 0.25 < len(rows) / ordinary < 0.55
    # Of n draws with probability p the standard deviation is √(n p (1 − p)).
    assert abs(shown - 0.8 * hidden) < 5 * (hidden * 0.8 * 0.2) ** 0.5


@pytest.mark.parametrize("share", [0.0, 1 / 16, 0.3, 1.0])
def test_the_share_is_met_on_average(share: float):
    made = batches(causal_share=share)
    rows = [made(number).causal_rows for number in range(200)]
    assert max(rows) - min(rows) <= 1
    fraction = share * ROWS % 1
    deviation = (200 * fraction * (1 - fraction)) ** 0.5
    assert abs(sum(rows) - 200 * ROWS * share) <= 5 * deviation
    for number in range(5):
        batch = made(number)
        assert batch.causal_weight == batch.causal_rows / ROWS


def test_a_batch_is_a_pure_function_of_its_number():
    one, other = batches(causal_share=0.3), batches(causal_share=0.3)
    other(2)
    for number in (4, 0):
        first, second = one(number), other(number)
        assert torch.equal(first.input_ids_BT, second.input_ids_BT)
        assert torch.equal(first.labels_BT, second.labels_BT)
    epoch = one.per_epoch
    assert not torch.equal(one(0).input_ids_BT, one(epoch).input_ids_BT)


def test_validation_looks_at_both_kinds_alike():
    made = batches(evenly=True, repeat=False, causal_share=1 / 16)
    assert [made(number).causal_rows for number in range(made.per_epoch - 1)] == [4] * (
        made.per_epoch - 1
    )
    assert made(0).causal_weight == 1 / 16


def log_p(logits_MV: Tensor) -> NDArray[np.float64]:
    z_MV = logits_MV.detach().double().numpy()
    z_MV = z_MV - z_MV.max(-1, keepdims=True)
    result: NDArray[np.float64] = z_MV - np.log(np.exp(z_MV).sum(-1, keepdims=True))
    return result


def test_the_losses_are_those_of_the_formula():
    network, batch = model(), batches(causal_share=0.5)(0)
    parts = gpt_bert_loss(network, batch)
    ids_BT, labels_BT = batch.input_ids_BT, batch.labels_BT.numpy()
    totals = {}
    for name, rows in (("lm_loss", slice(0, 4)), ("mntp_loss", slice(4, None))):
        total, count = 0.0, 0
        for ids_T, labels_T in zip(ids_BT[rows], labels_BT[rows], strict=True):
            for place in np.flatnonzero(labels_T != IGNORED):
                # From left to right a token is found from those before it; a mask from all.
                seen_T = ids_T[: place + 1] if name == "lm_loss" else ids_T
                hidden_TD = network.body(seen_T[None], bidirectional=name != "lm_loss")[0]
                total -= log_p(network.logits(hidden_TD[place]))[labels_T[place]]
                count += 1
        found = parts.losses[name]
        assert found.count == count
        # fp32 over a few thousand terms.
        assert float(found.total.detach()) == pytest.approx(total, rel=1e-4)
        totals[name] = total / count
    whole = 0.5 * totals["lm_loss"] + 0.5 * totals["mntp_loss"]
    assert float(parts.total.detach()) == pytest.approx(whole, rel=1e-4)


def test_a_batch_in_parts_has_the_losses_of_the_whole():
    network, batch = model(), batches(causal_share=0.3)(1)
    whole = gpt_bert_loss(network, batch)
    parts: list[GptBertBatch] = [batch.rows(n, n + 1) for n in range(len(batch))]
    for name, figure in whole.losses.items():
        divided = [gpt_bert_loss(network, part).losses[name] for part in parts]
        assert sum(part.count for part in divided) == figure.count
        assert {part.weight for part in divided} == {figure.weight}
        total = sum(float(part.total.detach()) for part in divided)
        assert total == pytest.approx(float(figure.total.detach()), rel=1e-4)


def test_left_to_right_nothing_behind_is_seen_and_both_ways_everything():
    network = model()
    ids_BT = torch.randint(5, V, (2, 10))
    changed_BT = ids_BT.clone()
    changed_BT[:, 6] = 5 + (ids_BT[:, 6] - 4) % (V - 5)
    with torch.no_grad():
        one_way = network.body(ids_BT), network.body(changed_BT)
        both = network.read(ids_BT), network.read(changed_BT)
    assert torch.equal(one_way[0][:, :6], one_way[1][:, :6])
    assert not torch.allclose(one_way[0][:, 6:], one_way[1][:, 6:])
    moved_BT = (both[0] - both[1]).abs().amax(-1)
    assert (moved_BT > 1e-4).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_kind_alone_trains_too(share: float):
    network, batch = model(), batches(causal_share=share)(0)
    parts = gpt_bert_loss(network, batch)
    parts.total.backward()
    assert all(p.grad is not None for p in network.parameters())
    absent = "lm_loss" if share == 0 else "mntp_loss"
    assert (parts.losses[absent].count, float(parts.losses[absent].total)) == (0, 0.0)
