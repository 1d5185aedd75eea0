"""Reports that were kept: read again, and as they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.errors import InputError
from llmctl.evaluation.report import Report
from llmctl.parsing import read_json_object
from llmctl.reporting.report import ReportPart
from llmctl.tasks import TASKS
from llmctl.tasks.evaluation import Evaluator
from llmctl.tasks.suites import HARNESS, SUITES

REPORT = "report.json"


def read_report(path: Path) -> Report:
    """A report that was kept. Raises InputError where its file, by whoever wrote it, lacks what
    every report has."""
    with _whole(path):
        return Report.read(read_json_object(path))


def way_of(report: Report) -> type[Evaluator]:
    """What measured a report. Raises KeyError where nothing makes reports of its kind."""
    of_tasks = (way for task in TASKS.values() for way in task.evaluators())
    ways = (*of_tasks, *(suite.evaluator() for suite in (*SUITES.values(), HARNESS)))
    by_kind: dict[str, type[Evaluator]] = {kind: way for way in ways for kind in way.reports}
    return by_kind[report.task]


def parts_of(report: Report, path: Path) -> list[ReportPart]:
    """What a report has to show. path: where it is kept. Raises InputError where it lacks what a
    report of its kind has."""
    with _whole(path):
        return [*way_of(report).parts(report), *report.remarks()]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raises InputError where a report lacks a part."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole report ({type(error).__name__}: {error}); make it again with "
            "--force"
        ) from None
