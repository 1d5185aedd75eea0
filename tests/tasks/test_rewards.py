"""Rewards that can be checked: numbers, patterns, schemas, and functions that fail or never end."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.tasks.grpo.checked import RewardError, RewardProcess
from llmctl.tasks.grpo.config import GrpoObjective, RewardConfig
from llmctl.tasks.grpo.json_schema import JsonSchema
from llmctl.tasks.grpo.rewards import WeightedRewards, last_number

WORDS = st.text(st.sampled_from("abc .,:=()\n"), max_size=20)
NUMBERS = st.decimals(-(10**9), 10**9, places=3)


@given(WORDS, NUMBERS, NUMBERS, st.sampled_from(["", " ", ".", " dollars", ")"]))
def test_the_last_number_of_a_text_is_found(words: str, first: Decimal, last: Decimal, end: str):
    text = f"{words} {first} then {last}{end}"
    assert last_number(text) == last
    assert last_number(f"{words} {last:,}{end}") == last
    assert last_number(words) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 18", 18), ("3-7", 7), ("3 - -7", -7), ("x=-2", -2), ("1,234", 1234), ("1,2", 2),
     ("5.", 5), ("1e3", 1000), ("a7b", 7), (".5", "0.5"), ("2 + 2 = 4", 4)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, number: Any):
    assert last_number(text) == Decimal(number)


def rewards(**fields: Any) -> WeightedRewards:
    return WeightedRewards(RewardConfig(**fields))


def test_a_number_is_right_where_it_equals_that_of_the_row():
    check = rewards()
    row = {"question": "2+2?", "answer": "It is\n#### 4"}
    assert check("so 3, no: 4.0", row, "x:1") == [1.0, 1.0]
    assert check("4 or 5", row, "x:1") == [0.0, 0.0]
    assert check("", row, "x:1") == [0.0, 0.0]
    assert rewards(answer_column="sum")("4", {"sum": 4}, "x:1")[0] == 1.0
    with pytest.raises(InputError, match=r"x:1 has no column 'answer' for the reward number"):
        check("4", {"question": "a"}, "x:1")
    with pytest.raises(InputError, match=r"x:7: answer has no number"):
        check("4", {"answer": "four"}, "x:7")


def test_rewards_are_added_up_by_their_weights():
    both = rewards(reward="number,regex", pattern=r"^\d+$", reward_weights="2,0.5")
    assert both("4", {"answer": 4}, "x:1") == [2.5, 1.0, 1.0]
    assert both("it is 4", {"answer": 4}, "x:1") == [2.0, 1.0, 0.0]
    assert both("5", {"answer": 4}, "x:1") == [0.5, 0.0, 1.0]


FUNCTIONS = """
import time
from helper import SHARE

def length(answer, row):
    print("noise that must not disturb")
    return len(answer) * SHARE

def broken(answer, row):
    return 1 / len(row["empty"])

def endless(answer, row):
    while True:
        time.sleep(0.1)

def word(answer, row):
    return "good"

def huge(answer, row):
    return 1e12

def nan(answer, row):
    return float("nan")

def leaves(answer, row):
    import os
    os._exit(3)

def right(answer, row):
    return answer == row["answer"]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SHARE = 0.5\n")
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_function_gets_the_answer_and_its_row(functions: Path):
    check = rewards(reward=f"{functions}:length")
    assert check("four", {}, "x:1") == [2.0, 2.0]
    assert check("été\n", {}, "x:1") == [2.0, 2.0]
    assert rewards(reward=f"{functions}:right")("a", {"answer": "a"}, "x:1")[0] == 1.0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken", r"mine.py:10: the reward function broken raised ZeroDivisionError: division by "
                   r"zero on the answer 'hm' to x:3; let it return a number"),
        ("word", "the reward function word returned 'good' on the answer 'hm' to x:3"),
        ("huge", "function huge returned 1e[+]12 on .* return a number from -1e[+]09 to 1e[+]09"),
        ("nan", "the reward function nan returned nan"),
        ("leaves", r"the reward function leaves raised SystemExit \(its process ended with exit "),
    ],
)  # fmt: skip
def test_a_function_that_fails_is_named_with_its_line(functions: Path, name: str, sentence: str):
    check = rewards(reward=f"{functions}:{name}")
    with pytest.raises(RewardError, match=sentence) as caught:
        check("hm", {"empty": ""}, "x:3")
    assert caught.value.exit_code == 3


def test_a_function_that_never_ends_is_named_in_time(functions: Path):
    check = rewards(reward=f"{functions}:endless", reward_seconds=0.3)
    begin = time.monotonic()
    with pytest.raises(RewardError, match=r"endless did not end within 0.3 s on the answer 'hm'"):
        check("hm", {}, "x:3")
    assert time.monotonic() - begin < 5


