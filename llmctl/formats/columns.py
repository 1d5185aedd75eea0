"""Which columns of a file a finetuned model reads.

A finetuned model keeps the columns that it was trained on, those that were guessed too. Whatever
reads a file for it later (predict, eval, generate --source, a comparison) finds them here: an
option wins, then come the columns of the training where the file has them, then the obvious ones.
What was taken is said, and a model of pairs is never given single texts, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.data.tables.labelled import Columns, column_names, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.tables.parallel_text import (
    PairColumns,
    pair_column_names,
    resolve_pair_columns,
)
from llmctl.data.text.decoding import DEFAULT, ReadConfig, ReadOptions
from llmctl.data.text.files import split_columns
from llmctl.errors import UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import COLUMNS
from llmctl.workspace.artefacts import Artefact

Note = Callable[[str], None]


@dataclass(frozen=True)
class Finetuned:
    """A finetuned model, as far as its columns matter."""

    name: str
    """The name as it was given."""
    folder: Pretrained
    run: Artefact | None
    """The run that it is of, if it isn't a mere folder."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the finetuning was told about its data; nothing for a mere folder."""
        return self.run.manifest.config.get("data", {}) if self.run else {}

    @property
    def read_config(self) -> ReadConfig:
        """How the finetuning read its data."""
        fields = ReadConfig.model_fields
        return ReadConfig(**{name: self.options[name] for name in fields if name in self.options})

    @property
    def labelled(self) -> Columns | None:
        """The columns that a classifier was trained on, if it says so.

        Earlier versions kept only those that were named.
        """
        kept = self._kept("text", list)
        if kept is not None:
            return Columns(
                tuple(kept["text"]),
                kept.get("text_pair"),
                kept.get("label"),
                kept.get("separator"),
            )
        named = split_columns(self.options.get("text_column"))
        if not named:
            return None
        return Columns(
            named, self.options.get("text_pair_column"), self.options.get("label_column")
        )

    @property
    def pair(self) -> PairColumns | None:
        """The columns that a model was trained to write one from the other of, if it says so."""
        kept = self._kept("source", str)
        if kept is not None:
            return PairColumns(kept["source"], kept.get("target"))
        source = self.options.get("source_column")
        return None if source is None else PairColumns(source, self.options.get("target_column"))

    def _kept(self, part: str, kind: type) -> dict[str, Any] | None:
        """What config.json says of the columns; None where it doesn't, or not of such ones.

        kind: of what stands at ``part``, of which there must be something.
        """
        kept = self.folder.fields.get(COLUMNS)
        if not isinstance(kept, dict) or not kept.get(part) or not isinstance(kept[part], kind):
            return None
        others = [value for name, value in kept.items() if name != part and value is not None]
        return kept if all(isinstance(name, str) for name in (*kept[part], *others)) else None


def labelled_record(columns: Columns) -> dict[str, Any]:
    """The columns of a classifier's training, to be kept with the model."""
    several = {} if columns.separator is None else {"separator": columns.separator}
    return {
        "text": list(columns.text),
        "text_pair": columns.text_pair,
        "label": columns.label,
        **several,
    }


def pair_record(columns: PairColumns) -> dict[str, Any]:
    """The columns of a training on pairs, to be kept with the model."""
    return {"source": columns.source, "target": columns.target}


def labelled_columns(
    model: Finetuned,
    path: Path,
    requested: LabelledColumns,
    *,
    need_label: bool,
    reading: ReadOptions = DEFAULT,
    note: Note,
) -> Columns:
    """The columns that a classifier reads a file by.

    requested: the options, each of which wins. note: is told what was taken. Raises InputError for
    a column that isn't there, UsageError where several would do, and where the model was trained on
    pairs and the file gives single texts, or the other way round.
    """
    text = split_columns(requested.text_column)
    pair, label = requested.text_pair_column, requested.label_column
    asked, trained, missing = bool(text or pair), model.labelled, list[str]()
    known = (*trained.text, trained.text_pair, trained.label) if trained else ()
    wanted = [name for name in (*text, pair, label, *known) if name]
    names = column_names(path, wanted, reading)
    if trained is not None and names:  # plain text has no columns
        trained = Columns(
            tuple(_as_there(name, names) for name in trained.text),
            trained.text_pair and _as_there(trained.text_pair, names),
            trained.label and _as_there(trained.label, names),
            trained.separator,
        )
        needed = () if text else trained.text
        second = trained.text_pair if pair is None else None
        missing = [name for name in (*needed, second) if name and name not in names]
        if not missing:
            text, pair = text or trained.text, pair or second
        if need_label and label is None and trained.label in names:
            label = trained.label if trained.label not in (*text, pair) else None
    columns = resolve_columns(
        path,
        text_column=text or None,
        text_pair_column=pair,
        label_column=label,
        need_label=need_label,
        reading=reading,
    )
    columns = replace(columns, separator=trained.separator if trained else None)
    if trained is not None:
        _check_pair(model.name, path, columns, trained, requested)
    if not names:
        return columns
    if trained is None:
        note(
            f"{path.name}: {columns.describe()} ({model.name} does not say which columns it was "
            "trained on)"
        )
    elif missing and not asked:
        note(
            f"{path.name} has no column {' or '.join(missing)}, which {model.name} was trained on: "
            f"{columns.describe()}"
        )
    else:
        same = (columns.text, columns.text_pair) == (trained.text, trained.text_pair)
        note(f"{path.name}: {columns.describe()}{', as in training' if same else ''}")
        if need_label and trained.label and columns.label != trained.label:
            note(f"{model.name} was trained on labels from {trained.label}")
    return columns


