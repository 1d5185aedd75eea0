"""The page of an explanation in a real browser: light and dark, on a phone, with whatever text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.data.tables.tagged import words_in
from llmctl.reporting.explanation import inside_page, page
from llmctl.reporting.heat_maps import HeatMap, WeightMaps
from llmctl.reporting.report import ReportTable

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
     if (found := shutil.which(name))), None,
)  # fmt: skip
METHODS = ("integrated-gradients", "gradient-input", "occlusion", "shapley", "attention-rollout")
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3
TEXTS = {
    "positive rather than negative": "The rooms were <b>small</b>, but the view & the sea…",
    "好评": "房间很小，但是服务员非常热情，下次还会再来。",
    "إيجابي": "كانت الغرف صغيرة لكن الإطلالة على البحر رائعة",
    "B" * 120: f"{LONG} https://example.org/{'a' * 300}",
    "a long one": " ".join(f"word{n}" for n in range(400)),
}
PHONE, DESK = 360, 1000

# What the page says of itself, from a frame of the width of a window: Chromium's own has a least
# width. Colours are laid over one another as a screen does it (WCAG 2.2, relative luminance).
MEASURE = """
const frame = document.querySelector('iframe'), page = frame.contentDocument, found = {};
const view = frame.contentWindow, root = page.documentElement;
const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
const over = (top, below) => {
  const a = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a));
};
const light = rgb => {
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const [r, g, b] = rgb.map(c => linear(c / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = parts(view.getComputedStyle(page.body).backgroundColor);
const contrast = element => {
  const style = view.getComputedStyle(element);
  const below = over(parts(style.backgroundColor), ground), own = over(parts(style.color), below);
  const [low, high] = [light(below), light(own)].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
};
found.dark = view.matchMedia('(prefers-color-scheme: dark)').matches;
found.ground = light(ground);
found.width = root.clientWidth;
found.scrolled = root.scrollWidth;
found.contrast = Math.min(...[...page.querySelectorAll('.word, td, p, h2')].map(contrast));
found.words = page.querySelectorAll('.word').length;
found.scripts = page.querySelectorAll('script, link, img, iframe').length;
found.directions = [...page.querySelectorAll('section > p[dir]')]
  .map(p => view.getComputedStyle(p).direction);
const lines = th => th.getBoundingClientRect().height
  / parseFloat(view.getComputedStyle(th).fontSize) / 1.6;
found.broken = [...page.querySelectorAll('section > table th')].some(th => lines(th) > 2);
found.requests = view.performance.getEntriesByType('resource').length;
document.title = 'found';
document.body.textContent = JSON.stringify(found);
"""


def record(answer: str, text: str) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    figures = {
        "deletion": 0.3, "insertion": 0.6, "random_deletion": 0.5, "random_insertion": 0.5,
        "faithfulness": 0.2,
    }  # fmt: skip
    words = [
        {
            "text": text[begin:end],
            "start": begin,
            "end": end,
            # Whole weights too: the strongest colours.
            "weights": {
                name: float(generator.choice([-1.0, -0.3, 0.02, 0.3, 1.0])) for name in METHODS
            },
        }
        for begin, end in words_in(text)
    ]
    return {
        "text": text, "answer": answer, "probability": 0.873, "best_method": METHODS[0],
        "words": words, "methods": dict.fromkeys(METHODS, figures),
    }  # fmt: skip


def seen(folder: Path, source: str, width: int, *, dark: bool) -> dict[str, Any]:
    """What a browser measures of a page in a window of a width."""
    assert CHROMIUM is not None
    frame = folder / "frame.html"
    frame.write_text(
        '<!doctype html><meta charset="utf-8"><body>'
        f'<iframe style="border:0" width="{width}" height="900" '
        f'srcdoc="{html.escape(source, quote=True)}"></iframe>'
        f"<script>onload = () => {{{MEASURE}}}</script>"
    )
    result = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'browser'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom",
            f"--window-size={max(width, 600)},1000", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    match = re.search(r"<body>(\{.*\})</body>", result.stdout, re.DOTALL)
    assert match is not None, (result.stdout[-500:], result.stderr[-500:])
    return json.loads(html.unescape(match[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look with")
@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (PHONE, True), (DESK, True)])
def test_a_page_can_be_read_on_each_screen(tmp_path: Path, width: int, dark: bool):
    records = [record(answer, text) for answer, text in TEXTS.items()]
    found = seen(tmp_path, page("reviews: what decided", records), width, dark=dark)
    assert found["dark"] is dark
    assert (found["ground"] < 0.1) is dark
    assert found["scrolled"] <= found["width"] == width
    assert found["contrast"] >= 4.5  # WCAG 2.2, 1.4.3
    assert found["words"] == sum(len(one["words"]) for one in records)
    assert found["directions"] == ["ltr", "ltr", "rtl", "ltr", "ltr"]
    assert not found["broken"]
    assert found["scripts"] == found["requests"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look with")
def test_a_wide_table_scrolls_by_itself(tmp_path: Path):
    headings = ["likeliest", "Ġsea", "its rank", "KL"]
    rows = [[str(n), f"Ġthe 10%  {'x' * 80}", "1%", str(n), "2.3"] for n in range(3)]
    source = inside_page("gpt: inside", [ReportTable("lens", headings, rows), "KL, in nats"])
    found = seen(tmp_path, source, PHONE, dark=False)
    assert found["scrolled"] <= found["width"] == PHONE
    assert found["contrast"] >= 4.5


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look with")
@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESK, True)])
def test_maps_can_be_read_on_each_screen(tmp_path: Path, width: int, dark: bool):
    generator = np.random.default_rng(0)
    tokens = [f"Ġword{n}" for n in range(30)]
    values = generator.normal(size=(6, 30)).tolist()
    weights = generator.dirichlet([0.1] * 30, size=30).tolist()
    maps = [
        HeatMap("by layer", tokens, [f"layer {n}" for n in range(6)], values, [tokens] * 6),
        WeightMaps("attention", tokens, [("layer 0", [(f"head {n}", weights) for n in range(12)])]),
    ]
    found = seen(
        tmp_path, inside_page("bert: inside", ["entropy, in nats"], maps), width, dark=dark
    )
    assert (found["ground"] < 0.1) is dark
    assert found["scrolled"] <= found["width"] == width
    assert found["contrast"] >= 4.5
    assert found["scripts"] == found["requests"] == 0


def test_a_page_asks_for_nothing():
    source = page("reviews", [record("a", "see <img src=http://x.org/a.png> & <script>x</script>")])
    assert "<img" not in source
    assert "<script" not in source
    assert "default-src 'none'" in source
    assert not re.search(r"(src|href)\s*=|@import|url\(", re.sub(r"&lt;.*?&gt;", "", source))
