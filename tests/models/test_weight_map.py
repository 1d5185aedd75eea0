"""Rules of names: export and import are each other's inverse, whatever the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmctl.errors import InputError
from llmctl.models import ARCHITECTURES
from llmctl.models.weight_map import BOTH, Fuse, Rename, Rule, Transpose, WeightMap

COLUMNS = 3


@st.composite
def tables(draw: st.DrawFn) -> tuple[WeightMap, SimpleNamespace, dict[str, Tensor]]:
    """A table of rules, a configuration, and the state of a network that they go with."""
    config = SimpleNamespace(
        num_layers=draw(st.integers(1, 3)),
        few=draw(st.integers(1, 3)),
        many=draw(st.integers(1, 4)),
        there=draw(st.booleans()),
    )
    rules: list[Rule] = []
    state: dict[str, Tensor] = {}
    for number in range(draw(st.integers(1, 5))):
        layer = draw(st.sampled_from(["", "blocks.{}."]))
        ours, theirs = f"{layer}m{number}", f"net.{layer.replace('blocks', 'h')}n{number}"
        parts = draw(st.sampled_from([("weight",), BOTH]))
        where = draw(st.sampled_from(["", "there"]))
        rows = draw(st.integers(1, 4))
        kind = draw(st.sampled_from([Rename, Transpose, Fuse]))
        if kind is Fuse:
            shares = draw(
                st.lists(st.sampled_from(["few", "many"]), min_size=2, max_size=3).map(tuple)
            )
            equal = draw(st.booleans())
            names = tuple(f"{theirs}.{share}" for share in range(len(shares)))
            rules.append(Fuse(ours, names, parts, where, shares=() if equal else shares))
            rows *= len(shares) if equal else sum(getattr(config, share) for share in shares)
        else:
            rules.append(kind(ours, theirs, parts, where))
        if where and not config.there:
            continue
        for place in range(config.num_layers) if layer else (0,):
            for part in parts:
                shape = (rows, COLUMNS) if part == "weight" else (rows,)
                state[f"{ours.format(place)}.{part}"] = torch.randn(shape)
    return WeightMap("a network", "net.", tuple(rules)), config, state


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@given(tables())
def test_export_and_import_are_inverse(table: tuple[WeightMap, Any, dict[str, Tensor]]):
    names, config, state = table
    exported = names.export_tensors(state, config)
    assert same(names.import_tensors(exported, config), state)
    again = names.export_tensors(names.import_tensors(exported, config), config)
    assert same(again, exported)
    assert sum(t.numel() for t in exported.values()) == sum(t.numel() for t in state.values())
    bare = {name.removeprefix("net."): tensor for name, tensor in exported.items()}
    assert same(names.import_tensors(bare, config), state)


@given(tables(), st.data())
def test_a_tensor_that_is_missing_is_named(table: Any, data: st.DataObject):
    names, config, state = table
    exported = names.export_tensors(state, config)
    if not exported:
        return
    missing = data.draw(st.sampled_from(sorted(exported)))
    rest = {name: tensor for name, tensor in exported.items() if name != missing}
    says = f"the model file has no tensor {missing}; it is not a network of this shape"
    with pytest.raises(InputError) as error:
        names.import_tensors(rest, config)
    assert str(error.value) == says


class Lazy(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.read = tensors, list[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_tensor_of_an_architecture_leads_back_and_is_read_once(arch: str):
    spec = ARCHITECTURES[arch]
    config = spec.config.model_validate({**spec.presets["nano"], "vocab_size": 11})
    state = spec.build(config).state_dict()
    exported = spec.export_tensors(state, config)
    lazy = Lazy({**exported, "lm_head.weight": torch.zeros(1)})
    assert same(spec.import_tensors(lazy, config), state)
    assert sorted(lazy.read) == sorted(exported)
    assert all(name.startswith(spec.weights["huggingface"].prefix) for name in exported)


def test_gpt2_s_matrices_lie_the_other_way_round():
    """Its Conv1D keeps (inputs, outputs); the vectors stay."""
    rule = Transpose("a", "b", BOTH)
    names = WeightMap("a network", "", (rule,))
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.arange(2.0)}
    exported = names.export_tensors(state, SimpleNamespace(num_layers=1))
    assert exported["b.weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert exported["b.bias"].tolist() == [0.0, 1.0]
