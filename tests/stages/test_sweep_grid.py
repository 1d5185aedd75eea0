"""Grids: what is written becomes points, each with a name of its own that a folder can have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import UsageError
from llmctl.stages.sweep.grid import parse_grid, points, split_values, tree_of
from llmctl.workspace.names import is_name


@pytest.mark.parametrize(
    ("grid", "values"),
    [
        ("training.max_steps=100,200", [100, 200]),
        ("training.max_steps = 100 , 200", [100, 200]),
        ("training.schedule=linear,wsd", ["linear", "wsd"]),
        ("model.qk_norm=true,false", [True, False]),
        ("training.time_limit=10m,none", ["10m", None]),
        ("a=[1,2],[3]", [[1, 2], [3]]),
        ('a="x,y",z', ["x,y", "z"]),
        ("a='x,\"y',z", ['x,"y', "z"]),
        ("a={b=1,c=2},3", [{"b": 1, "c": 2}, 3]),
        ("a=b=c,d", ["b=c", "d"]),
    ],
)
def test_values_of_a_field(grid: str, values: list[Any]):
    assert list(parse_grid([grid]).values()) == [values]


def test_lr_is_the_learning_rate():
    assert parse_grid(["training.lr=1e-4,3e-4"]) == {"training.learning_rate": [1e-4, 3e-4]}


@pytest.mark.parametrize(
    ("grids", "says"),
    [
        ([], "--grid is missing"),
        (["training.lr"], "'training.lr' is not FIELD=VALUE"),
        (["=1,2"], "is not FIELD=VALUE"),
        (["training.lr="], "--grid training.lr=: a value is empty"),
        (["training.lr=1e-4,,1e-3"], "a value is empty"),
        (["training.lr=1e-4,"], "a value is empty"),
        (["training.lr=1e-3,0.001"], "0.001 is there twice"),
        (["training.lr=1e-4", "training.lr=1e-3"], "training.learning_rate twice"),
        (["training.lr=1e-4", "training.learning_rate=1"], "training.learning_rate twice"),
    ],
)
def test_what_is_no_grid_is_one_sentence(grids: list[str], says: str):
    with pytest.raises(UsageError) as error:
        parse_grid(grids)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_every_combination_the_last_field_fastest():
    fields = {"training.learning_rate": [1e-4, 3e-4], "training.batch_size": [8, 16]}
    made = points("mine", fields)
    assert [point.name for point in made] == [
        "mine-lr-1e-4-batch_size-8",
        "mine-lr-1e-4-batch_size-16",
        "mine-lr-3e-4-batch_size-8",
        "mine-lr-3e-4-batch_size-16",
    ]
    assert made[1].label == "lr=1e-4, batch_size=16"
    assert tree_of(made[1].values) == {"training": {"learning_rate": 1e-4, "batch_size": 16}}


def test_fields_of_one_last_name_are_written_out():
    (point,) = points("x", {"dropout": [0.1], "lora.dropout": [0.2]})
    assert point.name == "x-dropout-0.1-lora.dropout-0.2"


@pytest.mark.parametrize(
    "values",
    [
        [1, -1],
        ["a b", "a-b", "a/b"],
        ["é", "e", "ü", ""],
        [[1, 2], [1, "2"], [12]],
        ["x" * 200, "x" * 201],
        ["文" * 200, "文" * 201],
        [None, "none "],
    ],
)
def test_different_points_have_different_names(values: list[Any]):
    names = [point.name for point in points("sweep", {"a.field": values})]
    assert len(set(names)) == len(values)
    for name in names:
        assert is_name(f"{name}-max_steps-1000000-seed-1000"), name


def test_a_point_keeps_its_name_when_the_grid_grows():
    few = points("s", {"training.learning_rate": [1e-4]})[0]
    more = points("s", {"training.learning_rate": [3e-4, 1e-4]})[1]
    assert few == more


def test_a_value_in_the_way_of_a_table():
    with pytest.raises(UsageError, match="--grid model"):
        tree_of({"model": 1, "model.num_layers": 2})


@given(st.lists(st.text(alphabet="ab1 []{}\"'", max_size=6), min_size=1, max_size=5))
def test_nothing_is_lost_where_there_are_no_brackets_or_quotes(parts: list[str]):
    plain = ["".join(c for c in part if c not in "[]{}\"'").strip() for part in parts]
    assert split_values(",".join(plain)) == plain
