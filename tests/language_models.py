"""What tests of evaluation share: options, data, and what transformers says of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.config import build
from llmctl.reporting.reporter import Reporter
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.workspace.artefacts import Workspace

WINDOW = 48
TRAINING = {"max_steps": 12, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"}
MODEL = {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "max_positions": WINDOW}
DATA = {"sequence_length": WINDOW, "eval_batches": 1000}

TEMPLATE = r"""
input = "{{ text }}: the"
separator = ". "
[verbalizer]
sea = "wide sea"
farm = "farm"
city = "city"
"""
LABELS = ["sea", "farm", "city"]
WRITTEN = [" wide sea", " farm", " city"]


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def measure(
    workspace: Workspace,
    start: str = "gpt",
    data: Path | None = None,
    *,
    template: Path | None = None,
    examples: Path | None = None,
    include: Path | None = None,
    compare: Sequence[str] = (),
    reporter: Reporter | None = None,
    **keys: Any,
) -> dict[str, Any]:
    files = Files(data, template, examples, include=include)
    config = build(EvaluateConfig, keys)
    report, _, up_to_date = prepare_evaluation(
        workspace, start, files, config, compare=compare, force=True, reporter=reporter
    ).run()
    assert not up_to_date
    document = report.document()
    assert json.loads(json.dumps(document)) == document
    return document


def of_text(theirs: Any, context: str, text: str) -> list[float]:
    """The log-probability of each token of a text behind a context, from the document's start."""
    tokenizer, log_probs = theirs
    ids = tokenizer(context + text)["input_ids"]
    first = len(tokenizer(context)["input_ids"])
    table = log_probs(ids[:-1])
    return [float(table[place - 1, ids[place]]) for place in range(first, len(ids))]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIRS = [
    ("the ship sails over the sea", "the ship over sails the sea"),
    ("hens lay eggs", "eggs hens lay the"),
    ("the baker opens the shop", "opens the baker the shop"),
]


def split(labelled_file: Path, folder: Path, count: int = 9) -> tuple[Path, Path]:
    """The first rows as questions, cut to a few words, and the others as examples."""
    header, *lines = labelled_file.read_text().splitlines()
    short = [" ".join(line.split()[:2]) for line in lines]
    asked, solved = folder / "asked.csv", folder / "solved.csv"
    asked.write_text("\n".join([header, *short[:count]]) + "\n")
    solved.write_text("\n".join([header, *short[count:]]) + "\n")
    return asked, solved
