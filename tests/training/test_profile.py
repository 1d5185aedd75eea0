"""Where a step's time goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.training.profile import STEP_PARTS, STEPS, StepProfiler
from tests.training.test_trainer import make_trainer


def test_some_steps_are_traced(tmp_path: Path):
    told: list[str] = []
    trainer = make_trainer(tmp_path / "store", 14)
    trainer.profiler = StepProfiler(tmp_path / "profile", told.append)
    list(trainer.run())
    table = json.loads((tmp_path / "profile" / "table.json").read_text())
    parts = {row["name"]: row for row in table["parts"]}
    assert set(parts) == set(STEP_PARTS)
    assert all(row["calls"] == 1 for row in parts.values())
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
    assert any(row["name"].startswith("aten::") for row in table["operations"])
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    updates = [event for event in trace["traceEvents"] if event.get("name") == "update"]
    assert len(updates) == STEPS
    assert "backward" in told[0]
    assert "perfetto" in told[1]


@pytest.mark.parametrize("steps", [3, 7, 9])
def test_too_short_a_training_has_none(tmp_path: Path, steps: int):
    told: list[str] = []
    trainer = make_trainer(tmp_path / "store", steps)
    trainer.profiler = StepProfiler(tmp_path / "profile", told.append)
    list(trainer.run())
    assert told == [f"--profile traces steps 6 to 10, and {steps} were done: there is no trace"]
    assert not (tmp_path / "profile").exists()


def test_a_profile_changes_nothing(tmp_path: Path):
    plain, traced = make_trainer(tmp_path / "plain", 12), make_trainer(tmp_path / "traced", 12)
    traced.profiler = StepProfiler(tmp_path / "profile", lambda text: None)
    for trainer in (plain, traced):
        list(trainer.run())
    for ours, theirs in zip(traced.model.parameters(), plain.model.parameters(), strict=True):
        assert ours.equal(theirs)
