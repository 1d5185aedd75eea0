"""Tables of reports that somebody else may have written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmctl.cli.evaluation_tables import print_kept
from llmctl.errors import InputError


@pytest.mark.parametrize(
    "report",
    [{}, {"task": "perplexity"}, {"task": "perplexity", "notes": []}, {"task": ["classify"]},
     {"task": "classify", "notes": [], "model": 1, "models": 3}],
)  # fmt: skip
def test_a_report_that_lacks_what_is_shown_is_named(report: dict, tmp_path: Path):
    with pytest.raises(InputError, match=r"report\.json is not a whole report"):
        print_kept(Console(file=io.StringIO()), report, tmp_path / "report.json")
