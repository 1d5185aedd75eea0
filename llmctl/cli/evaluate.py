"""``llmctl eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl eval --from reviews --data test.csv"

LARGEST_MATRIX = 20
"""Classes; a larger confusion matrix is in the report only."""


@guarded
def command(
    start: Annotated[str, typer.Option("--from", help="A run, or a model folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled texts for a classifier; a pretrained run has its own."),
    ] = None,
    compare: Annotated[
        list[str], typer.Option(help="Another classifier for the same table; may be repeated.")
    ] = [],  # noqa: B006
    text_column: options.TextColumnOption = None,
    text_pair_column: options.TextPairColumnOption = None,
    label_column: options.LabelColumnOption = None,
    encoding_errors: options.EncodingErrorsOption = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines", help="Measure baselines beside it.", show_default="yes"
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens scored for the pseudo-perplexity.", show_default="2000"),
    ] = None,
    device: options.DeviceOption = None,
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure a model on held-out data, with baselines and intervals; keeps a report."""
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import build, parse_assignments, read_recipe
    from llmctl.stages.evaluate import EvaluateConfig, evaluate_model, plan

    given: dict[str, Any] = {
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "encoding_errors": encoding_errors,
        "baselines": baselines,
        "max_tokens": max_tokens,
        "device": device,
        "seed": seed,
    }
    config = build(
        EvaluateConfig,
        read_recipe(recipe, "eval") if recipe else {},
        {key: value for key, value in given.items() if value is not None},
        parse_assignments(set_),
    )
    place = options.open_workspace(workspace)
    how: dict[str, Any] = {"compare": compare, "name": name, "force": force}
    with TerminalReporter(quiet=quiet) as reporter:
        if dry_run:
            print_json(plan(place, start, data, config, reporter=reporter, **how))
            return
        report, artefact, there = evaluate_model(
            place, start, data, config, reporter=reporter, **how
        )
        reporter.note(f"report {artefact.folder}{': up to date' if there else ''}")
    if json:
        print_json({"name": artefact.manifest.name, **report})
    elif report["task"] == "classify":
        _print_classifier(out(), report)
    else:
        _print_pretrained(out(), report)


def _print_classifier(console: Any, report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['model']} on {report['examples']:,} examples",
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for heading in ("accuracy (95 %)", "macro F1", "micro F1", "MCC", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in report["results"].items():
        low, high = row["intervals"]["accuracy"]
        table.add_row(
            report["model"] if name == "model" else name,
            f"{row['accuracy']:.1%} ({100 * low:.1f}–{100 * high:.1f})",
            f"{row['macro_f1']:.3f}",
            f"{row['micro_f1']:.3f}",
            f"{row['mcc']:.3f}",
            f"{row['expected_calibration_error']:.3f}",
        )
    console.print(table)
    for name, difference in report["differences"].items():
        console.print(
            f"accuracy over {name}: {100 * difference['difference']:+.1f} points "
            f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        )
    model = report["results"]["model"]
    if len(model["classes"]) <= LARGEST_MATRIX:
        _print_confusion(console, model)
    for note in report["notes"]:
        console.print(f"note: {note}")


def _print_confusion(console: Any, model: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        title="confusion matrix: true in rows, predicted in columns",
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    # Numbers, as label names side by side would not fit.
    for number in range(1, len(model["classes"]) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    table.add_column("F1", justify="right", no_wrap=True)
    rows = zip(model["classes"], model["confusion_matrix"], strict=True)
    for number, (entry, row) in enumerate(rows, 1):
        table.add_row(f"{number}: {entry['label']}", *map(str, row), f"{entry['f1']:.3f}")
    console.print(table)


def _print_pretrained(console: Any, report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    from llmctl.reporting.units import figure

    table = Table(
        box=box.SIMPLE, title=f"{report['model']} on the validation part of {report['data']}"
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    values = report["results"]
    rows = [
        # A handful of validation tokens may have none that is masked.
        (f"MLM loss (at {report['mask_rate']:.0%}), nats", figure(values.get("mlm_loss"), ".4f")),
        ("MLM accuracy", figure(values.get("mlm_accuracy"), ".1%")),
    ]
    if "nsp_accuracy" in values:
        rows.append(("NSP accuracy", figure(values["nsp_accuracy"], ".1%")))
    scored = report["pseudo_perplexity_tokens"]
    perplexity = figure(values["pseudo_perplexity"], ".2f")
    rows.append((f"pseudo-perplexity ({scored:,} tokens)", perplexity))
    for row in rows:
        table.add_row(*row)
    console.print(table)
