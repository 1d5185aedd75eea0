"""``llmctl predict``."""

from __future__ import annotations

import sys
from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.launch import data_parallel
from llmctl.cli.options import argument, flag, option
from llmctl.errors import UsageError

EXAMPLE = 'Example: llmctl predict --from reviews "I would buy it again"'


@guarded
def command(
    start: str = option(
        "A run, or a model folder.", "--from", default=..., autocompletion=artefact_names.RUNS
    ),
    texts: list[str] | None = argument("Texts; with none, or -, standard input is read."),
    data: Path | None = option("A file of texts (a line each, or a table), - for standard input."),
    text_column: str | None = options.TEXT_COLUMN,
    text_pair_column: str | None = options.TEXT_PAIR_COLUMN,
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    top: int = option("Classes or candidates shown.", default=5, min=1),
    template: str | None = options.ASKING_TEMPLATE,
    templates: Path | None = options.TEMPLATES,
    dev: Path | None = options.DEV,
    labels: str | None = options.LABEL_WORDS,
    shots: int | None = option("With a template: solved examples in a prompt.", show_default="0"),
    examples: Path | None = option("With --shots: labelled rows that they are drawn from."),
    score: str | None = options.SCORE,
    device: str | None = options.DEVICE,
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    workspace: Path = options.WORKSPACE,
    json: bool = flag("Print one JSON object a line.", "--json"),
) -> None:
    """Classify texts, by what a model has learned or by a template that asks it, or fill in the
    [MASK]s or sentinels of a text with a pretrained model."""
    asked = locals()
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, print_json
    from llmctl.data.tables.labelled_files import LabelledColumns
    from llmctl.data.text.sources import no_file
    from llmctl.stages.predict import open_predictor
    from llmctl.tasks.prompted import Asking

    if texts == ["-"]:
        texts, data = None, data or Path("-")
    if texts and data is not None:
        raise UsageError("give texts or --data, not both")
    if not texts and data is None and sys.stdin.isatty():
        raise UsageError('give texts, --data FILE or standard input: llmctl predict "a text"')
    if texts:
        _check_text(texts)
        named = {"--text-column": text_column, "--text-pair-column": text_pair_column}
        for option, column in named.items():
            if column is not None:
                raise UsageError(f"{option} {column} goes with --data FILE, a table")
    path = data or Path("-")
    if path.is_dir():
        raise no_file("--data", path)
    columns = options.configured(LabelledColumns, "predict", asked)
    asking = options.configured(Asking, "predict", asked)
    place, reporter = options.open_workspace(workspace), TerminalReporter()
    any_row = False
    with data_parallel(nproc, reads_stdin=not texts and str(path) == "-"):
        predictor = open_predictor(
            place, start, device=device or "auto", asking=asking, reporter=reporter
        )
        asked_of = predictor.alone(texts) if texts else predictor.of_file(path, columns, reporter)
        for answer in predictor.answers(asked_of, top=top, reporter=reporter):
            any_row = True
            if json:
                print_json(answer.record())
            else:
                sys.stdout.write("".join(f"{line}\n" for line in answer.lines(top)))
            sys.stdout.flush()
    if not any_row:
        raise UsageError("there was no text to predict for; give texts, --data or standard input")


def _check_text(texts: list[str]) -> None:
    """Raises UsageError for a text that isn't UTF-8: the shell hands over any bytes, and what is
    not UTF-8 comes as lone surrogates."""
    for number, text in enumerate(texts, 1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(
                f"text {number} is not UTF-8; convert it, or give it in a file with "
                "--encoding-errors replace"
            )
