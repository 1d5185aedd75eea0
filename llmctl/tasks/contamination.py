"""How much of a test a model has read in training: its shards, and the table it was finetuned on,
are run past the test (``llmctl.evaluation.contamination``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.data.shards.files import ShardReader
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.documents import Corpus
from llmctl.data.text.files import is_readable, is_table, split_columns
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError
from llmctl.evaluation.contamination import NGRAM_SIZES, ContaminationIndex, TextRow, WordHasher
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import InputRecord

PROGRESS_EVERY = 200
"""Documents between two looks at the progress."""


class TrainingTexts:
    """All that a run was trained on, and that is still here: shards, and tables of finetunings."""

    def __init__(self, workspace: Workspace, model: OpenedModel, option: str) -> None:
        """Raises InputError where the model says of no training text, or none of it is here."""
        if model.run is None:
            raise InputError(
                f"{option}: {model.name} is a folder, which does not say what it was trained on; "
                "give a run"
            )
        manifest = model.run.manifest
        records = [*manifest.inputs, *(record for _, record, _ in workspace.lineage(manifest))]
        self.shards: list[Artefact] = []
        self.tables: list[Path] = []
        self.missing: list[str] = []
        for record in {(one.role, one.name, one.digest): one for one in records}.values():
            if record.role == "shards":
                self._add_shards(workspace, record)
            elif record.role == "data" and record.artefact is None:
                self._add_table(record)
        if not self.shards and not self.tables:
            gone = f" ({'; '.join(self.missing)})" if self.missing else ""
            raise InputError(
                f"{option}: none of what {model.name} was trained on is here{gone}, so nothing can "
                "be told of what it has seen"
            )
        self.names = [one.manifest.reference for one in self.shards]
        self.names += [path.name for path in self.tables]

    def _add_shards(self, workspace: Workspace, record: InputRecord) -> None:
        try:
            shards = workspace.get("shards", record.name.partition("/")[2])
        except InputError:
            self.missing.append(f"{record.name} is gone")
            return
        if shards.manifest.digest != record.digest:
            self.missing.append(f"{record.name} has changed")
            return
        shards.verify("train")
        self.shards.append(shards)

    def _add_table(self, record: InputRecord) -> None:
        path = Path(record.name)
        if not path.is_file() or data_record(path).digest != record.digest:
            self.missing.append(f"{path.name} is gone or has changed")
        else:
            self.tables.append(path)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of the shards, if there are some."""
        return tokenizers.load(self.shards[0].folder / "tokenizer") if self.shards else None

    def documents(self, progress: Callable[[float, float], None]) -> Iterator[tuple[str, str]]:
        """(name, text) of all training documents. progress: is told of tokens or bytes read, and
        how many there are."""
        for shards in self.shards:
            tokenizer = tokenizers.load(shards.folder / "tokenizer")
            reader = ShardReader(shards.folder, "train")
            total, done = int(reader.document_lengths.sum()), 0
            for number in range(len(reader)):
                done += int(reader.document_lengths[number])
                ids = reader.tokens(number)
                yield (
                    f"{shards.manifest.reference} document {number:,}",
                    tokenizer.decode(ids.tolist()),
                )
                if number % PROGRESS_EVERY == 0:
                    progress(done, total)
            progress(total, total)
        for path in self.tables:
            for row in rows_of(path):
                yield row.source, "\n".join(row.texts)


def rows_of(
    path: Path,
    *,
    columns: str | tuple[str, ...] | None = None,
    unit: str = "auto",
    reading: ReadOptions = DEFAULT,
) -> Iterator[TextRow]:
    """The rows of a test: of tables all texts of a row, or those of some columns; of plain text the
    documents; of a folder those of its files.

    Raises InputError for a file without any, or without a column that is named.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and is_readable(file))
    wanted = split_columns(columns)
    for file in files:
        if not is_table(file):
            for document in Corpus([str(file)], unit=unit, reading=reading):
                yield TextRow(document.source, [document.text])
            continue
        reader = RowReader(file, requested=wanted, reading=reading)
        names = [reader.column("--text-column", name) for name in wanted]
        for row in reader:
            values = [row.values.get(name) for name in names] if names else row.values.values()
            texts = [text for value in values for text in texts_in(value)]
            if texts:
                yield TextRow(row.source, texts)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def find_overlap(
    training: TrainingTexts, rows: list[TextRow], reporter: Reporter, *, seed: int = 0
) -> dict[str, Any]:
    """What of a test stood in the training texts; see ``ContaminationIndex.results``.

    Texts of the test are encoded and decoded first: what a tokenizer does to capitals, accents and
    spaces is then alike on both sides.
    """
    tokenizer = training.tokenizer
    if tokenizer is not None:
        rows = [
            TextRow(row.source, [tokenizer.decode(tokenizer.encode(text)) for text in row.texts])
            for row in rows
        ]
    index = ContaminationIndex(rows, WordHasher(), seed=seed)
    progress = reporter.progress

    for name, text in training.documents(
        lambda done, total: progress("training tokens looked through", done, total)
    ):
        if tokenizer is not None and not name.startswith("shards/"):
            text = tokenizer.decode(tokenizer.encode(text))
        index.look(name, text)
    return {"trained_on": training.names, "missing": training.missing, **index.results()}


def sentence_of(found: dict[str, Any], model: str) -> str:
    """What was found, in a sentence for whoever reads another figure of the same test."""
    largest = found["ngrams"][str(NGRAM_SIZES[0])]
    near = found["near_duplicates"]
    share = "no row is that long" if largest["share"] is None else f"{largest['share']:.1%}"
    gone = f"; not looked at: {', '.join(found['missing'])}" if found["missing"] else ""
    return (
        f"of the {found['rows']:,} rows of this test {largest['count']:,} have {NGRAM_SIZES[0]} "
        f"words in a row of what {model} was trained on ({share}), and {near['count']:,} are near-"
        f"duplicates of a training document{gone}"
    )
