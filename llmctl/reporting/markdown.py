"""Tables and lists in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llmctl.reporting.report import ReportPart, ReportTable

_SPECIAL_CHARACTERS = re.compile(r"([\\`*_\[\]<>|#])")


def plain(text: str) -> str:
    """Text that is shown as it is, in one line.

    >>> plain("a_b | c")
    'a\\\\_b \\\\| c'
    """
    return _SPECIAL_CHARACTERS.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A text of one line as code, which may have backticks of its own."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    room = " " if longest else ""
    return f"{fence}{room}{' '.join(text.splitlines())}{room}{fence}"


def block(text: str, language: str) -> str:
    """Lines as code, which may have backticks of their own."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; the first column to the left, the others to the right."""
    lines = [
        "| " + " | ".join(map(plain, headings)) + " |",
        "| " + " | ".join(["---", *["---:"] * (len(headings) - 1)]) + " |",
        *("| " + " | ".join(map(plain, row)) + " |" for row in rows),
    ]
    return "\n".join(lines)


def report(parts: Iterable[ReportPart]) -> str:
    """A report: its tables under their titles, its lines as a list behind them."""
    tables, lines = [], []
    for part in parts:
        if isinstance(part, ReportTable):
            title = f"{plain(part.title)}\n\n" if part.title else ""
            tables.append(title + table(["", *part.headings], part.rows))
        else:
            lines.append(f"- {plain(part)}")
    return "\n\n".join([*tables, *(["\n".join(lines)] if lines else [])])
