"""Measures every way of adapting one model to one labelled table, with few labels and with many.

python recipes/adapt.py MODEL DATA [RECIPE.toml] prints a table: a row for each method, a column for
each number of labels, accuracies over several seeds with intervals of 95 %; adapt.json, beside the
drawn tables, has all figures. The [finetune] table of RECIPE.toml lies over what is set here.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from llmctl.config import read_recipe
from llmctl.data.random import key_of
from llmctl.data.tables.labelled import Example, read_examples, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.errors import ConfigError, LlmctlError, UsageError
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.inference.templates import with_fields
from llmctl.reporting.charts import Band, check_chart, save_chart
from llmctl.reporting.report import ReportTable, render_report
from llmctl.reporting.units import figure
from llmctl.stages.predict import open_predictor
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import SCRATCH, resolve
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prompted import Asking
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.names import slug

CLOZES = (
    "Topic: {mask}. {text}",
    "{mask}: {text}",
    "{text} It is about {mask}.",
    "{text} ({mask})",
)
PROMPTS = ("{text}\\nTopic:", "Text: {text}\\nLabel:", "{text}\\nThis is about", "{text} It was")
SHOTS = 4
BATCH, EPOCHS, FEWEST_STEPS = 16, 20, 60
RESAMPLES = 1000


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    asks: tuple[str, ...] = ()
    """How it asks without training: ``shots``, ``calibrated`` and ``search``, or ``plain``."""
    finetune: dict[str, Any] | None = None
    """The fields of its finetuning; None: nothing is trained."""
    kinds: tuple[str, ...] = ("encoder", "decoder")
    scratch: bool = False


METHODS = (
    Method("asked", ("plain",)),
    Method("asked, calibrated", ("calibrated",)),
    Method("examples in the prompt", ("shots",)),
    Method("examples, calibrated", ("shots", "calibrated")),
    Method("prompt search", ("search",)),
    Method("cloze, trained", finetune={"task": "cloze"}, kinds=("encoder",)),
    Method("setfit", finetune={"task": "setfit"}),
    Method("soft prompt", finetune={"task": "classify", "method": "prompt"}),
    Method("prefix", finetune={"task": "classify", "method": "prefix"}),
    Method("lora", finetune={"task": "classify", "method": "lora"}),
    Method("last layers", finetune={"task": "classify", "method": "last-layers"}),
    Method("all weights", finetune={"task": "classify"}),
    Method("random weights", finetune={"task": "classify"}, scratch=True),
)


@dataclass(frozen=True)
class Cell:
    """What a method came to with so many labels."""

    method: str
    labels: int
    correct_SN: np.ndarray
    """Which test rows each seed got right."""
    trained: int
    """Weights that were trained."""
    seconds: float
    """On average over the seeds."""

    def record(self) -> dict[str, Any]:
        """The figures as JSON values."""
        seeds, rows = self.correct_SN.shape
        generator = np.random.default_rng(0)
        means = [
            self.correct_SN[generator.integers(0, seeds, seeds)][
                :, generator.integers(0, rows, rows)
            ].mean()
            for _ in range(RESAMPLES)
        ]
        return {
            "method": self.method,
            "labels": self.labels,
            "accuracy": float(self.correct_SN.mean()),
            "interval": list(percentile_interval(means)),
            "by_seed": self.correct_SN.mean(1).tolist(),
            "trained": self.trained,
            "seconds": self.seconds,
        }


class Adaptation:
    """One model and one task."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place = Workspace(options.workspace)
        self.model = OpenedModel.open(self.place, options.model)
        self.kind = self.model.folder.spec.kind
        self.folder = options.workspace / "tasks" / f"adapt-{slug(options.data.stem, 'data')}"
        self.recipe = read_recipe(options.recipe, "finetune") if options.recipe else {}
        self.rows, self.test = self._draw()
        labels = sorted({example.label or "" for example in (*self.rows, *self.test)})
        written = Asking(labels=options.labels or ",".join(labels)).labels
        if missing := [label for label in labels if label not in written]:
            raise UsageError(f"--labels says no word for {missing[0]}; {options.data} has it")
        self.words = written
        self.templates = self._templates()
        self.test_file = self._write("test", self.test)

    def _draw(self) -> tuple[list[Example], list[Example]]:
        """Rows to learn from, and others to test on: the same however many labels are asked for."""
        options = self.options
        columns = resolve_columns(
            options.data, text_column=options.text_column, label_column=options.label_column,
            need_label=True,
        )  # fmt: skip
        unique = {e.text: e for e in read_examples(options.data, columns) if e.text}
        rows = sorted(unique.values(), key=lambda example: key_of(example.text))
        test = min(options.test, len(rows) // 2)
        return rows[test:], rows[:test]

    def _write(self, name: str, rows: Sequence[Example]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text"])
            writer.writerows((example.label, example.text) for example in rows)
        return path

    def _templates(self) -> Path:
        if self.options.templates is not None:
            return Path(self.options.templates)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "templates.txt"
        path.write_text("\n".join(CLOZES if self.kind == "encoder" else PROMPTS) + "\n")
        return path

    def first_template(self) -> str:
        """The template that is taken where none is chosen."""
        if self.templates.suffix == ".toml":
            raise UsageError("--templates: give a text file with a template on each line")
        return with_fields(self.templates.read_text(encoding="utf-8").splitlines()[0])

    def labelled(self, count: int, seed: int) -> Path:
        """So many labelled rows, the classes in turn; fewer are the first of more."""
        ordered = sorted(self.rows, key=lambda example: key_of(seed, "adapt", example.text))
        of_class: dict[str, list[Example]] = {}
        for example in ordered:
            of_class.setdefault(example.label or "", []).append(example)
        turns = zip_longest(*(of_class[name] for name in sorted(of_class)))
        chosen = [example for turn in turns for example in turn if example is not None]
        return self._write(f"{count}-{seed}", chosen[:count])

    def cell(self, method: Method, count: int) -> Cell | None:
        """A cell of the table; None where the method has nothing to say there."""
        if self.kind not in method.kinds:
            return None
        if method.finetune is None:
            wants = {"shots", "search"} & {*method.asks}
            if bool(wants) != bool(count):  # what needs no labels is asked once
                return None
        elif not count:
            return None
        correct, seconds, trained = [], [], 0
        for seed in range(self.options.seeds if count else 1):
            labelled = self.labelled(count, seed) if count else None
            begun = time.perf_counter()
            if method.finetune is None:
                asking = self._asking(method, labelled)
                predictor = open_predictor(self.place, self.options.model, asking=asking)
                took = time.perf_counter() - begun
            else:
                assert labelled is not None
                run, summary = self._finetuned(method, labelled, count, seed)
                predictor = open_predictor(self.place, run)
                took, trained = summary["seconds"], summary["trainable_parameters"]
            examples = predictor.of_file(self.test_file, LabelledColumns())
            given: list[Any] = list(predictor.answers(examples))
            correct.append([a.label == e.label for a, e in zip(given, self.test, strict=True)])
            seconds.append(took)
        return Cell(method.name, count, np.array(correct), trained, float(np.mean(seconds)))

    def _asking(self, method: Method, labelled: Path | None) -> Asking:
        search = "search" in method.asks
        return Asking(
            template=None if search else self.first_template(),
            templates=self.templates if search else None,
            dev=labelled if search else None,
            labels=self.words,
            examples=labelled if "shots" in method.asks else None,
            shots=SHOTS if "shots" in method.asks else 0,
            score="pmi" if "calibrated" in method.asks else "plain",
        )

    def _finetuned(
        self, method: Method, labelled: Path, count: int, seed: int
    ) -> tuple[str, dict[str, Any]]:
        """The run of a finetuning, and its summary."""
        asked = dict(method.finetune or {})
        if asked["task"] == "cloze":
            asked |= {"template": self.first_template(), "labels": self.words}
        steps = max(FEWEST_STEPS, EPOCHS * count // BATCH)
        training = {"max_steps": steps, "batch_size": min(BATCH, count)}
        config = resolve(
            None,
            {**asked, "seed": seed, "data": {"validation": 0.0}, "training": training},
            self.recipe,
        )
        name = slug(f"adapt-{self.options.data.stem}-{method.name}-{count}-{seed}", "adapt")
        start = SCRATCH if method.scratch else self.options.model
        like = self.options.model if method.scratch else None
        run, _ = finetune(self.place, start, labelled, config, like=like, name=name)
        return name, run.manifest.summary

    def cells(self, say: Callable[[str], None]) -> Iterator[Cell]:
        """All cells of the table, as they are measured."""
        wanted = self.options.methods
        for method in METHODS:
            if wanted and method.name not in wanted:
                continue
            for count in self.options.sizes:
                if count > len(self.rows):
                    continue
                try:
                    cell = self.cell(method, count)
                except (
                    ConfigError,
                    UsageError,
                ) as error:  # not in this version, or not for the model
                    say(f"{method.name} left out: {error}")
                    break
                if cell is not None:
                    say(f"{method.name}, {count} labels: {cell.correct_SN.mean():.1%}")
                    yield cell


def table_of(records: Sequence[dict[str, Any]], sizes: Sequence[int], title: str) -> ReportTable:
    """The table: a row for each method, a column for each number of labels."""
    rows = []
    for name in dict.fromkeys(record["method"] for record in records):
        own = {record["labels"]: record for record in records if record["method"] == name}
        last = own[max(own)]
        cells = []
        for size in sizes:
            if size not in own:
                cells.append("–")
                continue
            low, high = own[size]["interval"]
            cells.append(f"{own[size]['accuracy']:.1%} ({100 * low:.0f}–{100 * high:.0f})")
        rows.append([name, *cells, f"{last['trained']:,}", figure(last["seconds"], ".1f")])
    headings = [*(f"{size} labels" for size in sizes), "trained", "seconds"]
    return ReportTable(title, headings, rows)


def bands_of(records: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[Band]:
    """A curve for each method."""
    bands = []
    for name in dict.fromkeys(record["method"] for record in records):
        own = sorted(
            (record for record in records if record["method"] == name),
            key=lambda record: record["labels"],
        )
        bands.append(
            Band(
                name,
                [sizes.index(record["labels"]) for record in own],
                [record["accuracy"] for record in own],
                [record["interval"][0] for record in own],
                [record["interval"][1] for record in own],
            )
        )
    return bands


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a run, or a model folder")
    parser.add_argument("data", type=Path, help="a labelled table")
    parser.add_argument("recipe", type=Path, nargs="?", help="a TOML file, of which [finetune]")
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--labels", help="how labels are written: 1=world,2=sports")
    parser.add_argument("--templates", help="a file of templates, one on each line")
    parser.add_argument("--sizes", type=numbers, default=[0, 8, 32, 128, 512])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=500, help="rows that are tested on")
    parser.add_argument("--methods", type=lambda text: text.split("+"), help="some, joined by +")
    parser.add_argument("--plot", type=Path, help="a picture: .svg, .pdf or .png")
    options = parser.parse_intermixed_args(words)
    options.workspace = Path(os.environ.get("LLMCTL_WORKSPACE", "workspace"))
    return options


def main() -> None:
    options = parsed(sys.argv[1:])
    try:
        if options.plot is not None:
            check_chart(options.plot)
        work = Adaptation(options)
        records = [cell.record() for cell in work.cells(lambda text: print(text, file=sys.stderr))]
    except LlmctlError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    (work.folder / "adapt.json").write_text(json.dumps(records, indent=1) + "\n")
    title = (
        f"{options.model} on {len(work.test):,} rows of {options.data.name}, {options.seeds} seeds"
    )
    Console(width=None if sys.stdout.isatty() else 200).print(
        render_report([table_of(records, options.sizes, title)])
    )
    if options.plot is not None:
        save_chart(
            options.plot, bands_of(records, options.sizes), list(map(str, options.sizes)),
            title=title, x="labels", y="accuracy (95 %)",
        )  # fmt: skip
        print(f"picture in {options.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
