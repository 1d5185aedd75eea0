"""Parts left out: what is left is the network with those parts silent, and the least matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmctl.compression.calibration import linears
from llmctl.compression.cutting import keep_channels, keep_heads, keep_layers, layer_changes
from llmctl.compression.importance import CalibrationRows, GateImportance, next_token_loss
from llmctl.compression.masking import masked, weight_scores
from llmctl.errors import InputError
from llmctl.models import ARCHITECTURES
from tests.small_decoders import make_model

IDS = torch.arange(40).view(5, 8) % 18


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@torch.no_grad()
def test_heads_with_their_keys():
    shape = {"num_heads": 4, "num_kv_heads": 2, "num_layers": 1}
    whole, cut = make_model("llama", **shape).body, make_model("llama", **shape).body
    inputs: list[torch.Tensor] = []
    output = whole.blocks[0].attention.output
    output.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    whole(IDS)
    norms = inputs[0].flatten(0, 1).double().pow(2).sum(0).sqrt().numpy()
    score = norms * np.linalg.norm(output.weight.double().numpy(), axis=0)
    least = int(np.argmin(score.reshape(2, -1).sum(1)))  # two heads share a key
    config = keep_heads(cut, 0.5, IDS, silent)
    assert (config.num_heads, config.num_kv_heads, config.head_size) == (2, 1, 8)
    output.weight[:, 16 * least : 16 * least + 16] = 0
    torch.testing.assert_close(cut(IDS), whole(IDS), rtol=1e-4, atol=1e-5)
    ordinary = ARCHITECTURES["llama"].build(config)
    ordinary.load_state_dict(cut.state_dict())
    torch.testing.assert_close(ordinary(IDS), cut(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])
@torch.no_grad()
def test_channels(arch: str):
    whole, cut = (make_model(arch, num_layers=1, intermediate_size=12).body for _ in range(2))
    inputs: list[torch.Tensor] = []
    contract = linears(whole.blocks[0])["feed_forward.contract"]
    contract.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    whole(IDS)
    norms = inputs[0].flatten(0, 1).double().pow(2).sum(0).sqrt().numpy()
    score = norms * np.linalg.norm(contract.weight.double().numpy(), axis=0)
    config = keep_channels(cut, 0.5, IDS, silent)
    assert config.intermediate_size == 6
    contract.weight[:, np.argsort(score)[:6]] = 0
    torch.testing.assert_close(cut(IDS), whole(IDS), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_layer_that_changes_least_goes():
    body = make_model("gpt", num_layers=3).body
    middle = body.blocks[1]
    for name in ("attention.output", "feed_forward.contract"):
        part = middle.get_submodule(name)
        part.weight.mul_(1e-3)
        part.bias.mul_(1e-3)
    first, last = body.blocks[0], body.blocks[2]
    changes = layer_changes(body, IDS)
    assert changes[1] < 1e-3 < min(changes[0], changes[2])
    before = body(IDS)
    assert keep_layers(body, 0.67, IDS, silent).num_layers == 2
    assert [*body.blocks] == [first, last]
    torch.testing.assert_close(body(IDS), before, rtol=0.05, atol=0.05)


def test_what_can_not_be_left_out():
    for arch, method in (("gpt", keep_heads), ("bert", keep_heads), ("modernbert", keep_layers)):
        body = ARCHITECTURES[arch].build(ARCHITECTURES[arch].config(vocab_size=18, num_layers=2))
        with pytest.raises(InputError, match="--method"):
            method(body, 0.5, IDS, silent)


def test_masks_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 10, generator=generator) for n in (6, 50))
    score = weight.abs().numpy() * np.linalg.norm(x.numpy(), axis=0)
    found = weight_scores(weight, x.T @ x)
    np.testing.assert_allclose(found.numpy(), score, rtol=1e-4)
    kept = masked(weight, found, 0.3).numpy()
    for row in range(6):
        assert set(np.flatnonzero(kept[row] == 0)) == set(np.argsort(score[row])[:3])
    kept = masked(weight, found, None).numpy()
    for row in range(6):
        for first in (0, 4):
            least = first + np.argsort(score[row, first : first + 4])[:2]
            assert set(first + np.flatnonzero(kept[row, first : first + 4] == 0)) == set(least)
    assert (kept[:, 8:] == weight.numpy()[:, 8:]).all()


def test_importance_is_how_the_loss_changes_with_a_gate():
    """By central differences: a part's output is scaled by 1 ± ε, text by text."""
    model = make_model("llama", num_layers=2, intermediate_size=6, num_heads=2, num_kv_heads=1)
    model = model.double()
    found = GateImportance(model, CalibrationRows(list(IDS), next_token_loss))
    step = 1e-4

    @torch.no_grad()
    def slope(weight: torch.Tensor, columns: slice) -> float:
        kept, losses = weight[:, columns].clone(), []
        for factor in (1 + step, 1 - step):
            weight[:, columns] = kept * factor
            logits = torch.stack([model.logits(model.body(row[None, :-1]))[0] for row in IDS])
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).double(), IDS[:, 1:].flatten(), reduction="none"
            )
            losses.append(nll.view(len(IDS), -1).mean(1))
        weight[:, columns] = kept
        return float(((losses[0] - losses[1]) / (2 * step)).abs().mean())

    block = model.body.blocks[1]
    for channel in range(3):
        expected = slope(block.feed_forward.contract.weight, slice(channel, channel + 1))
        assert float(found.channels(1)[channel]) == pytest.approx(expected, rel=0.02, abs=1e-4)
    expected = slope(block.attention.output.weight, slice(None))
    assert float(found.heads(1, 1)[0]) == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert len(found.layers) == 2
    assert min(found.layers) > 0
    assert not any(p.requires_grad for p in (block.attention.output.weight,))
