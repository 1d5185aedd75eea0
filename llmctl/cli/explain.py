"""``llmctl explain``."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag, option
from llmctl.errors import UsageError

EXAMPLE = 'Example: llmctl explain reviews "The rooms were small but the view was great"'
TEXTS_OF_FILE = 100
"""Texts of a file that are explained, unless more or fewer are asked for."""


@guarded
def command(
    words: list[str] | None = argument("A run or a model folder, then texts."),
    start: str | None = option(
        "The run or model folder, if it isn't the first argument.",
        "--from",
        autocompletion=artefact_names.RUNS,
    ),
    data: Path | None = option(
        "A file of texts (a line each, or a table), - for standard input. With --inside: texts for "
        "heads; words with tags or texts with a label for probe; documents for tuned-lens and "
        "nearest, or shards: those that the run was trained on.",
        metavar="FILE|shards",
    ),
    text_column: str | None = options.TEXT_COLUMN,
    text_pair_column: str | None = options.TEXT_PAIR_COLUMN,
    label_column: str | None = option("With --inside probe: the label's or the tags' column."),
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    limit: int | None = option(
        "Texts of --data that are explained, or looked at.",
        min=1,
        show_default="100; with --inside 2,000, with heads 20",
    ),
    text_pair: str | None = option("The second text, for an embedder or a classifier of pairs."),
    method: list[str] = option(
        "How words are weighed: integrated-gradients, gradient-input, occlusion, shapley or "
        "attention-rollout; may be repeated.",
        default=[],
        show_default="all that the model can have",
    ),
    answer: str | None = option(
        "Explain this class, tag or next word; of a detector replaced or original.",
        show_default="the model's own",
    ),
    against: str | None = option("What speaks for the answer rather than for this one."),
    word: int | None = option(
        "The number of the word whose tag, or whose judgement by a detector, is explained.",
        min=1,
        show_default="the surest entity, the most suspicious word",
    ),
    inside: str | None = option(
        "Look into the network instead: attention (by head), lens or tuned-lens (each layer's "
        "answer), heads (what the answer loses without each, and each neuron), patch (of two "
        "texts, which states make the difference), induction (needs no text), probe (what can be "
        "read from each layer, of the labels of --data), nearest (of --data, to the text)."
    ),
    steps: int | None = option(
        "With --inside tuned-lens: training steps for each layer.", min=1, show_default="200"
    ),
    lens: Path | None = option(
        "With --inside tuned-lens: a file to keep the lens in, read where it is there."
    ),
    html: Path | None = option("Write a page of its own, which needs no network."),
    device: str | None = options.DEVICE,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    json: bool = flag("Print one JSON object a text.", "--json"),
    quiet: bool = options.QUIET,
) -> None:
    """Tell which words of a text decided what a model answered, and how far that can be
    believed."""
    asked_for = locals()
    from llmctl.data.tables.labelled_files import LabelledColumns

    given = list(words or [])
    run = start or (given.pop(0) if given else None)
    if run is None:
        raise UsageError('give a run and a text: llmctl explain RUN "a text"')
    columns = options.configured(LabelledColumns, "explain", asked_for)
    if inside is not None:
        _look_inside(run, given, columns, asked_for)
        return
    for name in ("label_column", "steps", "lens"):
        if asked_for[name] is not None:
            said = f"--{name.replace('_', '-')}"
            raise UsageError(f"{said} goes with --inside; leave it out, or say what to look at")
    if given == ["-"]:
        given, data = [], data or Path("-")
    if not given and data is None and not sys.stdin.isatty():
        data = Path("-")
    if bool(given) == (data is not None):
        raise UsageError(f'give texts or --data FILE, one of them: llmctl explain {run} "a text"')
    _explain(run, given, data, columns, asked_for)


def _explain(
    run: str, texts: list[str], data: Path | None, columns: Any, asked_for: dict[str, Any]
) -> None:
    """Show which words decided."""
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.data.tables.labelled import Example
    from llmctl.reporting.explanation import page, render_explanation, render_methods
    from llmctl.stages.explain.words import (
        explain,
        methods_named,
        open_explainer,
        over_texts,
        texts_explained,
        texts_of_file,
    )
    from llmctl.tasks.explanation import ExplainedAnswer
    from llmctl.workspace.outputs import output_at

    method, json, html = (asked_for[name] for name in ("method", "json", "html"))
    methods_named(method)
    page_file = None if html is None else output_at(html)
    place = options.open_workspace(asked_for["workspace"])
    with TerminalReporter(quiet=asked_for["quiet"]) as reporter:
        asked = ExplainedAnswer(**{name: asked_for[name] for name in ("answer", "against", "word")})
        explainer = open_explainer(place, run, asked, device=asked_for["device"] or "auto")
        if data is None:
            pair = asked_for["text_pair"]
            examples = iter(
                [Example(text, pair, None, f"text {n}") for n, text in enumerate(texts, 1)]
            )
        else:
            most = asked_for["limit"] or TEXTS_OF_FILE
            examples = islice(texts_of_file(explainer, data, columns, reporter), most)
        found = []
        told = texts_explained(explainer, examples, None if data is None else reporter)
        for one in explain(told, method, reporter):
            found.append(one)
            if json:
                print_json(one.record())
            elif data is None or str(data) == "-":
                out().print(render_explanation(one.record()))
        if not found:
            raise UsageError("there was no text to explain; give texts or --data FILE")
        if len(found) > 1 and not json:
            out().print(render_methods(over_texts(found), f"over {len(found)} texts"))
        elif data is not None and str(data) != "-" and not json:
            out().print(render_explanation(found[0].record()))
        if page_file is not None:
            page_file.write(page(f"{run}: what decided", [o.record() for o in found]))
            reporter.note(f"wrote {html}")


def _look_inside(run: str, texts: list[str], columns: Any, asked_for: dict[str, Any]) -> None:
    """Show what happens in the network."""
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.reporting.explanation import inside_page
    from llmctl.reporting.report import render_report
    from llmctl.stages.explain.inside import LookedAt, look_inside, way_named
    from llmctl.tasks.explanation import ExplainedAnswer
    from llmctl.workspace.outputs import output_at

    inside, html, json = (asked_for[name] for name in ("inside", "html", "json"))
    if asked_for["method"]:
        raise UsageError(f"--inside {inside} takes no --method; leave it out")
    if texts == ["-"]:
        texts = [line.strip() for line in sys.stdin if line.strip()]
    data = asked_for["data"]
    looked_at = LookedAt(
        data=None if data is None else str(data),
        **{name: asked_for[name] for name in ("limit", "steps", "lens")},
    )
    way = way_named(inside, len(texts), looked_at)
    page_file = None if html is None else output_at(html)
    asked = ExplainedAnswer(**{name: asked_for[name] for name in ("answer", "against", "word")})
    with TerminalReporter(quiet=asked_for["quiet"]) as reporter:
        found = look_inside(
            options.open_workspace(asked_for["workspace"]),
            run,
            way,
            texts,
            asked,
            text_pair=asked_for["text_pair"],
            looked_at=looked_at,
            columns=columns,
            device=asked_for["device"] or "auto",
            reporter=reporter,
        )
        if json:
            print_json({"model": run, "inside": inside, **found.record})
        else:
            out().print(render_report(found.parts))
        if page_file is not None:
            page_file.write(inside_page(f"{run}: {way.described}", found.parts, found.maps))
            reporter.note(f"wrote {html}")
