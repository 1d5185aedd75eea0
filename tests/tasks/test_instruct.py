"""Instruction tuning: what is scored, where long conversations are cut, no leak between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.packing import deal, pack
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.instruct.batches import PACKED_LENGTH_STEP, InstructExample, collate, fit
from llmctl.tokenizers.chat_template import EncodedChat

V = 40
TOKEN_BYTES = np.arange(V)


def tiny(name: str) -> CausalLM:
    """Weights ten times the usual, so that a leak would show."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    config = architecture.config(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=128,
        initializer_range=0.2,
    )  # fmt: skip
    model = CausalLM(architecture.build(config))
    with torch.no_grad():  # nanochat's blocks begin as the identity
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def example(length: int, seed: int) -> InstructExample:
    """Random ids, about half of them scored, one at least."""
    generator = np.random.default_rng(seed)
    scored = generator.random(length) < 0.5
    scored[0], scored[-1] = False, True
    return InstructExample(generator.integers(0, V, length), scored)


LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
@pytest.mark.parametrize("name", ["gpt", "llama", "nanochat"])
def test_packed_conversations_have_the_losses_and_gradients_that_each_has_alone(
    name: str, lengths: list[int], seed: int
):
    """fp32 sums in another order: 1e-4 of the largest gradient."""
    model = tiny(name)
    examples = [example(length, seed + number) for number, length in enumerate(lengths)]
    rows = pack(np.asarray([e.num_positions for e in examples]), 64)
    together = collate([[examples[i] for i in row] for row in rows], token_bytes=TOKEN_BYTES)
    parts = causal_lm_loss(model, together)
    loss = parts.losses["lm_loss"]
    model.zero_grad()
    loss.total.backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters()}  # type: ignore[union-attr]
    model.zero_grad()
    total, count, correct = 0.0, 0, 0.0
    for one in examples:
        ids = torch.from_numpy(one.ids)
        # Without packing: plain causal attention, positions from 0, cross-entropy by PyTorch.
        logits = model.logits(model.body(ids[None, :-1])[0])
        labels = ids[1:].where(torch.from_numpy(one.scored[1:]), IGNORED)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        nll.backward()
        total += nll.item()
        count += int(one.scored[1:].sum())
        correct += (logits.argmax(-1) == labels).sum().item()
    assert loss.count == count
    assert loss.total.item() == pytest.approx(total, rel=1e-4)
    assert parts.metrics["lm_accuracy"].total.item() == correct
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(packed[key], parameter.grad, rtol=0, atol=1e-4 * scale + 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "llama", "nanochat"])
def test_another_conversation_in_the_row_changes_nothing(name: str):
    """Bit for bit: what is masked has a weight of exactly zero."""
    model = tiny(name)
    first, last = example(20, 1), example(15, 2)
    batches = [
        collate([[first, other, last]], token_bytes=TOKEN_BYTES)
        for other in (example(10, 3), example(10, 4))
    ]
    hidden = [
        model.body(batch.input_ids_BT, batch.packed, batch.position_ids_BT) for batch in batches
    ]
    assert not torch.equal(hidden[0][:, 19:28], hidden[1][:, 19:28])
    assert torch.equal(hidden[0][:, :19], hidden[1][:, :19])
    assert torch.equal(hidden[0][:, 28:42], hidden[1][:, 28:42])


def test_rows_by_hand():
    a = InstructExample(np.array([1, 2, 3, 4]), np.array([False, False, True, True]))
    b = InstructExample(np.array([5, 6, 7]), np.array([False, True, False]))
    batch = collate([[a, b], [b]], token_bytes=TOKEN_BYTES)
    assert batch.input_ids_BT.shape == (2, PACKED_LENGTH_STEP)
    assert batch.input_ids_BT[0, :6].tolist() == [1, 2, 3, 5, 6, 0]
    assert batch.labels_BT[0, :6].tolist() == [IGNORED, 3, 4, 6, IGNORED, IGNORED]
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT[0, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert (batch.scored, batch.scored_bytes) == (4, 3 + 4 + 6 + 6)
    assert (batch.real_tokens, batch.num_positions) == (3 + 2 + 2, 2 * PACKED_LENGTH_STEP)
    assert batch.packed is not None
    allowed_BTT = batch.packed.attention_mask(causal=True)
    assert allowed_BTT[0, 4, :6].tolist() == [False, False, False, True, True, False]
    # Padding sees something, and positions of the table only.
    assert allowed_BTT.any(-1).all()
    assert batch.position_ids_BT.max() == 2


def chat(*turns: tuple[int, int]) -> EncodedChat:
    """So many tokens asked and answered, in turns."""
    scored = np.concatenate([np.repeat([False, True], pair) for pair in turns])
    stops = np.cumsum([sum(pair) for pair in turns])
    return EncodedChat(np.arange(len(scored)), scored, tuple(stops.tolist()))


@pytest.mark.parametrize(
    ("turns", "max_length", "length"),
    [
        ([(3, 4)], 7, 7),
        ([(3, 4), (2, 5)], 14, 14),
        ([(3, 4), (2, 5)], 13, 7),  # behind the first answer
        ([(3, 4), (2, 5)], 7, 7),
        ([(3, 4), (2, 5)], 6, 6),  # within the first answer
        ([(3, 4)], 4, 4),
        ([(3, 4)], 3, None),  # no answer is left
    ],
)
def test_where_long_conversations_are_cut(
    turns: list[tuple[int, int]], max_length: int, length: int | None
):
    fitted = fit(chat(*turns), max_length)
    if length is None:
        assert fitted is None
        return
    assert fitted is not None
    assert fitted.ids.tolist() == list(range(length))
    assert fitted.scored.tolist() == chat(*turns).scored[:length].tolist()


@given(data=st.data(), lengths=LENGTHS)
def test_every_text_is_dealt_once_and_every_batch_has_a_row(
    data: st.DataObject, lengths: list[int]
):
    batches = data.draw(st.integers(1, len(lengths)))
    dealt = deal(np.asarray(lengths), 64, batches, key=data.draw(st.integers(0, 9)))
    assert len(dealt) == batches
    assert all(batch and all(batch) for batch in dealt)
    assert sorted(i for batch in dealt for row in batch for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for batch in dealt for row in batch)
    counts: Any = [len(batch) for batch in dealt]
    assert max(counts) - min(counts) <= 1
