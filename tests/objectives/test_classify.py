"""Classification: batches, truncation, freezing, the weighted loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.models.bert import Bert, BertConfig
from llmctl.objectives.classify import (
    Classifier,
    EncodedExample,
    ExampleBatch,
    collate,
    from_hugging_face,
    start_from,
    to_hugging_face,
    with_special_tokens,
)
from llmctl.objectives.masked_lm import MaskedLM
from llmctl.objectives.masked_lm import to_hugging_face as masked_lm_tensors
from llmctl.training.config import TrainingConfig
from llmctl.training.optimiser import build_optimiser

PAD, CLS, SEP = 0, 2, 3
V, CLASSES = 50, 3

IDS = st.lists(st.integers(5, V - 1), max_size=30)


def tiny_config(num_layers: int = 2) -> BertConfig:
    return BertConfig(
        vocab_size=V,
        num_layers=num_layers,
        hidden_size=32,
        num_heads=2,
        max_positions=64,
        initializer_range=0.2,
    )


def tiny(
    *, num_layers: int = 2, dropout: float = 0.0, class_weights: list[float] | None = None
) -> Classifier:
    torch.manual_seed(0)
    body = Bert(tiny_config(num_layers))
    return Classifier(body, CLASSES, dropout=dropout, class_weights=class_weights)


def examples(count: int, seed: int = 0) -> list[EncodedExample]:
    generator = np.random.default_rng(seed)

    def text() -> list[int]:
        return generator.integers(5, V, generator.integers(1, 20)).tolist()

    return [
        with_special_tokens(
            text(),
            text() if number % 2 else None,
            cls=CLS,
            sep=SEP,
            max_length=32,
            label=int(generator.integers(CLASSES)),
        )
        for number in range(count)
    ]


def numpy_nll(model: Classifier, batch: ExampleBatch) -> tuple[NDArray[np.float64], ...]:
    with torch.no_grad():
        logits = model.eval()(batch).double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    labels = batch.labels_B.numpy()
    nll = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    return nll, logits, labels


@settings(max_examples=100, deadline=None)
@given(first=IDS, second=IDS | st.none(), max_length=st.integers(3, 70))
def test_truncation_takes_from_the_longer_text(
    first: list[int], second: list[int] | None, max_length: int
):
    example = with_special_tokens(first, second, cls=CLS, sep=SEP, max_length=max_length)
    ids = example.ids.tolist()
    room = max_length - (2 if second is None else 3)
    assert ids[0] == CLS
    assert ids[-1] == SEP
    a = ids[1 : example.second - 1]
    assert ids[example.second - 1] == SEP
    assert a == first[: len(a)]
    if second is None:
        assert example.second == len(ids)
        assert len(a) == min(len(first), room)
        return
    b = ids[example.second : -1]
    assert b == second[: len(b)]
    assert len(a) + len(b) == min(len(first) + len(second), room)
    if len(a) < len(first) and len(b) < len(second):
        assert abs(len(a) - len(b)) <= 1
    elif len(a) < len(first):
        assert len(a) >= len(b) - 1
    elif len(b) < len(second):
        assert len(b) >= len(a) - 1


def test_special_tokens_by_hand():
    example = with_special_tokens([5, 6, 7, 8, 9], [10, 11], cls=CLS, sep=SEP, max_length=8)
    assert example.ids.tolist() == [CLS, 5, 6, 7, SEP, 10, 11, SEP]
    assert example.second == 5
    single = with_special_tokens([5, 6, 7], None, cls=CLS, sep=SEP, max_length=4, label=2)
    assert single.ids.tolist() == [CLS, 5, 6, SEP]
    assert single.label == 2


def test_collate_pads_to_the_longest_and_masks_the_rest():
    batch = collate(
        [
            EncodedExample(np.array([CLS, 5, SEP, 6, SEP]), 3, 1),
            EncodedExample(np.array([CLS, 7, SEP]), 3, 0),
        ],
        PAD,
    )
    assert batch.input_ids_BT.tolist() == [[CLS, 5, SEP, 6, SEP], [CLS, 7, SEP, PAD, PAD]]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.labels_B.tolist() == [1, 0]
    assert (batch.real_tokens, batch.slots) == (8, 10)


@torch.no_grad()
def test_an_example_has_the_same_logits_alone_and_padded():
    """fp32 sums in another order: 1e-5."""
    model, made = tiny().eval(), examples(12)
    together = model(collate(made, PAD))
    for row, example in enumerate(made):
        alone = model(collate([example], PAD))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_loss_and_accuracy_are_what_numpy_makes_of_the_logits():
    model, batch = tiny(), collate(examples(30), PAD)
    nll, logits, labels = numpy_nll(model, batch)
    parts = model.loss(batch)
    assert parts.losses["classification_loss"].total.item() == pytest.approx(nll.sum(), rel=1e-5)
    assert parts.total.item() == pytest.approx(nll.mean(), rel=1e-5)
    hits = int((logits.argmax(-1) == labels).sum())
    assert 0 < hits < len(labels)
    assert parts.metrics["accuracy"].total.item() == hits
    assert parts.metrics["accuracy"].count == len(labels)


def test_class_weights_multiply_each_examples_loss():
    weights = [0.5, 3.0, 0.0]
    batch = collate(examples(30), PAD)
    model = tiny(class_weights=weights)
    nll, _, labels = numpy_nll(model, batch)
    weighted = (nll * np.asarray(weights)[labels]).sum()
    loss = model.loss(batch).losses["classification_loss"]
    assert loss.total.item() == pytest.approx(weighted, rel=1e-5)
    assert loss.count == 30
    assert not any("class_weights" in name for name in model.state_dict())


def test_dropout_is_on_in_training_only():
    batch = collate(examples(8), PAD)
    model = tiny(dropout=0.5)
    model.train()
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_layers_stay_bit_for_bit_and_get_no_gradient(frozen: int):
    model = tiny(num_layers=3)
    model.freeze_layers(frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = build_optimiser(
        model.named_parameters(), TrainingConfig(learning_rate=0.01, weight_decay=0.1)
    )
    for step in range(5):
        optimiser.zero_grad()
        model.train().loss(collate(examples(8, seed=step), PAD)).total.backward()
        optimiser.step()
    kept = (
        "body.token_embedding.",
        "body.position_embedding.",
        "body.segment_embedding.",
        "body.norm.",
        *(f"body.blocks.{number}." for number in range(frozen)),
    )
    for name, parameter in model.named_parameters():
        if name.startswith(kept):
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is not None, name
            assert not torch.equal(parameter, before[name]), name


def test_without_freezing_every_parameter_gets_a_gradient():
    model = tiny()
    model.loss(collate(examples(16), PAD)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_classifier_survives_the_names_of_hugging_face():
    model, batch = tiny(), collate(examples(8), PAD)
    copy = from_hugging_face(Bert(tiny_config()), to_hugging_face(model))
    assert len(copy.output.bias) == CLASSES
    assert torch.equal(model.eval()(batch), copy.eval()(batch))


def test_finetuning_starts_from_the_pretrained_body_and_pooler():
    torch.manual_seed(1)
    pretrained = MaskedLM(Bert(tiny_config()))
    model = start_from(Bert(tiny_config()), masked_lm_tensors(pretrained), CLASSES, dropout=0.1)
    for name, value in pretrained.body.state_dict().items():
        assert torch.equal(model.body.state_dict()[name], value), name
    assert pretrained.pooler is not None
    assert torch.equal(model.pooler.weight, pretrained.pooler.weight)
    assert torch.equal(model.pooler.bias, pretrained.pooler.bias)


def test_a_model_without_pooler_gives_the_body_alone():
    torch.manual_seed(1)
    pretrained = MaskedLM(Bert(tiny_config()), next_sentence=False)
    model = start_from(Bert(tiny_config()), masked_lm_tensors(pretrained), CLASSES, dropout=0.1)
    assert torch.equal(model.body.norm.weight, pretrained.body.norm.weight)
    assert torch.equal(model.body.token_embedding.weight, pretrained.body.token_embedding.weight)


def test_a_pretrained_model_is_no_classifier():
    with pytest.raises(InputError, match="not a classifier"):
        from_hugging_face(Bert(tiny_config()), masked_lm_tensors(MaskedLM(Bert(tiny_config()))))