def test_a_pattern_that_never_ends_is_named_in_time():
    check = rewards(reward="regex", pattern=r"(a+)+$", reward_seconds=0.3)
    assert check("aaa", {}, "x:1")[0] == 1.0
    with pytest.raises(RewardError, match=r"the pattern .* did not end within 0.3 s"):
        check("a" * 40 + "b", {}, "x:1")
    assert check("baaa", {}, "x:1")[0] == 1.0  # the next has a process anew


def test_what_can_t_be_loaded_is_said_at_once(tmp_path: Path, functions: Path):
    (tmp_path / "wrong.py").write_text("x = 1\ndef f(answer, row)\n    return 1\n")
    with pytest.raises(InputError, match=r"wrong.py:2: SyntaxError"):
        rewards(reward=f"{tmp_path}/wrong.py:f")
    with pytest.raises(InputError, match="there is no function 'missing', but length, broken"):
        rewards(reward=f"{functions}:missing")
    with pytest.raises(InputError, match="there is no file"):
        rewards(reward=f"{tmp_path}/none.py:f")
    with pytest.raises(UsageError, match=r"needs objective.pattern"):
        rewards(reward="regex")
    with pytest.raises(UsageError, match="is no pattern"):
        rewards(reward="regex", pattern="(")
    (tmp_path / "schema.json").write_text("[1]")
    with pytest.raises(InputError, match="write a JSON schema"):
        rewards(reward="json-schema", schema_file=f"{tmp_path}/schema.json")
    with pytest.raises(UsageError, match=r"needs objective.schema_file"):
        rewards(reward="json-schema")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reward": "numbers"}, r"'numbers' is not known \(did you mean 'number'"),
        ({"reward": ()}, "name one reward at least"),
        ({"reward_weights": "1,2"}, "2 weights for 1 rewards"),
        ({"pattern": "a"}, "pattern is for the reward regex"),
        ({"group_size": 1}, "group_size"),
        ({"temperature": 0}, "temperature"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_fields_that_don_t_go_together_are_refused(fields: dict[str, Any], sentence: str):
    from llmctl.config import build

    with pytest.raises((ConfigError, UsageError), match=sentence):
        build(GrpoObjective, fields)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, 1.0, -2.0])
    | st.text("ab", max_size=3),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from("abc"), part,
                                                              max_size=3),
    max_leaves=6,
)  # fmt: skip
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "number", "integer", "boolean",
                                     "null", ["string", "null"]]),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": st.integers(-3, 3),
            "exclusiveMaximum": st.integers(-3, 3),
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 3),
            "pattern": st.sampled_from(["^a", "b$", "ab"]),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "minProperties": st.integers(0, 2),
        },
    ),
    lambda part: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), part, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["a|b", "c"]), part, max_size=1),
            "additionalProperties": part,
            "items": part,
            "prefixItems": st.lists(part, min_size=1, max_size=2),
            "contains": part,
            "minContains": st.integers(0, 2),
            "anyOf": st.lists(part, min_size=1, max_size=2),
            "allOf": st.lists(part, min_size=1, max_size=2),
            "oneOf": st.lists(part, min_size=1, max_size=2),
            "not": part,
            "if": part,
            "then": part,
            "else": part,
        },
    ),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.reference
@given(SCHEMAS, VALUES)
def test_schemas_accept_what_the_reference_library_accepts(schema: Any, value: Any):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    assert JsonSchema(schema, "s.json").accepts(value) == validator.is_valid(value)


def test_answers_are_json_of_a_schema(tmp_path: Path):
    path = tmp_path / "person.json"
    schema = {
        "$ref": "#/$defs/person",
        "$defs": {"person": {"type": "object", "required": ["name"], "additionalProperties": False,
                             "properties": {"name": {"type": "string"},
                                            "parent": {"$ref": "#/$defs/person"}}}},
    }  # fmt: skip
    path.write_text(json.dumps(schema))
    check = rewards(reward="json-schema", schema_file=str(path))
    worth = {'{"name": "A"}': 1, '{"name": "A", "parent": {"name": "B"}}': 1, '{"name": 3}': 0,
             '{"name": "A", "age": 3}': 0, "A": 0, '{"name": NaN}': 0, "": 0}  # fmt: skip
    for answer, expected in worth.items():
        assert check(answer, {}, "x:1")[0] == expected, answer
    for broken, sentence in (
        ({"required": ["a"], "minimun": 3}, r"keyword 'minimun', which is not understood \(did"),
        ({"type": "text"}, "is 'text'; use one of object"),
        ({"$ref": "http://x/y"}, "leads elsewhere"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"properties": {"a": 3}}, "properties/a is no schema"),
        ({"pattern": "("}, "is no pattern"),
    ):
        with pytest.raises(InputError, match=sentence):
            JsonSchema(broken, "s.json")


def test_the_process_ends_with_its_owner(functions: Path):
    owner = RewardProcess("x", ["function", str(functions), "length"], file="", seconds=1)
    assert owner("ab", {}, "x:1") == 1.0
    process = owner._process
    assert process is not None
    del owner
    assert process.wait(timeout=5) is not None
