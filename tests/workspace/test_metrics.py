"""The metrics log of a run: read line by line, and of a long one no more than a curve can show."""

from __future__ import annotations

import itertools
import json
import os
import resource
import time
from pathlib import Path

import pytest

from llmctl.errors import InputError
from llmctl.workspace import metrics
from llmctl.workspace.metrics import glance, read_metrics
from llmctl.workspace.runs import RunRecorder


def record(step: int) -> str:
    """A line such as a training writes."""
    return (
        f'{{"kind": "train", "step": {step}, "loss": {1 + 1000 / (step + 100):.6f}, "lm_accuracy": '
        f'0.31, "learning_rate": 0.0003, "tokens": {step * 2048}, "tokens_per_second": 91022.4}}\n'
    )


def look(step: int) -> str:
    return f'{{"kind": "validation", "step": {step}, "loss": {2 + 1 / (step + 1)}}}\n'


def write(path: Path, steps: int, look_every: int) -> None:
    path.write_text(
        "".join(
            record(step) + (look(step) if step % look_every == 0 else "")
            for step in range(1, steps + 1)
        )
    )


def test_a_short_log_is_seen_whole(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, 50, 10)
    seen, whole = glance(path), read_metrics(path)
    assert seen.train == [r for r in whole if r["kind"] == "train"]
    assert seen.validations == [r for r in whole if r["kind"] == "validation"]
    assert len(seen.train) == 50
    assert len(seen.validations) == 5


def test_of_a_long_log_the_whole_curve_is_seen_in_a_bounded_time_and_memory(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, 400_000, 40_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    seen = glance(path)
    assert time.process_time() - begun < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert [r["step"] for r in seen.validations] == list(range(40_000, 400_001, 40_000))
    steps = [r["step"] for r in seen.train]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 400_000)
    assert len(steps) < 10_000
    assert max(b - a for a, b in itertools.pairwise(steps)) < 400_000 / 100


def test_the_cut_last_line_of_a_long_log_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metrics, "WHOLE_BYTES", 1 << 10)
    path = tmp_path / "metrics.jsonl"
    write(path, 2000, 100)
    for end in ('{"kind": "tra', "\0\0\0\n"):
        path.write_text("".join(map(record, range(1, 2001))) + end)
        assert glance(path).train[-1]["step"] == 2000
    path.write_text("".join(map(record, range(1, 2001))) + "{}}\n" + record(2001))
    with pytest.raises(InputError, match=r"metrics\.jsonl: the line '\{\}\}' is no JSON object"):
        glance(path)


@pytest.mark.parametrize(
    "line",
    ['{"kind": "train"}', '{"kind": 1, "step": 1}', '{"kind": "train", "step": "1"}',
     '{"kind": "train", "step": 1.5}', '{"kind": "train", "step": true}',
     '{"kind": "train", "step": 1, "loss": "low"}', '{"kind": "train", "step": 1, "loss": [1]}',
     '{"kind": "train", "step": 1, "tokens": null}', '{"step": 1' + "0" * 30 + "}"],
)  # fmt: skip
def test_a_record_is_of_numbers(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (read_metrics, glance):
        with pytest.raises(InputError, match=r"metrics\.jsonl:2 "):
            read(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match="folder or a device"):
        glance(tmp_path / "metrics.jsonl")


def test_what_is_not_finite_is_written_as_null(tmp_path: Path):
    """JSON has no NaN: other programs refuse the whole file."""
    recorder = RunRecorder(tmp_path)
    recorder.record({"kind": "train", "step": 1, "loss": float("nan"), "x": float("inf")})
    recorder.update(step=1, elapsed=float("inf"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("metrics.jsonl", "progress.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None
