"""The progress that checkpoints keep: written as JSON that all programs read, and checked."""

from __future__ import annotations

import json
import math

import pytest

from llmctl.training.progress import Progress, progress_of, state_of
from llmctl.workspace.files import to_json


@pytest.mark.parametrize(
    "progress",
    [Progress(), Progress(step=3, elapsed=1.5, tokens=9, best=0.5, best_step=2, lowest_loss=0.5,
                          window={"loss": [1.5, 2.0]}, validation_due=True)],
)  # fmt: skip
def test_what_is_written_is_read(progress: Progress):
    text = to_json({"step": progress.step, "other": None, **state_of(progress)})
    assert "Infinity" not in text
    assert progress_of(json.loads(text)) == progress


def test_what_earlier_versions_wrote_is_read():
    state = json.loads('{"best": Infinity, "lowest_loss": Infinity, "window": {"loss": [NaN, 1]}}')
    read = progress_of(state)
    assert read.best == read.lowest_loss == math.inf
    assert math.isnan(read.window["loss"][0])


@pytest.mark.parametrize(
    "fields",
    [{"step": "three"}, {"step": 2.5}, {"step": -1}, {"step": None}, {"elapsed": -1.0},
     {"tokens": [1]}, {"best": "low"}, {"window": [1]}, {"window": {"loss": 1}},
     {"window": {"loss": [1.0]}}, {"look_due": 2}, {"elapsed": math.inf}],
)  # fmt: skip
def test_a_state_of_something_else_is_refused(fields: dict[str, object]):
    with pytest.raises(ValueError, match=f"its .*{next(iter(fields))}|its numbers"):
        progress_of({**state_of(Progress()), **fields})
