"""LoRA: the identity at its start, alone in training, the same merged."""

from __future__ import annotations

import pytest
import torch

from llmctl.config import build
from llmctl.errors import ConfigError
from llmctl.models.spec import roles_of
from llmctl.training.adapters.base import additions_of, merge
from llmctl.training.adapters.lora import LoraConfig, LoraLinear, add_lora
from tests.training.adapters.test_freezing import DECODERS, batch, loss_of, tiny, train

NETWORKS = [
    ("bert", True),
    ("modernbert", True),
    *((name, task) for name in DECODERS for task in (True, False)),
]


def new_parts(name: str, classify: bool) -> tuple[str, ...]:
    encoders = {
        "bert": ("pooler", "output"),
        "modernbert": ("transform", "transform_norm", "output"),
    }
    return encoders.get(name, ("output",)) if classify else ()


@pytest.mark.parametrize(("name", "classify"), NETWORKS)
def test_the_start_is_the_identity_bit_for_bit(name: str, classify: bool):
    model = tiny(name, classify=classify).eval()
    here = batch(0, classify=classify)
    before = loss_of(model, here).total
    add_lora(model, LoraConfig())
    assert torch.equal(loss_of(model.eval(), here).total, before)
    assert any(isinstance(module, LoraLinear) for module in model.modules())


@pytest.mark.parametrize(("name", "classify"), NETWORKS)
def test_the_addition_and_new_parts_alone_are_trained(name: str, classify: bool):
    model = tiny(name, classify=classify)
    new = new_parts(name, classify)
    add_lora(model, LoraConfig(rank=4), new=new)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, classify=classify)
    trained = set()
    for key, parameter in model.named_parameters():
        if "lora_" in key or key.partition(".")[0] in new:
            assert parameter.grad is not None, key
            assert not torch.equal(parameter, before[key]), key
            trained.add(key)
        else:
            assert parameter.grad is None, key
            assert torch.equal(parameter, before[key]), key
    blocks = 3
    layers = {"bert": 4, "modernbert": 4, "gpt": 4, "llama": 4, "nanochat": 4}[name]
    assert sum("lora_A" in key for key in trained) == blocks * layers


def test_an_addition_s_matrices_are_single_ones():
    """B of a fused projection is no stack of matrices, for which Muon would cut it."""
    model = tiny("llama", classify=False)
    fused = {name for name, role in roles_of(model).items() if role.fused}
    add_lora(model, LoraConfig())
    roles = roles_of(model)
    added = {name: role for name, role in roles.items() if "lora_" in name}
    assert {role.kind for role in added.values()} == {"matrix"}
    assert not any(role.fused for role in added.values())
    assert {name.replace(".weight", ".lora_B") for name in fused} <= added.keys()


@pytest.mark.parametrize(("name", "classify"), NETWORKS)
@torch.no_grad()
def test_merged_equals_unmerged(name: str, classify: bool):
    """fp32 sums in another order: 1e-5."""
    model = tiny(name, classify=classify)
    names = list(model.state_dict())
    add_lora(model, LoraConfig(rank=4, alpha=6.0), new=new_parts(name, classify))
    with torch.enable_grad():
        train(model, classify=classify)
    here = batch(9, classify=classify)
    model.eval()
    apart = loss_of(model, here).total
    assert additions_of(model)
    merge(model)
    torch.testing.assert_close(loss_of(model, here).total, apart, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert not additions_of(model)


def test_the_formula_by_hand():
    base = torch.nn.Linear(2, 2)
    layer = LoraLinear(base, LoraConfig(rank=1, alpha=3.0))
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        base.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[1.0], [-1.0]]))
    # W x + b + 3 B (A x), with A x = 1 + 4
    x = torch.tensor([1.0, 2.0])
    assert layer(x).tolist() == [1.5 + 15.0, 2.0 - 15.0]
    assert layer.merged().weight.tolist() == [[4.0, 6.0], [-3.0, -5.0]]


def test_dropout_is_of_the_additions_inputs_and_in_training_only():
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(64, 8), LoraConfig(dropout=0.5))
    x = torch.randn(4, 64)
    assert torch.equal(layer.train()(x), layer(x))  # B is zero
    with torch.no_grad():
        layer.lora_B.normal_()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        ("attention.query_key_value", {"attention.query_key_value"}),
        ("attention", {"attention.query_key_value", "attention.output"}),
        ("feed_forward.gate_up,attention.output", {"feed_forward.gate_up", "attention.output"}),
    ],
)
def test_targets_are_layers_or_parts_of_a_block(targets: str, paths: set[str]):
    model = tiny("llama", classify=True)
    add_lora(model, build(LoraConfig, {"targets": targets}))
    assert set(additions_of(model)) == {
        f"blocks.{number}.{path}" for number in range(3) for path in paths
    }


def test_an_unknown_target_changes_nothing():
    model = tiny("gpt", classify=True)
    with pytest.raises(ConfigError, match=r"'atention' .did you mean 'attention'.*feed_forward"):
        add_lora(model, LoraConfig(targets=("feed_forward", "atention")))
    assert not additions_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="name one layer at least"):
        build(LoraConfig, {"targets": []})


def test_a_rank_beyond_the_layer_changes_nothing():
    model = tiny("gpt", classify=True)
    with pytest.raises(ConfigError, match=r"lora\.rank 100000: attention\.query_key_value has"):
        add_lora(model, LoraConfig(rank=100_000))
    assert not additions_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
