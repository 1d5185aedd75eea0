"""Every method: what trains and how much, by a closed form; what doesn't stays to the bit."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from llmctl.cli import finetune
from llmctl.formats.base import Pretrained
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.classify import Classifier
from llmctl.tasks.finetuning import Method
from llmctl.training.adapters import METHODS
from llmctl.training.adapters.base import merge
from llmctl.training.adapters.lora import LoraConfig, LoraLinear
from llmctl.training.adapters.prefix import PrefixConfig
from llmctl.training.adapters.prompt import PromptConfig, start_ids
from tests.kept_models import kept
from tests.training.adapters.test_freezing import LAYERS, batch, loss_of, tiny, train

D, F, H, P, E = 32, 128, 32, 5, 6
"""Width, a GPT's inner width, that of all heads; virtual tokens; inner width of a projection."""
CONFIG = SimpleNamespace(
    lora=LoraConfig(rank=4), prompt=PromptConfig(tokens=P),
    prefix=PrefixConfig(tokens=P, projection=E), seed=0,
)  # fmt: skip
DORA = SimpleNamespace(lora=LoraConfig(rank=4, dora=True))
ADDED = ["lora", "ia3", "bitfit", "prompt", "prefix", "ptuning"]
COUNTS = {
    # Of a GPT: queries, keys and values 3 D, the attention's output, W₁ and W₂.
    "lora": LAYERS * 4 * ((D + 3 * D) + (D + D) + (D + F) + (F + D)),
    "ia3": LAYERS * (2 * D + F),
    "bitfit": LAYERS * (3 * D + D + F + D + 2 * D) + D,
    "prompt": P * D,
    "ptuning": P * LAYERS * 2 * H,
    "prefix": P * D + (D * E + E) + (E + 1) * LAYERS * 2 * H,
}


def prepared(name: str, arch: str, *, classify: bool = True) -> tuple[Any, Pretrained]:
    model = tiny(arch, classify=classify)
    base = kept(model, "classify" if classify else "causal_lm", ARCHITECTURES[arch])
    new = [part for part, _ in model.named_children() if part != "body"] if classify else []
    METHODS[name].prepare(model, CONFIG, base, new)
    return model, base


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_the_methods_are_those_that_are_told_of():
    assert list(get_args(Method)) == list(METHODS)
    told = inspect.signature(finetune.command).parameters["method"].default.help
    assert all(name in told for name in METHODS)


@pytest.mark.parametrize("name", ADDED)
def test_as_many_parameters_train_as_the_formula_says(name: str):
    model, _ = prepared(name, "gpt", classify=False)
    assert sum(p.numel() for p in trained(model).values()) == COUNTS[name]


@pytest.mark.parametrize("arch", ["bert", "modernbert", "gpt", "llama", "nanochat"])
@pytest.mark.parametrize("name", ADDED)
def test_what_trains_moves_and_the_rest_stays(name: str, arch: str):
    if name == "bitfit" and arch in ("modernbert", "llama", "nanochat"):
        pytest.skip("it has no biases")
    model, _ = prepared(name, arch)
    moving = trained(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, classify=True)
    for key, parameter in model.named_parameters():
        if key in moving:
            assert parameter.grad is not None, key
            if not key.endswith("hidden.bias"):  # behind an output that was zero at first
                assert not torch.equal(parameter, before[key]), key
        else:
            assert parameter.grad is None, key
            assert torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", ["lora", "ia3", "bitfit"])
@pytest.mark.parametrize("arch", ["bert", "gpt"])
def test_the_start_is_the_model_and_merged_equals_unmerged(name: str, arch: str):
    """fp32 sums in another order: 1e-5."""
    model = tiny(arch, classify=True).eval()
    here = batch(0, classify=True)
    before = loss_of(model, here).total
    model, _ = prepared(name, arch)
    assert torch.equal(loss_of(model.eval(), here).total, before)
    train(model, classify=True)
    apart = loss_of(model.eval(), here).total.detach()
    assert not torch.equal(apart, before)
    merge(model)
    torch.testing.assert_close(loss_of(model, here).total, apart, rtol=1e-5, atol=1e-5)
    assert {type(module) for module in model.modules()} == {
        type(module) for module in tiny(arch, classify=True).modules()
    }


def test_dora_by_hand():
    """Output 1 of W + s B A is (2, 0) + 3 (1, 0), of length 5; m is 4."""
    layer = LoraLinear(nn.Linear(2, 1), LoraConfig(rank=1, alpha=3.0, dora=True))
    with torch.no_grad():
        layer.base.weight.copy_(torch.tensor([[2.0, 0.0]]))
        layer.base.bias.fill_(0.5)
        layer.lora_A.copy_(torch.tensor([[1.0, 0.0]]))
        layer.lora_B.fill_(1.0)
        assert layer.magnitude is not None
        layer.magnitude.fill_(4.0)
    x = torch.tensor([[10.0, 1.0]])
    torch.testing.assert_close(layer(x), torch.tensor([[40.5]]))
    torch.testing.assert_close(layer.merged()(x), torch.tensor([[40.5]]))


def test_dora_starts_as_the_model_and_learns_lengths():
    model = tiny("bert", classify=True).eval()
    before = loss_of(model, batch(0, classify=True)).total
    METHODS["lora"].prepare(model, DORA, None, ["pooler", "output"])  # type: ignore[arg-type]
    after = loss_of(model, batch(0, classify=True)).total
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    lengths = [p for name, p in trained(model).items() if name.endswith("magnitude")]
    assert sum(p.numel() for p in lengths) == LAYERS * (3 * D + D + F + D)


def test_rslora_weighs_by_the_root_of_the_rank():
    assert LoraConfig(rank=16, alpha=8.0).scale == 0.5
    assert LoraConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_a_soft_prompt_starts_as_words_or_as_tokens_of_the_vocabulary():
    model = tiny("gpt", classify=False)
    base = kept(model, "causal_lm", ARCHITECTURES["gpt"])
    tokenizer = base.tokenizer
    said = SimpleNamespace(prompt=PromptConfig(tokens=5, words="cab"), seed=0)
    METHODS["prompt"].prepare(model, said, base, [])
    c, a, b = tokenizer.encode("cab")
    table = model.body.embedding().weight  # type: ignore[union-attr,operator]
    learned = model.body.virtual_tokens.learned()  # type: ignore[union-attr]
    assert torch.equal(learned, table[[c, a, b, c, a]])
    drawn = start_ids("", "", 2, tokenizer, 0)
    assert len(set(drawn)) == 2
    assert not set(drawn) & set(tokenizer.special.values())
    assert start_ids("", "", 2, tokenizer, 0) == drawn


def test_a_projected_prefix_starts_as_one_that_is_not():
    here = batch(0, classify=True)
    losses = [
        loss_of(prepared(name, "gpt")[0].eval(), here).total for name in ("prefix", "ptuning")
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    model, _ = prepared("prefix", "gpt")
    train(model, classify=True)
    apart = loss_of(model.eval(), here).total.detach()
    merge(model)
    torch.testing.assert_close(loss_of(model, here).total, apart, rtol=1e-5, atol=1e-5)
    assert isinstance(model, Classifier)
    assert [name for name in model.state_dict() if "virtual" in name] == [
        "body.virtual_tokens.keys_values"
    ]
