"""Embed: texts to a file of vectors, or to vectors one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.data.tables.labelled import Columns, Example, read_examples, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.inference.vectors import MadeFrom, check_suffix, open_vectors, writing_vectors
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.embed.texts import TextEmbedder
from llmctl.workspace.outputs import output_at


def texts_of(path: Path, requested: LabelledColumns, reporter: Reporter) -> Iterator[Example]:
    """The texts of a file, or of standard input, ``-``. Raises InputError or UsageError where its
    columns can't be told."""
    columns, reading = _columns(path, requested, reporter)
    return read_examples(path, columns, reading=reading)


def _columns(path: Path, requested: LabelledColumns, reporter: Reporter) -> tuple[Columns, Any]:
    reading = requested.read_options(reporter.note)
    if requested.text_pair_column is not None:
        raise UsageError(
            f"--text-pair-column {requested.text_pair_column}: each text has its own vector; name "
            "one column, or several to be joined, with --text-column"
        )
    columns = resolve_columns(
        path, text_column=requested.text_column, need_label=False, reading=reading
    )
    if columns.text_pair is not None:
        raise UsageError(
            f"{path} has two columns of texts ({columns.text[0]}, {columns.text_pair}): choose the "
            "one with --text-column"
        )
    return columns, reading


def write_vectors(
    embedder: TextEmbedder,
    path: Path,
    out: Path,
    requested: LabelledColumns,
    *,
    force: bool = False,
    reporter: Reporter,
) -> tuple[MadeFrom, int, bool]:
    """Vectors of all texts of a file; returns what they were made from, how many there are, and
    whether they were there already.

    Raises InputError for an empty text, and where the output can't be written.
    """
    check_suffix(out)
    target = output_at(out)
    if target.file is None:
        raise UsageError(f"--out {out} is no regular file; name one, or leave --out out for JSON")
    columns, reading = _columns(path, requested, reporter)
    from_file = str(path) != "-"
    made = MadeFrom(
        model=embedder.model.record.name,
        digest=embedder.folder.digest(),
        width=embedder.width,
        data=str(path.resolve()) if from_file else "-",
        data_digest=data_record(path).digest if from_file else "",
        columns=columns.describe(),
    )
    if out.is_file() and not force and made.data_digest:
        try:
            found = open_vectors(out)
        except InputError:
            found = None
        if found is not None and found.made == made:
            return made, found.rows, True
    count = 0
    with writing_vectors(target.file, made) as writer:
        for texts, vectors in embedder.blocks(read_examples(path, columns, reading=reading)):
            writer.add([text.text for text in texts], vectors)
            count += len(texts)
            reporter.progress("embedded", count, None)
        if not count:
            raise InputError(f"{path} has no texts")
    if embedder.cut:
        reporter.note(
            f"{embedder.cut:,} of {count:,} texts were longer than "
            f"{embedder.folder.max_length} tokens and were cut"
        )
    return made, count, False
