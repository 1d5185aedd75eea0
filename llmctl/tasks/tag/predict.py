"""Predict with a tagger: the entities of a text with their places, or a tag for each word.

Of all ways to tag a text's words that the scheme allows the likeliest is taken, by dynamic
programming (Viterbi 1967): an entity never goes on where none has begun.

W words, C tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.tables.encoded import pad_token
from llmctl.data.tables.labelled import Columns, Example, column_names, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.tables.tagged import (
    TOKEN_FIELDS,
    TaggedColumns,
    TaggedText,
    has_columns,
    read_tagged,
    words_in,
)
from llmctl.data.tables.tags import (
    LETTERS,
    OUTSIDE,
    Entity,
    Scheme,
    UnknownTags,
    entities,
    may_follow,
    scheme_of,
    spelt,
)
from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.files import is_table
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import SCHEME
from llmctl.models.heads.tag import Tagger
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.classify.predict import in_blocks
from llmctl.tasks.prediction import Predictor, softmax
from llmctl.tasks.tag.batches import collate
from llmctl.tasks.tag.windows import windows_of
from llmctl.training.distributed.processes import get_world

BATCH = 64
"""Windows computed together."""
TEXTS_SORTED = 256
"""Texts that are sorted by length among themselves."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaggedPart:
    """A word or an entity of a text."""

    begin: int
    end: int
    tag: str
    """The word's tag, or the entity's type."""
    probability: float
    """That of the tag; for an entity the least of its words'."""


@dataclass(frozen=True)
class Tagging:
    """What a tagger says of a text."""

    text: str
    parts: list[TaggedPart]
    spells: bool
    """Whether the parts are entities, or else words."""

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        name, kind = ("entities", "type") if self.spells else ("words", "tag")
        found = [
            {
                "text": self.text[part.begin : part.end],
                kind: part.tag,
                "start": part.begin,
                "end": part.end,
                "probability": part.probability,
            }
            for part in self.parts
        ]
        return {"text": self.text, name: found}

    def lines(self, top: int) -> Iterator[str]:
        """The text, and a line for each entity or word."""
        yield visible(self.text)
        for part in self.parts:
            said = visible(self.text[part.begin : part.end])
            yield f"  {part.begin}–{part.end}\t{visible(part.tag)}\t{part.probability:.1%}\t{said}"


@dataclass(frozen=True, slots=True)
class WordsExample(Example):
    """A text whose words are told."""

    words: tuple[tuple[int, int], ...]


class TagPredictor(Predictor):
    """A tagger that is ready for texts."""

    kinds = ("tag",)

    def of_file(
        self, path: Path, requested: LabelledColumns, reporter: Reporter | None = None
    ) -> Iterator[Example]:
        reporter = reporter or Reporter()
        if not has_columns(path) and not _has_tokens(path, requested, reporter):
            return super().of_file(path, requested, reporter)
        columns = TaggedColumns(
            text_column=requested.text_column,
            encoding=requested.encoding,
            encoding_errors=requested.encoding_errors,
        )
        texts, _ = read_tagged(path, columns, reporter, need_tags=False)
        return (WordsExample(t.text, None, None, t.source, t.words) for t in texts)

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """Those that are given, or an obvious one."""
        columns = resolve_columns(
            path,
            text_column=requested.text_column,
            text_pair_column=requested.text_pair_column,
            need_label=False,
            reading=reading,
        )
        if columns.text_pair:
            raise InputError(f"{path}: a tagger reads single texts; leave --text-pair-column out")
        if column_names(path, columns.text, reading):
            reporter.note(f"{path.name}: {columns.describe()}")
        return columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Tagging]:
        """The entities of each text, or the tags of its words."""
        model, scheme = self.folder.network().to(self.device), scheme_in(self.folder)

        def tagged(part: Iterable[Example], first: int) -> Iterator[Tagging]:
            for block in in_blocks(part, TEXTS_SORTED):
                texts = [_with_words(example) for example in block]
                found = tag_texts(model, self.folder, texts)
                for text, (tags, sure) in zip(texts, found, strict=True):
                    yield _tagging(text, tags, sure, scheme)

        yield from get_world().map_sharded(examples, tagged, block=TEXTS_SORTED, kind=Tagging)


def _has_tokens(path: Path, requested: LabelledColumns, reporter: Reporter) -> bool:
    """Whether a table has lists of words where its text would be."""
    if not is_table(path) or requested.text_column not in (None, *TOKEN_FIELDS):
        return False
    names = column_names(path, [], requested.read_options(reporter.note))
    return bool(set(TOKEN_FIELDS) & set(names)) and "text" not in names


