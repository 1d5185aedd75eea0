"""Reports of evaluations as they are printed, against what was printed before."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from llmctl.cli.console import _Console
from llmctl.cli.evaluation_tables import print_report

FOLDER = Path(__file__).parent / "evaluations"
"""A report of each kind as ``llmctl eval`` kept it, and its tables on 100 columns."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_reports_are_printed_as_ever(path: Path):
    console = _Console(
        file=io.StringIO(), width=100, highlight=False, markup=False, emoji=False, soft_wrap=True
    )
    print_report(console, json.loads(path.read_text()))
    assert console.file.getvalue() == path.with_suffix(".txt").read_text()
