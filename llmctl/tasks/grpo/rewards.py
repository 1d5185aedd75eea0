"""Rewards that can be checked: what an answer is worth, by the row of the data that it answers.

    number        1 where the answer's last number equals that of the row's answer column
    regex         1 where a pattern is found in the answer
    json-schema   1 where the answer is JSON as a schema has it
    FILE.py:NAME  what a Python function returns for the answer and its row, a number

Several are added up by their weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.parsing import read_json_object
from llmctl.tasks.grpo.checked import RewardProcess
from llmctl.tasks.grpo.json_schema import JsonSchema

if TYPE_CHECKING:
    from llmctl.tasks.grpo.config import RewardConfig

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|-?\.\d+")
"""Digits with a point or an exponent, and commas between thousands."""
ANSWER_COLUMNS = ("answer", "solution", "target", "label", "output", "completion", "response")
"""Columns that may hold the right answer, the first that is there."""

MEND = "write a JSON schema"

Reward = Callable[[str, Mapping[str, Any], str], float]
"""From an answer, the row that it answers and where that is from to what it is worth."""


def last_number(text: str) -> Decimal | None:
    """The last number in a text; a minus counts unless it stands right behind another.

    >>> last_number("12 - 7 = 5, or 1,234.50")
    Decimal('1234.50')
    """
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    spelt = found[-1][0].replace(",", "")
    before = text[: found[-1].start()][-1:]
    if spelt.startswith("-") and (before.isalnum() or before == ")"):
        spelt = spelt[1:]
    try:
        return Decimal(spelt)
    except InvalidOperation:  # an exponent beyond all measure
        return None


class NumberReward:
    """Whether the last number is the right one."""

    def __init__(self, column: str | None) -> None:
        self._column = column

    def __call__(self, answer: str, row: Mapping[str, Any], source: str) -> float:
        column = self._column or next((name for name in ANSWER_COLUMNS if name in row), None)
        if column is None or column not in row:
            raise InputError(
                f"{source} has no column {column or ANSWER_COLUMNS[0]!r} for the reward number"
                f"{did_you_mean(column or '', row)}; it has {', '.join(row)}: name one with "
                "objective.answer_column"
            )
        right = last_number(str(row[column]))
        if right is None:
            raise InputError(
                f"{source}: {column} has no number, which the reward number compares with; give "
                "one, or another reward"
            )
        return float(last_number(answer) == right)


class SchemaReward:
    """Whether an answer is JSON of a schema."""

    def __init__(self, path: Path) -> None:
        self._schema = JsonSchema(read_json_object(path, MEND), str(path))

    def __call__(self, answer: str, row: Mapping[str, Any], source: str) -> float:
        try:
            value = json.loads(answer, parse_constant=_refused)
        except (ValueError, RecursionError):
            return 0.0
        return float(self._schema.accepts(value))


def _refused(name: str) -> Any:
    raise ValueError(name)


class WeightedRewards:
    """Several rewards by their names, added up by their weights."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises UsageError for one that is not known or lacks what it needs, InputError for a file
        that is missing or can't be loaded."""
        self.names = [short_name(reward) for reward in config.reward]
        self._rewards = [_reward(reward, config) for reward in config.reward]
        self._weights = config.reward_weights or (1.0,) * len(self._rewards)

    def check(self, row: Mapping[str, Any], source: str, *, first: bool) -> None:
        """Raises InputError for a row that no answer to can be rewarded. first: of all, for which
        functions are tried, too."""
        for reward in self._rewards:
            if first or not isinstance(reward, RewardProcess):
                reward("", row, source)

    def __call__(self, answer: str, row: Mapping[str, Any], source: str) -> list[float]:
        """The weighted sum, and each reward by itself."""
        each = [reward(answer, row, source) for reward in self._rewards]
        return [sum(w * r for w, r in zip(self._weights, each, strict=True)), *each]


def short_name(reward: str) -> str:
    """The name of a reward in a log: of a function its own."""
    return reward.rpartition(":")[2].replace("-", "_")


def function_file(reward: str) -> Path | None:
    """The file of a reward that is a function."""
    file, colon, _ = reward.rpartition(":")
    return Path(file) if colon else None


def check_rewards(rewards: Sequence[str]) -> None:
    """Raises UsageError for a reward that is not known."""
    for reward in rewards:
        if reward not in BUILT_IN and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", reward):
            raise UsageError(
                f"the reward {reward!r} is not known{did_you_mean(reward, BUILT_IN)}; use "
                f"{', '.join(BUILT_IN)} or a function as FILE.py:NAME"
            )


def _number(config: RewardConfig) -> Reward:
    return NumberReward(config.answer_column)


def _regex(config: RewardConfig) -> Reward:
    if config.pattern is None:
        raise UsageError("the reward regex needs objective.pattern, what is looked for")
    try:
        re.compile(config.pattern)
    except re.error as error:
        raise UsageError(f"objective.pattern {config.pattern!r} is no pattern: {error}") from None
    words = ("regex", config.pattern)
    described = f"the pattern {config.pattern!r}"
    return RewardProcess(described, words, file="", seconds=config.reward_seconds)


def _json_schema(config: RewardConfig) -> Reward:
    if config.schema_file is None:
        raise UsageError("the reward json-schema needs objective.schema_file, a JSON file")
    return SchemaReward(Path(config.schema_file))


def _reward(reward: str, config: RewardConfig) -> Reward:
    if reward in BUILT_IN:
        return BUILT_IN[reward](config)
    file = function_file(reward)
    assert file is not None
    if not file.is_file():
        raise InputError(f"--reward {reward}: there is no file {file}; give FILE.py:NAME")
    name = reward.rpartition(":")[2]
    words = ("function", str(file.resolve()), name)
    return RewardProcess(
        f"the reward function {name}", words, file=str(file), seconds=config.reward_seconds
    )


BUILT_IN: dict[str, Callable[[RewardConfig], Reward]] = {
    "number": _number,
    "regex": _regex,
    "json-schema": _json_schema,
}
"""By their names."""
