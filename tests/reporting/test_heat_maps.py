"""Figures as colours: each cell by hand, and in the page of each way that has some."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.reporting.heat_maps import HeatMap, WeightMaps, html_of


def test_a_table_is_coloured_by_size_and_sign():
    found = html_of(
        HeatMap("lost <b>", ["head 0", "head 1"], ["layer 0"], [[0.5, -2.0]], [["+0.50", "-2.00"]])
    )
    assert "<h2>lost &lt;b&gt;</h2>" in found
    assert "<th></th><th>head 0</th><th>head 1</th>" in found
    cells = re.findall(r"rgb\(var\(--(\w+)\) / ([\d.]+)\)\">([^<]+)</td>", found)
    # A quarter of the largest, and the largest, of the strongest colour's 0.6.
    assert cells == [("for", "0.15", "+0.50"), ("against", "0.60", "-2.00")]
    flat = html_of(HeatMap("nothing", ["a"], ["b"], [[0.0]], [["0"]]))
    assert "/ 0.00)" in flat


def test_a_picture_has_a_square_for_each_weight():
    weights = [[1.0, 0.0], [0.26, 0.74]]
    found = html_of(WeightMaps("attention", ["the", "<sea>"], [("layer 0", [("head 3", weights)])]))
    assert "1&nbsp;the 2&nbsp;&lt;sea&gt;" in found
    assert 'viewBox="0 0 2 2"' in found
    squares = dict(re.findall(r'fill-opacity="([\d.]+)" d="([^"]+)"', found))
    assert squares == {"1": "M0 0h1v1h-1z", "0.3": "M0 1h1v1h-1z", "0.7": "M1 1h1v1h-1z"}
    assert "<figcaption>head 3</figcaption>" in found
    many = [("layer", [("head", [[0.0] * 200] * 200)] * 8)]
    found = html_of(WeightMaps("attention", ["x"] * 200, many))
    assert "<svg" not in found
    assert "8 pictures of 200 tokens each would make a page too large" in found


@pytest.mark.parametrize(
    ("way", "expected"),
    [("attention", "<svg viewBox"), ("lens", 'class="heat"'), ("heads", 'class="heat"')],
)
def test_pages_have_them(tiny_workspace: Path, tmp_path: Path, way: str, expected: str):
    page = tmp_path / "page.html"
    words = ["explain", "tiny", "the ship [MASK] over the wide sea", "--inside", way,
             "--html", str(page), "-w", str(tiny_workspace)]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    source = page.read_text()
    assert expected in source
    assert "default-src 'none'" in source
    assert not re.search(r"<script|<img|<link|(src|href)\s*=|@import|url\(", source)
    layers, heads = 2, 2
    counted = {"attention": ("<svg", layers * heads), "lens": ("<td title", 0),
               "heads": ("<td title", layers * heads)}[way]  # fmt: skip
    if counted[1]:
        assert source.count(counted[0]) == counted[1]
