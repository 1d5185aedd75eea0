"""Configurations: layers, --set, did-you-mean, fingerprints."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

import llmctl
from llmctl.config import (
    Config,
    Recipe,
    as_assignments,
    build,
    field_names,
    merge,
    parse_assignments,
    read_recipe,
    take,
)
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.stages.chat import ChatConfig
from llmctl.stages.tokenize.stage import TokenizeConfig
from llmctl.tasks.pretraining import config_for, resolve
from llmctl.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a=1", 1), ("a=3e-4", 3e-4), ("a=true", True), ("a=False", False), ("a=none", None),
        ("a=relu", "relu"), ("a='10m'", "10m"), ("a=10m", "10m"), ("a=[1, 2]", [1, 2]),
        ("a=x=y", "x=y"), ("a=", ""),
    ],
)  # fmt: skip
def test_values_of_set(assignment: str, value: object):
    assert parse_assignments([assignment]) == {"a": value}


def test_dotted_keys_make_a_tree_and_lr_is_the_learning_rate():
    assert parse_assignments(["training.lr=1e-3", "training.max_steps=5", "seed=1"]) == {
        "training": {"learning_rate": 1e-3, "max_steps": 5},
        "seed": 1,
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner.filter(lambda value: value is not None), max_size=3),
)  # fmt: skip
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, min_size=1), max_size=4))
def test_a_tree_written_as_assignments_is_read_the_same(tree: dict):
    merge(full := {}, parse_assignments(as_assignments(tree)))
    assert full == tree


def test_what_is_no_field_is_taken_out_of_a_layer(tmp_path: Path):
    table = Recipe({"from": "x", "data": "a.csv", "lr": 1}, tmp_path / "r.toml")
    found, rest = take(table, "from", "data.file", "task")
    assert found == {"from": "x", "data.file": "a.csv"}
    assert rest == {"lr": 1}
    assert isinstance(rest, Recipe)
    assert rest.path == table.path
    assert table["from"] == "x"
    found, rest = take({"data": {"file": "a.csv", "label_column": "l"}}, "data.file")
    assert (found, rest) == ({"data.file": "a.csv"}, {"data": {"label_column": "l"}})
    with pytest.raises(ConfigError, match=r"recipe .*r\.toml: from: write a name, and 5 was given"):
        take(Recipe({"from": 5}, tmp_path / "r.toml"), "from")


@pytest.mark.parametrize("text", ["training.max_steps", "=3", "a.b=1 "])
def test_what_is_not_an_assignment_is_refused(text: str):
    if text == "a.b=1 ":
        assert parse_assignments([text]) == {"a": {"b": 1}}
    else:
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_assignments([text])


def test_a_key_of_many_parts_is_refused():
    with pytest.raises(UsageError, match=r"--set a\.a\..*nested so deep"):
        parse_assignments(["a." * 2000 + "b=1"])


def test_a_value_with_a_line_break_is_a_text():
    """The second line was a key of its own, and gone."""
    assert parse_assignments(["a=1\nseed = 2"]) == {"a": "1\nseed = 2"}


def test_lr_is_the_learning_rate_in_any_layer():
    assert resolve("bert", None, {"training": {"lr": 0.5}}).training.learning_rate == 0.5
    with pytest.raises(ConfigError, match=r"'training\.lrr' \(did you mean 'training\.lr'\?\)"):
        resolve("bert", None, {"training": {"lrr": 0.5}})
    with pytest.raises(ConfigError, match=r"^training\.learning_rate: .* and -1 was given"):
        resolve("bert", None, {"training": {"lr": -1}})


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        ({"trainin": {"max_steps": 5}}, "did you mean 'training'"),
        ({"max_steps": 5}, r"did you mean 'training\.max_steps'"),
        ({"training": {"max_step": 5}}, r"did you mean 'training\.max_steps'"),
    ],
)
def test_hints_are_of_the_level_of_the_key(table: dict, hint: str):
    with pytest.raises(ConfigError, match=hint):
        resolve("bert", None, table)


def test_a_fault_of_a_recipe_names_its_file(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(
        "[pretrain.training]\nmax_step = 5\n[tokenize]\nvalidation = 7\n[more.training]\nlr = -1\n"
    )
    recipe = read_recipe(path, "pretrain")
    with pytest.raises(ConfigError, match=r"^recipe .*r\.toml: unknown key 'training\.max_step'"):
        resolve("bert", None, recipe)
    with pytest.raises(ConfigError, match=r"^recipe .*r\.toml: training\.learning_rate"):
        resolve("bert", None, read_recipe(path, "more"), {"training": {"max_steps": 5}})
    with pytest.raises(ConfigError, match=r"^recipe .*r\.toml: validation: .* 7 was given"):
        build(TokenizeConfig, read_recipe(path, "tokenize"), {"vocab_size": 100})
    # What was refused is the option's.
    with pytest.raises(ConfigError, match=r"^validation: .* 8 was given"):
        build(TokenizeConfig, read_recipe(path, "tokenize"), {"validation": 8})


@pytest.mark.parametrize("make", ["missing", "folder", "not UTF-8", "not TOML", "value"])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path, make: str):
    path = tmp_path / "r.toml"
    if make == "folder":
        path.mkdir()
    elif make != "missing":
        content = {"not UTF-8": b"\xff", "not TOML": b"[", "value": b"tokenize = 1"}[make]
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^recipe .*r\.toml"):
        read_recipe(path, "tokenize")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("-1", "greater than or equal to 0, or 'auto', and -1 was given"),
        ("aut", "or 'auto', and 'aut' was given"),
    ],
)
def test_of_a_field_with_alternatives_all_are_named(value: str, says: str):
    with pytest.raises(ConfigError, match=r"^training\.micro_batch: ") as caught:
        resolve("bert", None, parse_assignments([f"training.micro_batch={value}"]))
    assert str(caught.value).endswith(says)


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_are_finite(value: str):
    with pytest.raises(ConfigError, match=r"^training\.learning_rate: .*finite"):
        resolve("bert", None, parse_assignments([f"training.learning_rate={value}"]))


def test_a_column_may_be_given_by_its_number():
    for value, name in ((2, "2"), ("2", "2"), ("title,text", "title,text"), (None, None)):
        assert build(TokenizeConfig, {"text_column": value}).text_column == name
    assert build(TokenizeConfig, parse_assignments(["text_column=2"])).text_column == "2"
    for value in (True, 2.0, ["a"]):
        with pytest.raises(ConfigError, match="text_column"):
            build(TokenizeConfig, {"text_column": value})


def test_rising_order_of_layers():
    config = resolve(
        "bert", "small", {"training": {"max_steps": 5}}, {"training": {"max_steps": 9}}
    )
    assert config.model.hidden_size == 512
    assert config.training.max_steps == 9


@pytest.mark.parametrize(
    ("preset", "layers", "width", "heads"),
    [("nano", 2, 128, 2), ("mini", 4, 256, 4), ("small", 4, 512, 8), ("medium", 8, 512, 8),
     ("base", 12, 768, 12)],
)  # fmt: skip
def test_presets_have_the_published_sizes(preset: str, layers: int, width: int, heads: int):
    model = resolve("bert", preset).model
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, width, heads)
    assert model.intermediate_size == 4 * width


def test_a_misspelt_key_names_the_right_one():
    with pytest.raises(ConfigError, match=r"did you mean 'objective\.mask_rate'"):
        resolve("bert", None, {"objective": {"mask_rat": 0.3}})


def test_an_unknown_key_with_nothing_like_it_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"training\.max_steps"):
        resolve("bert", None, {"zzz": 1})


def test_fingerprints_leave_out_what_does_not_change_the_result():
    plain, often = (
        resolve("bert", None),
        resolve("bert", None, {"training": {"checkpoint_every": 5}}),
    )
    longer = resolve("bert", None, {"training": {"max_steps": 5}})
    assert plain.identity() == often.identity()
    assert plain.identity() != longer.identity()


def test_every_key_can_be_set():
    names = field_names(config_for("bert"))
    for needed in ("training.max_steps", "training.checkpoint_every", "training.learning_rate",
                   "training.batch_size", "training.time_limit", "data.sequence_length",
                   "model.num_layers", "model.hidden_size", "objective.mask_rate",
                   "objective.next_sentence", "objective.whole_word"):  # fmt: skip
        assert needed in names


def test_durations():
    assert build(TrainingConfig, {"time_limit": "1h30m"}).time_limit == 5400
    with pytest.raises(ConfigError, match="soon"):
        build(TrainingConfig, {"time_limit": "soon"})


trees = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees)
)
def test_merging_keeps_the_upper_layer(lower: dict, upper: dict):
    result: dict = {}
    merge(result, lower)
    merge(result, upper)
    again = dict(result)
    merge(again, upper)
    assert again == result
    for key, value in upper.items():
        if not isinstance(value, dict):
            assert result[key] == value
    assert set(result) == set(lower) | set(upper)


def test_errors_have_the_documented_exit_codes():
    from llmctl import errors

    codes = {name: getattr(errors, name).exit_code for name in
             ("UsageError", "ConfigError", "InputError", "BusyError", "ResourceError",
              "DivergedError")}  # fmt: skip
    assert codes == {"UsageError": 2, "ConfigError": 2, "InputError": 3, "BusyError": 4,
                     "ResourceError": 5, "DivergedError": 6}  # fmt: skip
    assert errors.Interrupted("", 2).exit_code == 130
    assert errors.Interrupted("", 15).exit_code == 143
    assert issubclass(InputError, errors.LlmctlError)


def all_configs() -> list[type[Config]]:
    """Every configuration of the package."""
    for module in pkgutil.walk_packages(llmctl.__path__, "llmctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Config]] = [Config]
    for kind in found:
        found += [below for below in kind.__subclasses__() if below not in found]
    return found[1:]


def bounds(field: FieldInfo) -> dict[str, float]:
    """The limits of a field, also of the alternatives that it may be."""
    limits: dict[str, float] = {}
    pending = [*field.metadata, field.annotation]
    while pending:
        part = pending.pop()
        if isinstance(part, FieldInfo):
            pending += part.metadata
        elif get_args(part):
            pending += get_args(part)
        else:
            for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "multiple_of"):
                if getattr(part, name, None) is not None:
                    limits[name] = getattr(part, name)
    return limits


def test_a_field_that_is_overridden_keeps_the_bounds_that_it_had():
    """Another default, written without them, let 0 and -1 through."""
    compared = 0
    for kind in all_configs():
        for name, field in kind.model_fields.items():
            for above in kind.__mro__[1:]:
                inherited = getattr(above, "model_fields", {}).get(name)
                if inherited is not None:
                    compared += 1
                    lost = bounds(inherited).keys() - bounds(field).keys()
                    assert not lost, f"{kind.__name__}.{name} has lost {lost} of {above.__name__}"
    assert compared > 20


@pytest.mark.parametrize(("given", "word"), [("true", "on"), ("false", "off"), ("auto", "auto")])
def test_true_and_false_are_on_and_off(given: str, word: str):
    layer = parse_assignments([f"compile={given}"])
    assert build(TrainingConfig, layer).compile == word
    with pytest.raises(ConfigError, match="schedule"):
        build(TrainingConfig, parse_assignments([f"schedule={given}"]))


@pytest.mark.parametrize(
    "assignment",
    ["data.sequence_length=0", "data.sequence_length=-1", "training.muon_learning_rate=1e300",
     "training.learning_rate=1e-300", "training.epsilon=1e-320", "training.clip_norm=1e200",
     "seed=99999999999999999999", "training.max_steps=1" + "0" * 30,
     "training.weight_decay=1e20"],
)  # fmt: skip
def test_numbers_that_no_training_can_take(assignment: str):
    key = assignment.partition("=")[0]
    with pytest.raises(ConfigError, match=key):
        resolve("gpt", "nano", parse_assignments([assignment]))


def test_a_vocabulary_that_no_model_has():
    with pytest.raises(ConfigError, match="vocab_size"):
        build(TokenizeConfig, {"vocab_size": 10**20})


def test_a_chat_writes_something():
    with pytest.raises(ConfigError, match="max_new_tokens"):
        build(ChatConfig, {"max_new_tokens": 0})
