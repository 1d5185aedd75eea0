"""Explanations for people: coloured words in a terminal, and a page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llmctl.reporting.heat_maps import HeatMap, WeightMaps, html_of
from llmctl.reporting.report import ReportPart
from llmctl.reporting.tables import simple_table
from llmctl.reporting.visible import visible

STRONG, SOME = 0.5, 0.15
"""Shares of the largest weight from which a word is marked strongly, or at all."""
GRADE_MARKS = {2: "++", 1: "+", 0: "", -1: "-", -2: "--"}
GRADE_COLOURS = {
    2: "bold white on green4",
    1: "green4",
    0: "",
    -1: "red3",
    -2: "bold white on red3",
}
SPACES = "\n\t"
"""Control characters that are shown as the space that they are."""
MISSED_SHARE = 0.01
"""Share of what is to be explained that weights which add up to it may miss."""
SHOWN_WORDS = 12
"""Words with their weights that are listed below a text."""


def grade(weight: float, largest: float) -> int:
    """How strongly a word speaks for (above 0) or against the answer, from -2 to 2."""
    share = weight / largest if largest else 0.0
    size = 2 if abs(share) >= STRONG else 1 if abs(share) >= SOME else 0
    return size if share > 0 else -size


def render_explanation(record: Mapping[str, Any]) -> RenderableType:
    """A text with the words marked by the most faithful method, and what each method is worth.

    Without colour the marks tell: ``++`` and ``+`` for, ``-`` and ``--`` against.
    """
    best, words = record["best_method"], record["words"]
    weights = [word["weights"][best] for word in words]
    largest = max(map(abs, weights), default=0.0)
    line, end = Text(), 0
    for word, weight in zip(words, weights, strict=True):
        line.append(visible(record["text"][end : word["start"]]))
        level = grade(weight, largest)
        line.append(visible(word["text"]), style=GRADE_COLOURS[level])
        line.append(GRADE_MARKS[level], style="dim")
        end = word["end"]
    line.append(visible(record["text"][end:]))
    sure = record.get("probability")
    head = Text(f"{visible(record['answer'])}{'' if sure is None else f'  {sure:.1%}'}", "bold")
    parts: list[RenderableType] = [head, line, _words_table(words, best, record["methods"])]
    parts.append(render_methods(record["methods"], f"by {best}"))
    parts += incomplete(record["methods"])
    return Group(*parts)


def _words_table(
    words: Sequence[Mapping[str, Any]], best: str, methods: Mapping[str, Any]
) -> RenderableType:
    table = simple_table(
        "", [("word", "left"), *((name.replace("-", "\n"), "right") for name in methods)]
    )
    # Where a terminal is narrow, words are broken and not numbers.
    for column in table.columns[1:]:
        column.no_wrap = True
    ranked = sorted(words, key=lambda word: -abs(word["weights"][best]))
    for word in ranked[:SHOWN_WORDS]:
        cells = [f"{word['weights'][name]:+.3f}" for name in methods]
        table.add_row(Text(visible(word["text"])), *cells)
    return table


def render_methods(methods: Mapping[str, Mapping[str, float]], title: str = "") -> RenderableType:
    """How much better than chance the methods' orders are; with intervals over several texts."""
    many = any("low" in found for found in methods.values())
    heads = ["faithfulness", "95 %"] if many else ["faithfulness", "deletion", "insertion"]
    table = simple_table(title, [("method", "left"), *((head, "right") for head in heads)])
    for name, found in methods.items():
        cells = (
            [f"{found['low']:+.3f} to {found['high']:+.3f}"]
            if many
            else [f"{found['deletion']:.3f}", f"{found['insertion']:.3f}"]
        )
        table.add_row(name, f"{found['faithfulness']:+.3f}", *cells)
    if not many and methods:
        random = next(iter(methods.values()))
        table.add_row(
            "random order", "0", f"{random['random_deletion']:.3f}",
            f"{random['random_insertion']:.3f}",
        )  # fmt: skip
    return table


