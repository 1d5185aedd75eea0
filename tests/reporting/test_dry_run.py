"""What a dry run shows: tables for people, a document for scripts."""

from __future__ import annotations

import json
import sys

import pytest

from llmctl.cli.console import print_dry_run
from llmctl.tasks.pretraining import resolve

CONFIG = resolve("bert", "nano", {"training": {"max_steps": 7}})
DOCUMENT = {
    "config": CONFIG.model_dump(mode="json"),
    "plan": {"name": "docs-1", "up_to_date": False, "inputs": {"shards": "shards/docs"}},
}


def said(capsys: pytest.CaptureFixture[str], document: dict, **how: object) -> str:
    print_dry_run(document, CONFIG, **{"json": False, **how})  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_a_terminal_gets_tables_with_what_was_asked_for_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    text = said(capsys, DOCUMENT)
    assert "{" not in text
    asked, _, rest = text.partition("by default")
    assert "docs-1" in asked
    lines = [line.split() for line in asked.splitlines()]
    assert ["training.max_steps", "7"] in lines
    assert not any(line[:1] == ["training.batch_size"] for line in lines)
    assert "training.batch_size" in rest


def test_a_script_gets_the_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert json.loads(said(capsys, DOCUMENT)) == DOCUMENT
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert json.loads(said(capsys, DOCUMENT, json=True)) == DOCUMENT


def test_a_sweep_gets_a_line_for_each_point(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    points = [
        {"name": f"lr-{rate}", "values": {"training.learning_rate": rate}, "config": {},
         "states": {f"lr-{rate}": state}}
        for rate, state in ((1e-3, "finished"), (1e-2, None))
    ]  # fmt: skip
    print_dry_run({"runs": 2, "points": points}, None, json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lr-0.001", "training.learning_rate", "1e-3", "finished"] in lines
    assert ["lr-0.01", "training.learning_rate", "0.01"] in lines
