"""The reports of ``llmctl eval`` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import InputError

LARGEST_MATRIX = 20
"""Classes; a larger confusion matrix is in the report only."""

WAYS = {
    "plain": "plain",
    "tokens": "by token",
    "bytes": "by byte",
    "pmi": "PMI",
    "greedy": "last word",
}
"""How ways of choosing are called."""

CLASSES_EXPLAINED = (
    "macro F1: the mean of the classes' F1, whatever their size; MCC: how labels and predictions "
    "correlate, 0 by chance, 1 if all are right; ECE: how far probabilities are from the share "
    "that is right, 0 at best"
)
PRETRAINED_EXPLAINED = (
    "MLM: hidden tokens that are to be found again; NSP: whether one text follows the other, 50% "
    "by chance; nats: natural logarithms; pseudo-perplexity: among how many tokens it is torn on "
    "average with both sides known, lower is better"
)
PERPLEXITY_EXPLAINED = (
    "loss: in natural logarithms (nats) a token; perplexity: its exponential, among how many "
    "tokens the model is torn; bits per byte: the same for each byte, which compares between "
    "tokenizers; lower is better"
)
SEQ2SEQ_EXPLAINED = (
    "BLEU and chrF (of 100) and ROUGE (R-1, R-2, R-L, of 1): what texts and references have in "
    "common in words and letters; accuracy and loss (nats): of the references' tokens, each given "
    "those before it"
)
"""A line below each table for what its headings mean."""


def print_kept(console: Any, report: Any, path: Path) -> None:
    """Print a report that was made earlier. Raises InputError where its file, by whoever wrote it,
    lacks what a report of its kind has."""
    try:
        print_report(console, report)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole report ({type(error).__name__}: {error}); make it again with "
            "--force"
        ) from None


def print_report(console: Any, report: dict[str, Any]) -> None:
    """Print a report of any kind."""
    printers = {
        "classify": _print_classes,
        "prompt": _print_prompts,
        "pretrain": _print_pretrained,
        "perplexity": _print_perplexity,
        "seq2seq": _print_seq2seq,
    }
    printers.get(report["task"], _print_task)(console, report)
    for note in report["notes"]:
        console.print(f"note: {note}")
    if report.get("learned"):  # not in reports of earlier versions
        console.print(f"note: {report['learned']}")


def _print_classes(console: Any, report: dict[str, Any]) -> None:
    _print_class_rows(console, report, f"{report['model']} on {report['examples']:,} examples")
    _print_accuracies_over(console, report)
    model = report["results"]["model"]
    if len(model["classes"]) <= LARGEST_MATRIX:
        _print_confusion(console, model)


def _print_prompts(console: Any, report: dict[str, Any]) -> None:
    title = (
        f"{report['model']} asked by {report['template']} about {report['examples']:,} examples, "
        f"{len(report['labels'])} labels"
    )
    _print_class_rows(console, report, title)
    table = _table(
        f"accuracy by how the answer is chosen (above: {WAYS[report['score']]}); "
        f"chance {report['chance']:.1%}",
        *(heading for way, heading in WAYS.items() if way != "greedy"),
    )
    for row, ways in report["by_score"].items():
        table.add_row(_shown(report, row), *(f"{way['accuracy']:.1%}" for way in ways.values()))
    console.print(table)
    _print_accuracies_over(console, report, of=_shown(report, report["row"]))


def _print_class_rows(console: Any, report: dict[str, Any], title: str) -> None:
    table = _table(title, "accuracy (95 %)", "macro F1", "micro F1", "MCC", "ECE")
    for name, row in report["results"].items():
        table.add_row(
            _shown(report, name),
            _share(row["accuracy"], row["intervals"]["accuracy"]),
            f"{row['macro_f1']:.3f}",
            f"{row['micro_f1']:.3f}",
            f"{row['mcc']:.3f}",
            f"{row['expected_calibration_error']:.3f}",
        )
    console.print(table)
    console.print(CLASSES_EXPLAINED)


def _print_accuracies_over(console: Any, report: dict[str, Any], of: str = "") -> None:
    beginning = f"accuracy of {of}" if of else "accuracy"
    for name, difference in report["differences"].items():
        console.print(
            f"{beginning} over {_shown(report, name)}: "
            f"{100 * difference['difference']:+.1f} points "
            f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        )


def _print_confusion(console: Any, model: dict[str, Any]) -> None:
    numbers = [str(number) for number in range(1, len(model["classes"]) + 1)]
    # Numbers, as label names side by side would not fit.
    table = _table("confusion matrix: true in rows, predicted in columns", *numbers, "F1")
    rows = zip(model["classes"], model["confusion_matrix"], strict=True)
    for number, (entry, row) in enumerate(rows, 1):
        table.add_row(f"{number}: {entry['label']}", *map(str, row), f"{entry['f1']:.3f}")
    console.print(table)


def _print_pretrained(console: Any, report: dict[str, Any]) -> None:
    from llmctl.reporting.units import figure

    table = _table(f"{report['model']} on the validation part of {report['data']}", "value")
    values = report["results"]
    # A handful of validation tokens may have none that is masked.
    loss, accuracy = (
        figure(values.get("mlm_loss"), ".4f"),
        figure(values.get("mlm_accuracy"), ".1%"),
    )
    table.add_row(f"MLM loss (at {report['mask_rate']:.0%}), nats", loss)
    table.add_row("MLM accuracy", accuracy)
    if "nsp_accuracy" in values:
        table.add_row("NSP accuracy", figure(values["nsp_accuracy"], ".1%"))
    scored = report["pseudo_perplexity_tokens"]
    perplexity = figure(values["pseudo_perplexity"], ".2f")
    table.add_row(f"pseudo-perplexity ({scored:,} tokens)", perplexity)
    console.print(table)
    console.print(PRETRAINED_EXPLAINED)


def _print_perplexity(console: Any, report: dict[str, Any]) -> None:
    from llmctl.reporting.units import figure

    text = f"the validation part of {report['data']}" if report["split"] else report["data"]
    documents = report["documents"]
    table = _table(
        f"{report['model']} on {text}: {documents:,} document{'' if documents == 1 else 's'}, "
        f"{report['bytes']:,} bytes",
        "tokens", "loss, nats", "perplexity", "bits per byte (95 %)",
    )  # fmt: skip
    for name, row in report["results"].items():
        shown, interval = _shown(report, name), ""
        if row["interval"]:
            low, high = row["interval"]
            interval = f" ({low:.4f}–{high:.4f})"
        if row["kind"] == "ngram":
            how = f"{row['order']}-gram"
        else:
            dtype = f"{row['dtype']}, " if row["dtype"] != "fp32" else ""
            how = f"{dtype}window {row['window']}, stride {row['stride']}"
        table.add_row(
            f"{shown}, {how}",
            f"{row['tokens']:,}",
            figure(row["loss"], ".4f"),
            figure(row["perplexity"], ",.2f"),
            figure(row["bits_per_byte"], ".4f") + interval,
        )
        if blocks := row.get("blocks"):
            table.add_row(
                f"{shown}, blocks of {blocks['length']} as in training",
                "",
                figure(blocks["loss"], ".4f"),
                figure(blocks["perplexity"], ",.2f"),
                figure(blocks["bits_per_byte"], ".4f"),
            )
    console.print(table)
    console.print(PERPLEXITY_EXPLAINED)
    if len({row["tokens"] for row in report["results"].values()}) > 1:
        console.print("tokens differ: perplexities don't compare, bits per byte do")
    for name, difference in report["differences"].items():
        interval = ""
        if difference["low"] is not None:
            interval = f" ({difference['low']:+.4f} to {difference['high']:+.4f})"
        console.print(
            f"bits per byte over {_shown(report, name)}: {difference['difference']:+.4f}{interval}"
        )


def _print_seq2seq(console: Any, report: dict[str, Any]) -> None:
    from rich.markup import escape

    from llmctl.reporting.units import figure

    table = _table(
        f"{report['model']} on {report['examples']:,} sources, {report['num_beams']} beams",
        "BLEU (95 %)", "chrF", "R-1", "R-2", "R-L", "accuracy", "loss",
    )  # fmt: skip
    for name, row in report["results"].items():
        low, high = row["intervals"]["bleu"]
        table.add_row(
            _shown(report, name),
            f"{row['bleu']:.2f} ({low:.1f}–{high:.1f})",
            f"{row['chrf']:.2f}",
            *(f"{row[kind]:.3f}" for kind in ("rouge1", "rouge2", "rougeL")),
            figure(row.get("token_accuracy"), ".1%"),
            figure(row.get("loss"), ".4f"),
        )
    console.print(table)
    console.print(SEQ2SEQ_EXPLAINED)
    model = report["results"]["model"]
    console.print(f"BLEU {model['bleu_signature']}; chrF {model['chrf_signature']}")
    for name, difference in report["differences"].items():
        console.print(
            f"BLEU over {_shown(report, name)}: {difference['difference']:+.2f} "
            f"({difference['low']:+.2f} to {difference['high']:+.2f})"
        )
    for example in report["shown"]:
        console.print(
            f"\n{escape(example['at'])}\n  source     {escape(example['source'])}"
            f"\n  reference  {escape(example['reference'])}"
            f"\n  written    {escape(example['written'])}"
        )


def _print_task(console: Any, report: dict[str, Any]) -> None:
    title = f"{report['model']}: {report['task']} on {report['examples']:,} questions"
    results, way = report["results"], report["score"]
    if "files" in report:
        names = [_shown(report, name) for name in results]
        table = _table(title, "questions", *names)
        for file, entry in report["files"].items():
            shares = [
                _share(row[way]["accuracy"], row[way]["interval"])
                for row in entry["results"].values()
            ]
            table.add_row(file, f"{entry['examples']:,}", *shares)
        shares = [_share(row[way]["accuracy"], row[way]["interval"]) for row in results.values()]
        table.add_row("mean", f"{report['examples']:,}", *shares)
    else:
        ways = [name for name in WAYS if name in results["model"]]
        further = ["word perplexity"] if "word_perplexity" in results["model"] else []
        table = _table(title, *(f"{WAYS[name]} (95 %)" for name in ways), *further)
        for name, row in results.items():
            shares = [_share(row[way]["accuracy"], row[way]["interval"]) for way in ways]
            if further:
                shares.append(f"{row['word_perplexity']:,.1f}")
            table.add_row(_shown(report, name), *shares)
    if report["chance"] is not None:
        first = [""] if "files" in report else []
        columns = len(table.columns) - 1 - len(first)
        table.add_row("chance", *first, *[f"{report['chance']:.1%}"] * columns)
    console.print(table)
    _print_accuracies_over(console, report)


def _table(title: str, *headings: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, padding=(0, 1, 0, 0))
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _shown(report: dict[str, Any], name: str) -> str:
    """The name of a row: that of the model for ``model`` and ``model, 4 shots``."""
    first, comma, rest = name.partition(",")
    return f"{report['model']}{comma}{rest}" if first == "model" else name


def _share(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.1%} ({100 * low:.1f}–{100 * high:.1f})"