PAGE_STYLE = """
:root { color-scheme: light dark; --for: 46 125 50; --against: 198 40 40; --line: #8886; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  background: Canvas; color: CanvasText; overflow-wrap: anywhere; }
.word { border-radius: .2em; padding: .05em .1em; }
.word sup { font-size: .65em; opacity: .75; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto;
  overflow-wrap: normal; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
td { unicode-bidi: plaintext; }
td:first-child, th:first-child { text-align: left; }
.heat td { text-align: center; padding: .15rem .4rem; }
.maps { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; font-size: .8rem; }
svg { width: 6.5rem; height: 6.5rem; display: block; border: 1px solid var(--line);
  fill: rgb(var(--for)); shape-rendering: crispEdges; }
section { border-bottom: 1px solid var(--line); padding-bottom: 1rem; }
@media (max-width: 30rem) { table { font-size: .85rem; } td, th { padding-right: .5rem; } }
"""
NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser is told to load: nothing, but the style that is in the page."""
ABOUT = (
    "Green words speak for the answer, red words against it. Faithfulness is measured by leaving "
    "words out and putting them back in the order of their weights, and is what that is better "
    "than random orders: at 0 the weights tell nothing."
)


def page(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """One HTML page with everything in it."""
    sections = "".join(f"<section>{''.join(_section(record))}</section>" for record in records)
    return _whole(title, f"<p>{ABOUT}</p>{sections}")


def inside_page(
    title: str, parts: Sequence[ReportPart], maps: Sequence[HeatMap | WeightMaps] = ()
) -> str:
    """What was found inside a network as one HTML page with everything in it, the maps first."""
    return _whole(title, "".join([*map(html_of, maps), *map(_part, parts)]))


def _part(part: ReportPart) -> str:
    if isinstance(part, str):
        return f'<p dir="auto">{html.escape(visible(part))}</p>'
    heads = "".join(f"<th>{html.escape(visible(head))}</th>" for head in ("", *part.headings))
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(visible(cell))}</td>' for cell in row)}</tr>"
        for row in part.rows
    )
    title = html.escape(visible(part.title))
    return f"<h2>{title}</h2><table><tr>{heads}</tr>{rows}</table>"


def _whole(title: str, body: str) -> str:
    """A page around its contents."""
    name = html.escape(visible(title))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{PAGE_STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>"
    )


def _section(record: Mapping[str, Any]) -> Iterator[str]:
    best, methods = record["best_method"], record["methods"]
    sure = record.get("probability")
    answer = html.escape(visible(record["answer"]))
    yield f"<h2><bdi>{answer}</bdi>{'' if sure is None else f' · {sure:.1%}'}</h2>"
    yield '<p dir="auto">'
    largest = max((abs(word["weights"][best]) for word in record["words"]), default=0.0) or 1.0
    end = 0
    for word in record["words"]:
        yield html.escape(visible(record["text"][end : word["start"]], keep=SPACES))
        weight = word["weights"][best]
        side, strength = "for" if weight > 0 else "against", min(1.0, abs(weight) / largest)
        mark = GRADE_MARKS[grade(weight, largest)].replace("-", "−")
        yield (
            f'<span class="word" title="{weight:+.4f}" '
            f'style="background: rgb(var(--{side}) / {0.6 * strength:.2f})">'
            f"{html.escape(visible(word['text']))}{f'&NoBreak;<sup>{mark}</sup>' if mark else ''}"
            "</span>"
        )
        end = word["end"]
    yield f"{html.escape(visible(record['text'][end:], keep=SPACES))}</p>"
    yield "<table><tr><th>method</th><th>faithfulness</th><th>deletion</th><th>insertion</th></tr>"
    for name, found in methods.items():
        yield (
            f"<tr><td>{name}</td><td>{found['faithfulness']:+.3f}</td>"
            f"<td>{found['deletion']:.3f}</td><td>{found['insertion']:.3f}</td></tr>"
        )
    random = methods[best]
    yield (
        f"<tr><td>random order</td><td>0</td><td>{random['random_deletion']:.3f}</td>"
        f"<td>{random['random_insertion']:.3f}</td></tr></table>"
    )
    yield from (f"<p>{html.escape(line)}</p>" for line in incomplete(methods))
    heads = "".join(f"<th>{name}</th>" for name in methods)
    rows = "".join(_word_row(word, methods) for word in record["words"])
    yield (
        "<details><summary>Each word by each method</summary>"
        f"<table><tr><th>word</th>{heads}</tr>{rows}</table></details>"
    )


def _word_row(word: Mapping[str, Any], methods: Iterable[str]) -> str:
    cells = "".join(f"<td>{word['weights'][name]:+.3f}</td>" for name in methods)
    return f"<tr><td>{html.escape(visible(word['text']))}</td>{cells}</tr>"


def incomplete(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is to be said of weights that are to add up, and don't."""
    for name, found in methods.items():
        missed = float(found.get("missed", 0.0))
        if missed > MISSED_SHARE:
            yield (
                f"{name}: after {found['steps']} steps the weights still miss {missed:.1%} of what "
                f"they are to add up to, more than {MISSED_SHARE:.0%}; go by another method"
            )
