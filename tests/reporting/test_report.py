"""Reports of evaluations as they are printed, against what was printed before."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmctl.cli.console import _Console
from llmctl.errors import InputError
from llmctl.evaluation.report import Report
from llmctl.reporting.report import render_report
from llmctl.tasks.kept_reports import parts_of, read_report

FOLDER = Path(__file__).parent / "reports"
"""A report of each kind as ``llmctl eval`` kept it, and its tables on 100 columns."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_reports_are_printed_as_ever(path: Path):
    document = json.loads(path.read_text())
    file = io.StringIO()
    console: Console = _Console(
        file=file, width=100, highlight=False, markup=False, emoji=False, soft_wrap=True
    )
    console.print(render_report(parts_of(Report.read(document), path)))
    assert file.getvalue() == path.with_suffix(".txt").read_text()
    assert Report.read(document).document() == document


@pytest.mark.parametrize(
    "document",
    [{}, {"task": "perplexity"}, {"task": "perplexity", "notes": []}, {"task": ["classify"]},
     {"task": "classify", "notes": [], "model": 1, "models": 3}],
)  # fmt: skip
def test_a_report_that_lacks_what_is_shown_is_named(document: dict[str, Any], tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"report\.json is not a whole report"):
        parts_of(read_report(path), path)
