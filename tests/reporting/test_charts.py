"""Pictures: the points are there, the same figures give the same bytes, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmctl.errors import UsageError
from llmctl.reporting.charts import Band, check_chart, save_chart

BANDS = [Band("full", [0, 1, 2], [0.2, 0.4, 0.9], [0.1, 0.3, 0.8], [0.3, 0.5, 1.0])]


def test_a_picture_is_the_same_each_time(tmp_path: Path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        save_chart(tmp_path / name, BANDS, ["0", "8", "32"], title="t", x="labels", y="accuracy")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    flat = [Band("full", [0, 1, 2], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1], [0.3, 0.3, 0.3])]
    save_chart(tmp_path / "c.svg", flat, ["0", "8", "32"], title="t", x="labels", y="accuracy")
    assert (tmp_path / "c.svg").read_bytes() != first


def test_what_can_not_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match=r"ends in \.svg"):
        check_chart(Path("picture.bmp"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'llmctl\[plot\]'"):
        check_chart(Path("picture.svg"))
