"""Drawing from a generator, and what it shares with its discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.models.electra import Electra, ElectraConfig
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator, sample_tokens


def pair(seed: int = 0) -> DetectorWithGenerator:
    torch.manual_seed(seed)
    config = ElectraConfig(
        vocab_size=50, num_layers=2, hidden_size=32, num_heads=2, max_positions=32,
        initializer_range=0.2,
    )  # fmt: skip
    narrow = config.replace(
        hidden_size=16, embedding_size=32, num_heads=1, intermediate_size=64, num_layers=3
    )
    return DetectorWithGenerator(Electra(config), MaskedLM(Electra(narrow), next_sentence=False))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 10**6))
def test_what_is_drawn_is_the_inverse_of_the_distribution(V: int, M: int, seed: int):
    generator = np.random.default_rng(seed)
    hidden_MD, weight_VD = generator.normal(size=(M, 5)), generator.normal(size=(V, 5))
    bias_V = 3 * generator.normal(size=V)
    drawn_M = generator.random(M)
    sampled_M = sample_tokens(*map(torch.from_numpy, (hidden_MD, weight_VD, bias_V, drawn_M)))
    logits_MV = hidden_MD @ weight_VD.T + bias_V
    p_MV = np.exp(logits_MV - logits_MV.max(1, keepdims=True))
    edges_MV = np.cumsum(p_MV / p_MV.sum(1, keepdims=True), axis=1)
    ends = edges_MV[np.arange(M), sampled_M]
    begins = ends - (p_MV / p_MV.sum(1, keepdims=True))[np.arange(M), sampled_M]
    # The logits are kept in fp32, so that an edge may lie a little elsewhere.
    assert (begins - 1e-5 <= drawn_M).all()
    assert (drawn_M <= ends + 1e-5).all()


def test_tokens_come_as_often_as_they_are_likely():
    torch.manual_seed(0)
    V, M = 130, 200_000
    bias_V = torch.randn(V) * 1.5
    zero_MD, weight_VD = torch.zeros(M, 1), torch.zeros(V, 1)
    drawn_M = torch.from_numpy(np.random.default_rng(0).random(M))
    counts_V = torch.bincount(sample_tokens(zero_MD, weight_VD, bias_V, drawn_M), minlength=V)
    expected_V = M * torch.softmax(bias_V.double(), 0)
    chi_square = float(((counts_V - expected_V) ** 2 / expected_V).sum())
    # 129 degrees of freedom: mean 129, standard deviation √258.
    assert abs(chi_square - (V - 1)) < 5 * (2 * (V - 1)) ** 0.5


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-53])
def test_what_has_no_probability_is_never_drawn(drawn: float):
    bias_V = torch.full((200,), -1e9)
    bias_V[[70, 131]] = 0.0
    sampled = sample_tokens(
        torch.zeros(4, 1), torch.zeros(200, 1), bias_V, torch.full((4,), drawn).double()
    )
    assert set(sampled.tolist()) == {70 if drawn < 0.5 else 131}


def test_the_embeddings_are_one_and_kept_once():
    model = pair()
    shared = ("token_embedding", "position_embedding", "segment_embedding", "norm")
    for name in shared:
        assert getattr(model.generator.body, name) is getattr(model.body, name)
    state = model.state_dict()
    assert not [name for name in state if name.startswith("generator.body.norm")]
    assert not [name for name in state if name.startswith("generator.body.token_embedding")]
    assert "generator.body.embedding_projection.weight" in state
    assert "generator.transform.weight" in state
    other = pair(seed=1)
    other.load_state_dict(state)
    ids_BT = torch.randint(5, 50, (2, 8))
    for network, again in ((model.body, other.body), (model.generator.body, other.generator.body)):
        assert torch.equal(network(ids_BT), again(ids_BT))
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in state.values())


def test_the_discriminator_alone_is_the_same_network():
    model = pair()
    ids_BT = torch.randint(5, 50, (2, 8))
    alone = model.alone()
    assert torch.equal(alone.logits(alone.body(ids_BT)), model.logits(model.body(ids_BT)))
    assert not [name for name in alone.state_dict() if "generator" in name]
