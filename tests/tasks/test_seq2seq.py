"""Sequence to sequence: the loss is that of step-by-step scoring, and nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmctl.formats.filling import fill
from llmctl.formats.huggingface.tensors import export_model, import_model
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.seq2seq import (
    Seq2Seq,
    Seq2SeqShape,
    attach,
    build,
)
from llmctl.tasks.seq2seq.batches import EncodedPair, collate, encode
from llmctl.tasks.seq2seq.loss import seq2seq_loss
from llmctl.tokenizers.frames import Frame

V = 20
FRAME = Frame(before=(), after=(1,), start=(0,), end=(1,))


def gpt(arch: str = "gpt", layers: int = 2) -> CausalLM:
    architecture = ARCHITECTURES[arch]
    config = architecture.config(
        vocab_size=V, num_layers=layers, hidden_size=16, num_heads=2, max_positions=16
    )
    return spread(CausalLM(architecture.build(config)))


def spread(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def translator(arch: str = "gpt", **shape: object) -> Seq2Seq:
    model = attach(gpt(arch), Seq2SeqShape(**shape), ARCHITECTURES[arch])
    return spread(model)


PAIRS = [
    EncodedPair(np.array([3, 4, 5, 1]), np.array([0, 7, 8, 1])),
    EncodedPair(np.array([9, 1]), np.array([0, 6, 5, 4, 3, 2, 1])),
    EncodedPair(np.array([2, 2, 2, 2, 2, 2, 2, 2, 2, 1]), np.array([0, 1])),
]
ARCHES = pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])


@ARCHES
@pytest.mark.parametrize("cross_attention", [True, False])
def test_the_loss_is_that_of_step_by_step_scoring(arch: str, cross_attention: bool):
    model = translator(arch, cross_attention=cross_attention)
    batch = collate(PAIRS)
    with torch.no_grad():
        parts = seq2seq_loss(model, batch)
        total = 0.0
        for pair in PAIRS:
            read = model.read(torch.tensor(pair.source)[None], torch.tensor([len(pair.source)]))
            for n in range(1, len(pair.target)):
                past = torch.tensor(pair.target[:n])[None]
                logits = model.decoder.logits(model.decoder.body(past, source=read)[0, -1])
                total -= float(logits.log_softmax(-1)[pair.target[n]])
    ratio = parts.losses["target_loss"]
    assert ratio.count == batch.scored == 3 + 6 + 1
    assert float(ratio.total) == pytest.approx(total, rel=1e-4)


@ARCHES
def test_nothing_of_the_future_leaks(arch: str):
    """A later token of the target moves no earlier prediction; every token of the source may."""
    model = translator(arch)
    batch = collate(PAIRS)
    embedded = {}

    def keep(name: str):
        def hook(module: nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
            embedded[name] = output.detach().requires_grad_()
            return embedded[name]

        return hook

    embedding = model.body.token_embedding
    handle = embedding.register_forward_hook(keep("source"))
    read = model.read(batch.source_ids_BS, batch.source_lengths_B)
    handle.remove()
    handle = embedding.register_forward_hook(keep("target"))
    hidden_BTD = model.decoder.body(batch.input_ids_BT, source=read)
    handle.remove()
    place = 2
    # Not their squares: the sum of those is what a norm without weights keeps the same.
    turned = hidden_BTD[1, place] @ torch.randn(hidden_BTD.shape[-1])
    found = torch.autograd.grad(turned, [embedded["source"], embedded["target"]])
    source, target = (gradient.abs().sum(-1) > 0 for gradient in found)
    assert target[1].tolist() == [n <= place for n in range(target.shape[1])]
    assert source[1].tolist() == [n < 2 for n in range(source.shape[1])]
    assert not source[[0, 2]].any()
    assert not target[[0, 2]].any()


def test_the_bare_decoder_knows_the_last_state_alone():
    model = translator(cross_attention=False)
    assert not model.attends
    batch = collate(PAIRS)
    states: list[torch.Tensor] = []
    body = model.body.forward

    def forward(*arguments: object) -> torch.Tensor:
        states.append(body(*arguments).detach().requires_grad_())
        return states[0]

    model.body.forward = forward  # type: ignore[method-assign]
    (gradient,) = torch.autograd.grad(seq2seq_loss(model, batch).total, states)
    last = (gradient.abs().sum(-1) > 0).int()
    assert last.sum(1).tolist() == [1, 1, 1]
    assert last.argmax(1).tolist() == [3, 1, 9]


@ARCHES
def test_a_decoder_begins_as_the_gpt_it_is_attached_to(arch: str):
    """With fewer blocks, as evenly chosen ones; what attends to the source is new."""
    base = gpt(arch, layers=4)
    model = attach(base, Seq2SeqShape(decoder_layers=2), ARCHITECTURES[arch])
    blocks = base.body.blocks
    for block, source in zip(model.decoder.body.blocks, (blocks[0], blocks[3]), strict=True):
        ours = dict(block.named_parameters())
        for name, parameter in source.named_parameters():
            assert torch.equal(ours[name], parameter)
    assert model.decoder.body.token_embedding is model.body.token_embedding
    fresh = attach(base, Seq2SeqShape(decoder_start="fresh"), ARCHITECTURES[arch])
    first = fresh.decoder.body.blocks[0].attention.query_key_value.weight
    assert not torch.equal(first, blocks[0].attention.query_key_value.weight)
    assert torch.equal(
        fresh.body.blocks[0].attention.query_key_value.weight,
        blocks[0].attention.query_key_value.weight,
    )


@ARCHES
@pytest.mark.parametrize("shape", [{}, {"cross_attention": False, "decoder_layers": 1}], ids=str)
def test_tensors_by_name_give_the_network_again(arch: str, shape: dict[str, object]):
    model = translator(arch, **shape)
    spec, configs = ARCHITECTURES[arch], (model.body.config, model.decoder.body.config)
    tensors = export_model(model.state_dict(), "seq2seq", spec, *configs)
    again = build(model.body.config, Seq2SeqShape(**shape), spec).eval()
    fill(again.state_dict(), import_model(tensors, "seq2seq", spec, *configs))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    # Each number is kept once.
    counted = sum(tensor.numel() for tensor in tensors.values())
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_smoothing_is_for_training_alone():
    model = translator()
    batch = collate(PAIRS)
    plain = seq2seq_loss(model, batch).total.item()
    assert seq2seq_loss(model, batch, smoothing=0.2).total.item() == plain
    model.train()
    assert seq2seq_loss(model, batch, smoothing=0.2).total.item() != pytest.approx(plain, rel=1e-3)


IDS = st.lists(st.integers(2, V - 1), max_size=12)


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6), st.integers(2, 9), st.integers(2, 9))
def test_batches_hold_every_token_once(
    texts: list[tuple[list[int], list[int]]], max_source: int, max_target: int
):
    pairs = [
        encode(source, target, frame=FRAME, max_source=max_source, max_target=max_target)
        for source, target in texts
    ]
    batch = collate(pairs)
    for row, (source, target) in enumerate(texts):
        length = int(batch.source_lengths_B[row])
        kept_source, kept_target = source[: max_source - 1], target[: max_target - 1]
        assert batch.source_ids_BS[row, :length].tolist() == [*kept_source, 1]
        labels = batch.labels_BT[row]
        assert labels[labels != IGNORED].tolist() == [*kept_target, 1]
        inputs = batch.input_ids_BT[row, : len(kept_target) + 1]
        assert inputs.tolist() == [0, *kept_target]
        prefix = pairs[row].as_prefix
        assert prefix.ids.tolist() == [0, *kept_source, 1, *kept_target, 1]
        assert prefix.ids[prefix.scored].tolist() == [*kept_target, 1]
    assert batch.scored == sum(len(pair.target) - 1 for pair in pairs)
    assert batch.num_positions >= batch.real_tokens
