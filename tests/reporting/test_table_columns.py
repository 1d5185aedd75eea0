"""Tables on a narrow terminal: names break between their parts only."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmctl.reporting.tables import simple_table


def page(name: str, width: int) -> list[str]:
    table = simple_table("shards", [("name", "left"), ("tokenizer", "left"), ("tokens", "right"),
                                    ("size", "right"), ("age", "right")])  # fmt: skip
    table.add_row(name, "sentencepiece-bpe 16,000", "123.45 M", "247 MB", "12 min ago")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 70, 80])
def test_a_name_breaks_between_its_parts(width: int):
    lines = page("zh-sentencepiece-bpe-of_the.newest-corpus", width)
    assert max(map(len, lines)) <= width
    first = [line[1:].split(" ")[0] for line in lines[4:]]  # behind the edge
    written = [part for part in first if part]
    assert "".join(written) == "zh-sentencepiece-bpe-of_the.newest-corpus"
    assert all(part[-1] in "-._" for part in written[:-1])


def test_a_name_that_fits_stays_whole():
    assert any("zh-sentencepiece-bpe" in line for line in page("zh-sentencepiece-bpe", 80))