def scheme_in(folder: Pretrained) -> Scheme:
    """How a tagger's tags spell entities. Raises InputError where its folder says none of ours;
    those of others are told by their tags."""
    scheme = folder.fields.get(SCHEME)
    if scheme is None:
        try:
            return scheme_of(folder.labels or [])
        except UnknownTags:
            return "plain"
    if scheme not in [*LETTERS, "plain"]:
        raise InputError(
            f"{folder.files[0]}: {SCHEME} is {scheme!r}, none of {', '.join(LETTERS)} and plain; "
            "copy it again from where the model was made"
        )
    return scheme


def _with_words(example: Example) -> TaggedText:
    told = isinstance(example, WordsExample)
    words = example.words if told else words_in(example.text)  # type: ignore[attr-defined]
    return TaggedText(example.text, words, None, example.source)


def _tagging(
    text: TaggedText, tags: Sequence[str], sure_W: Sequence[float], scheme: Scheme
) -> Tagging:
    found = (
        [Entity(n, n + 1, tag) for n, tag in enumerate(tags)]
        if scheme == "plain"
        else list(entities(tags))
    )
    parts = [
        TaggedPart(text.words[begin][0], text.words[end - 1][1], kind, min(sure_W[begin:end]))
        for begin, end, kind in found
    ]
    return Tagging(text.text, parts, scheme != "plain")


@torch.inference_mode()
def tag_texts(
    model: Tagger, folder: Pretrained, texts: Sequence[TaggedText]
) -> Iterator[tuple[list[str], list[float]]]:
    """The tags of each text's words, and how likely each is."""
    model.eval()
    device, pad = next(model.parameters()).device, pad_token(folder.tokenizer)
    windows = [
        (number, window)
        for number, text in enumerate(texts)
        for window in windows_of(folder.tokenizer, text, folder.max_length)
        if len(window.words)
    ]
    labels, scheme = folder.labels or [], scheme_in(folder)
    found = [np.full((len(text.words), len(labels)), np.nan) for text in texts]
    order = np.argsort([len(window.ids) for _, window in windows], kind="stable").tolist()
    for start in range(0, len(order), BATCH):
        chosen = [windows[n] for n in order[start : start + BATCH]]
        batch = collate([window for _, window in chosen], None, pad).to(device)
        logits_BTC = model(batch.input_ids_BT, batch.mask_BT)
        for (number, window), logits_TC in zip(chosen, logits_BTC, strict=True):
            found[number][window.words] = softmax(logits_TC[window.places].float()).cpu().numpy()
    for probabilities_WC in found:
        yield best_tags(probabilities_WC, labels, scheme)


def best_tags(
    probabilities_WC: Floats, labels: Sequence[str], scheme: Scheme
) -> tuple[list[str], list[float]]:
    """The likeliest tags that a scheme allows, and the probability of each. A word without
    probabilities (NaN) goes with the one before it."""
    told_W = np.asarray(np.isfinite(probabilities_WC).all(axis=1))
    told = np.flatnonzero(told_W)
    chosen = viterbi(np.log(probabilities_WC[told] + 1e-30), *transitions(tuple(labels), scheme))
    tags, sure = [labels[n] for n in chosen], probabilities_WC[told, chosen].tolist()
    if len(told) < len(told_W):
        nearest_W = np.maximum(np.searchsorted(told, np.arange(len(told_W)), side="right") - 1, 0)
        edges = [*told.tolist(), len(told_W)]
        sure = [sure[n] if len(told) else 0.0 for n in nearest_W]
        if scheme == "plain":
            tags = [tags[n] if len(told) else OUTSIDE for n in nearest_W]
        else:
            longer = (Entity(edges[b], edges[e], kind) for b, e, kind in entities(tags))
            tags = spelt(longer, len(told_W), scheme)
    return tags, sure


def transitions(
    labels: tuple[str, ...], scheme: Scheme
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tags (C,) may begin a text, (C, C) follow each, and (C,) end it."""
    return (
        np.array([may_follow(None, tag, scheme) for tag in labels]),
        np.array([[may_follow(before, tag, scheme) for tag in labels] for before in labels]),
        np.array([may_follow(tag, None, scheme) for tag in labels]),
    )


def viterbi(
    log_probs_WC: Floats,
    begins_C: NDArray[np.bool_],
    follows_CC: NDArray[np.bool_],
    ends_C: NDArray[np.bool_],
) -> list[int]:
    """The path of the highest summed log-probability among those that are allowed."""
    if not len(log_probs_WC):
        return []
    never = -1e9
    score_C = log_probs_WC[0] + np.where(begins_C, 0.0, never)
    step_CC = np.where(follows_CC, 0.0, never)
    back = []
    for row_C in log_probs_WC[1:]:
        total_CC = score_C[:, None] + step_CC
        back.append(total_CC.argmax(0))
        score_C = total_CC.max(0) + row_C
    path = [int((score_C + np.where(ends_C, 0.0, never)).argmax())]
    for from_C in reversed(back):
        path.append(int(from_C[path[-1]]))
    return path[::-1]