def _as_there(wanted: str, names: Sequence[str]) -> str:
    """How a file writes a column's name: as in training, or in other capitals if no other is
    alike."""
    alike = [name for name in names if name.lower() == wanted.lower()]
    return alike[0] if wanted not in names and len(alike) == 1 else wanted


def _check_pair(
    name: str, path: Path, columns: Columns, trained: Columns, requested: LabelledColumns
) -> None:
    """Raises UsageError where a model of pairs would read single texts, or one of single texts
    pairs."""
    shown = "standard input" if str(path) == "-" else path
    if trained.text_pair and not columns.text_pair:
        raise UsageError(
            f"{name} was trained on pairs of texts ({' + '.join(trained.text)} with "
            f"{trained.text_pair}), and {shown} gives single ones ({columns.describe()}); give a "
            "table with both, naming them with --text-column and --text-pair-column"
        )
    if columns.text_pair and not trained.text_pair:
        how = (
            f"leave --text-pair-column {requested.text_pair_column} out"
            if requested.text_pair_column
            else "choose one with --text-column"
        )
        raise UsageError(
            f"{name} was trained on single texts ({' + '.join(trained.text)}), and {shown} gives "
            f"pairs ({columns.describe()}); {how}, or join columns to one text with --text-column "
            f"{','.join((*columns.text, columns.text_pair))}"
        )


def check_pairs_alike(
    model: Finetuned, path: Path, columns: Columns, requested: LabelledColumns
) -> None:
    """Raises UsageError where a model of pairs would read single texts, or one of single texts
    pairs."""
    if (trained := model.labelled) is not None:
        _check_pair(model.name, path, columns, trained, requested)


def check_single(model: Finetuned) -> None:
    """Raises UsageError if a model of pairs is given texts that stand alone."""
    trained = model.labelled
    if trained is not None and trained.text_pair:
        raise UsageError(
            f"{model.name} was trained on pairs of texts ({' + '.join(trained.text)} with "
            f"{trained.text_pair}), and one text alone is none; give a table with both columns, "
            "--data FILE"
        )


def pair_columns(
    model: Finetuned,
    path: Path,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    need_target: bool = True,
    reading: ReadOptions = DEFAULT,
    note: Note,
) -> PairColumns | None:
    """The columns that a model which writes from sources reads a table by; None for plain text.

    An option wins. note: is told what was taken. Raises InputError for a column that isn't there,
    UsageError where several would do.
    """
    trained, missing = model.pair, list[str]()
    source, target = source_column, target_column
    wanted = [source, target, *((trained.source, trained.target) if trained else ())]
    names = pair_column_names(path, [name for name in wanted if name], reading)
    if trained is not None and names:
        target_there = trained.target and _as_there(trained.target, names)
        trained = PairColumns(_as_there(trained.source, names), target_there)
        if source is None and trained.source != target:
            missing += [] if trained.source in names else [trained.source]
            source = trained.source if trained.source in names else None
        if need_target and target is None and trained.target not in (None, source):
            missing += [] if trained.target in names else [str(trained.target)]
            target = trained.target if trained.target in names else None
    columns = resolve_pair_columns(
        path,
        source_column=source,
        target_column=target,
        need_target=need_target,
        reading=reading,
    )
    if columns is None:
        return None
    if trained is None:
        why = f" ({model.name} does not say which columns it was trained on)"
        note(f"{path.name}: {columns.describe()}{why}")
    elif missing:
        note(
            f"{path.name} has no column {' or '.join(missing)}, which {model.name} was trained on: "
            f"{columns.describe()}"
        )
    else:
        same = columns.source == trained.source and columns.target in (None, trained.target)
        note(f"{path.name}: {columns.describe()}{', as in training' if same else ''}")
    return columns
