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
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Measure baselines beside it.")
    ] = True,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens scored for the pseudo-perplexity.")
    ] = 2000,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure a model on held-out data, with baselines and intervals; keeps a report."""
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.stages.evaluate import EvaluateConfig, evaluate_model

    config = EvaluateConfig(
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        baselines=baselines,
        max_tokens=max_tokens,
        device=device,
        seed=seed or 0,
    )
    with TerminalReporter(quiet=quiet) as reporter:
        report, artefact, there = evaluate_model(
            options.open_workspace(workspace),
            start,
            data,
            config,
            compare=compare,
            name=name,
            force=force,
            reporter=reporter,
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

    labels = [entry["label"] for entry in model["classes"]]
    table = Table(box=box.SIMPLE, title="confusion matrix: true in rows, predicted in columns")
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    table.add_column("F1", justify="right")
    for entry, row in zip(model["classes"], model["confusion_matrix"], strict=True):
        table.add_row(entry["label"], *map(str, row), f"{entry['f1']:.3f}")
    console.print(table)


def _print_pretrained(console: Any, report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE, title=f"{report['model']} on the validation part of {report['data']}"
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    values = report["results"]
    rows = [
        (f"MLM loss (at {report['mask_rate']:.0%}), nats", f"{values['mlm_loss']:.4f}"),
        ("MLM accuracy", f"{values['mlm_accuracy']:.1%}"),
    ]
    if "nsp_accuracy" in values:
        rows.append(("NSP accuracy", f"{values['nsp_accuracy']:.1%}"))
    scored = report["pseudo_perplexity_tokens"]
    rows.append((f"pseudo-perplexity ({scored:,} tokens)", f"{values['pseudo_perplexity']:.2f}"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
