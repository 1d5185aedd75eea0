"""What probes are learned from: words with tags, or texts with a label, as ids."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from llmctl.attribution.explained import ends_of, words_of_tokens
from llmctl.attribution.inside.passages import DocumentPart, own_places
from llmctl.attribution.inside.probe import ProbedText, ProbedTexts
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import LabelledColumns, read_labelled, resolve_labelled
from llmctl.data.tables.rows import RowReader
from llmctl.data.tables.tagged import (
    SPAN_FIELDS,
    TAG_FIELDS,
    TaggedColumns,
    TaggedText,
    has_columns,
    read_tagged,
    words_in,
)
from llmctl.data.text.files import STDIN, format_of, is_table
from llmctl.data.text.input_files import check_data
from llmctl.errors import InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.opened import OpenedModel


def has_tags(path: Path, columns: LabelledColumns) -> bool:
    """Whether a file has words with tags, or spans, rather than texts with a label each: columns as
    CoNLL has them, or lists in the fields of JSON."""
    if has_columns(path) or not is_table(path):
        return True
    if format_of(path) in (".csv", ".tsv"):
        return False
    row = next(iter(RowReader(path, reading=columns.read_options(lambda said: None))), None)
    names = [columns.label_column] if columns.label_column else (*TAG_FIELDS, *SPAN_FIELDS)
    return row is not None and any(isinstance(row.values.get(name), list) for name in names)


def labelled_texts(
    model: OpenedModel,
    path: Path,
    columns: LabelledColumns,
    length: int,
    most: int,
    reporter: Reporter,
) -> ProbedTexts:
    """The texts of a file with what is labelled in them, so many at most.

    length: tokens that the network reads. Raises InputError for a file without labels.
    """
    if path == STDIN:
        raise UsageError("--data -: labels are read from a file; give its name")
    check_data(path)
    if has_tags(path, columns):
        given = columns.model_dump(include=set(TaggedColumns.model_fields))
        tagged, _ = read_tagged(path, TaggedColumns(**given), reporter)
        found = list(_of_words(model, islice(tagged, most), length, reporter))
        return ProbedTexts(path.name, "words", found)
    reading = columns.read_options(reporter.note)
    chosen = resolve_labelled(path, columns, reading)
    if chosen.text_pair is not None:
        raise UsageError(
            f"{path} has two columns of texts ({chosen.text[0]}, {chosen.text_pair}), and single "
            "texts are probed: choose the one with --text-column"
        )
    examples = read_labelled(path, chosen, reporter, reading)
    found = list(_of_texts(model, examples[:most], length, reporter))
    return ProbedTexts(path.name, "texts", found)


def _around(model: OpenedModel, ids: list[int], length: int) -> DocumentPart:
    """A text with its special tokens, cut to what the network reads."""
    folder = model.folder
    before, after = folder.tokenizer.layout.before, folder.tokenizer.layout.after
    if folder.spec.kind == "decoder":
        after = ()
    ids = ids[: max(1, length - len(before) - len(after))]
    own = slice(len(before), len(before) + len(ids))
    return DocumentPart("", np.array([*before, *ids, *after], dtype=np.int64), own)


def _of_words(
    model: OpenedModel, texts: Iterator[TaggedText], length: int, reporter: Reporter
) -> Iterator[ProbedText]:
    """Words with the places of their pieces; those without a piece are left out."""
    left_out = total = 0
    for text in texts:
        pieces, begins = model.folder.tokenizer.encode_offsets(text.text)
        if not len(pieces):
            continue
        passage = _around(model, pieces.tolist(), length)
        starts = begins.tolist()
        word_N = words_of_tokens(text.words, starts, ends_of(starts, len(text.text)))
        word_N = word_N[: passage.own.stop - passage.own.start]
        present = [word for word in np.unique(word_N).tolist() if word >= 0]
        total, left_out = total + len(text.words), left_out + len(text.words) - len(present)
        if not present:
            continue
        tags = text.tags or ()
        yield ProbedText(
            passage.ids,
            [(np.flatnonzero(word_N == word) + passage.own.start).tolist() for word in present],
            [tags[word] for word in present],
            [text.word(word).lower() for word in present],
        )
    if left_out:
        reporter.note(
            f"{left_out:,} of {total:,} words are not probed: they have no piece of their own, or "
            f"stand behind the {length} tokens that {model.name} reads"
        )


def _of_texts(
    model: OpenedModel, examples: list[Example], length: int, reporter: Reporter
) -> Iterator[ProbedText]:
    """Texts as one labelled thing each."""
    is_decoder, cut = model.folder.spec.kind == "decoder", 0
    for example in examples:
        ids = model.folder.tokenizer.encode(example.text)
        words = words_in(example.text)
        if not len(ids) or not words:
            raise InputError(f"{example.source} has no word that could be probed; leave it out")
        passage = _around(model, list(ids), length)
        cut += passage.own.stop - passage.own.start < len(ids)
        own = own_places(passage, is_decoder=is_decoder)
        begin, end = words[0]
        yield ProbedText(
            passage.ids,
            [list(range(own.start, own.stop))],
            [example.label or ""],
            [example.text[begin:end].lower()],
        )
    if cut:
        reporter.note(f"{cut:,} texts are longer than the {length} tokens that are read of them")
