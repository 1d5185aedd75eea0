"""The terminal: bars that know their end, and lines that break between words."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from llmctl.cli import console
from llmctl.cli.console import TerminalReporter, print_json, wrapped
from llmctl.reporting.reporter import Record


@pytest.mark.parametrize("width", range(9, 80, 7))
def test_lines_break_between_words(width: int):
    text = "  step    252  validation: loss 6.7912, MLM 12.3%, 文字 处理 at /a/long/path/of/a/file"
    lines = wrapped(text, width).split("\n")
    assert re.split(r"\s+", " ".join(lines).strip()) == re.split(r"\s+", text.strip())
    for line in lines:
        assert line.startswith("  ")
        assert Console().render_str(line).cell_len <= width or len(line.split()) == 1


def test_lines_that_fit_stay_as_they_are():
    table = "   layers × width   loss\n ›   2 ×  64     6.79\n\n"
    assert wrapped(table, 30) == table


class Terminal(io.StringIO):
    """One that draws."""

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, step: int, total: int | None, **values: float) -> str:
    """What a bar shows after a step."""
    seconds = values.pop("seconds", None)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with TerminalReporter() as reporter:
        assert not terminal.getvalue()
        reporter.metrics(Record("train", 1, {"loss": 7.0, "elapsed": 1.0}), total, seconds)
        reporter.metrics(Record("train", step, {"loss": 6.5, **values}), total, seconds)
        reporter._progress.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


@pytest.mark.parametrize(
    ("step", "total", "values", "shows"),
    [
        (250, 1000, {"elapsed": 10.0}, ["25%", "step 250 of 1,000, loss 6.5"]),
        # A time limit is a total as well.
        (40, None, {"elapsed": 90.0, "seconds": 300.0},
         ["30%", "step 40, 1 min 30 s of 5 min 00 s, loss 6.5"]),
        # With both, whichever comes first.
        (40, 1000, {"elapsed": 150.0, "seconds": 300.0},
         ["50%", "step 40 of 1,000, 2 min 30 s of 5 min 00 s"]),
        (900, 1000, {"elapsed": 150.0, "seconds": 300.0}, ["90%", "step 900 of 1,000, loss"]),
    ],
)  # fmt: skip
def test_a_bar_shows_how_far_a_training_is(
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    total: int | None,
    values: dict[str, float],
    shows: list[str],
):
    page = drawn(monkeypatch, step, total, **values)
    for part in shows:
        assert part in page


def test_results_go_to_standard_output_whatever_the_bars_are_drawn_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`llmctl generate --prompt x > file` on a terminal, which is what stderr is then."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with TerminalReporter() as reporter:
        print("a result,", end="", flush=True)
        reporter.progress("writing", 1, 2)
        print_json({"a": 1})
        reporter.progress("writing", 2, 2)
        drawn = len(terminal.getvalue())
        time.sleep(0.25)  # longer than between two refreshes
        assert len(terminal.getvalue()) == drawn
    assert capsys.readouterr().out == 'a result,{"a": 1}\n'
    assert "writing" in terminal.getvalue()
    assert "result" not in terminal.getvalue()


def test_where_nothing_is_drawn_a_line_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(console, "LINES_APART", 0.0)
    record = Record("train", 40, {"loss": 6.5, "elapsed": 90.0})
    TerminalReporter().metrics(record, None, 300.0)
    assert "training 30%  step 40, 1 min 30 s of 5 min 00 s, loss 6.5" in capsys.readouterr().err
