"""Inside: what happens in a network while it reads, by one of the ways of looking.

A way looks at one text or two, or at what ``--data`` names: texts, texts with labels, or documents,
those that a run was trained on by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.attribution.inside import VIEWS
from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.nearest import Nearest, SearchedDocuments
from llmctl.attribution.inside.passages import DocumentPart, Ids, evenly, passages_of
from llmctl.attribution.inside.translators import LensText
from llmctl.config import Config
from llmctl.data.shards.encoding import encode_text
from llmctl.data.shards.files import ShardReader
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.tables.tagged import words_in
from llmctl.data.text.documents import Corpus
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.inference.embedding import embed_ids
from llmctl.models.spec import Backbone
from llmctl.reporting.reporter import Reporter
from llmctl.stages.explain.probed import labelled_texts
from llmctl.stages.explain.words import open_explainer, texts_explained, texts_of_file
from llmctl.tasks.evaluation import shards_of, shards_record
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace

OWN_SHARDS = "shards"
"""What ``--data`` takes for those that a run was trained on."""
TEXTS_LOOKED_AT = {"texts": 20, "labels": 2000, "documents": 2000}
"""Texts of ``--data``, unless more or fewer are asked for: each is read once, but where heads are
left out one by one."""
LENS_TOKENS = 256
"""Tokens of a passage that a lens is tuned on, if the model takes as many."""
LENS_STEPS = 200


class LookedAt(Config):
    """What is looked at, beside texts."""

    data: str | None = None
    """A file, or ``shards``: those that the run was trained on."""
    limit: int | None = None
    """Texts or documents of it at most."""
    steps: int | None = None
    """Steps of tuning a lens."""
    lens: Path | None = None
    """A file that a tuned lens is kept in."""


def way_named(name: str, num_texts: int, looked_at: LookedAt = LookedAt()) -> Way:  # noqa: B008
    """A way of looking inside. Raises UsageError for an unknown one, or one that looks at another
    number of texts, or at no data."""
    if name not in VIEWS:
        raise UsageError(
            f"--inside {name}: there is no such view{did_you_mean(name, VIEWS)}; choose from "
            f"{', '.join(VIEWS)}"
        )
    way = VIEWS[name]()
    expected, given = way.num_texts, looked_at.data is not None
    if given and way.takes == "none":
        able = [view.name for view in VIEWS.values() if view.takes != "none"]
        raise UsageError(
            f"--inside {name} takes no --data; leave it out, or choose from {', '.join(able)}"
        )
    if way.takes == "labels" and (not given or looked_at.data == OWN_SHARDS):
        raise UsageError(
            f"--inside {name} reads what is labelled; give --data FILE: words with tags, or texts "
            "with a label"
        )
    if given and way.takes == "texts":
        if looked_at.data == OWN_SHARDS:
            raise UsageError(f"--inside {name} looks at texts one by one; give --data FILE")
        expected = 0
    if num_texts != expected:
        asked = ("no text", "one text", "two texts")[expected]
        beside = " beside --data" if given else ""
        raise UsageError(f"--inside {name} looks at {asked}{beside}, and {num_texts} were given")
    for option, value in (("--steps", looked_at.steps), ("--lens", looked_at.lens)):
        if value is not None and name != "tuned-lens":
            raise UsageError(f"{option} goes with --inside tuned-lens; leave it out")
    return way


@dataclass(frozen=True)
class _Looked:
    """A model that is looked into."""

    workspace: Workspace
    model: OpenedModel
    looked_at: LookedAt
    columns: LabelledColumns
    reporter: Reporter

    @property
    def length(self) -> int:
        """Tokens of a text that the network reads."""
        folder = self.model.folder
        return min(folder.max_source, folder.max_length, folder.longest_text)

    def most(self, kind: str) -> int:
        """Texts that are looked at."""
        return self.looked_at.limit or TEXTS_LOOKED_AT[kind]

    def passages(self, length: int) -> tuple[str, list[DocumentPart]]:
        """Documents to look at, cut to a length, and what they are called.

        Raises UsageError or InputError where there are none.
        """
        tokenizer, folder = self.model.folder.tokenizer, self.model.folder
        data, most = self.looked_at.data, self.most("documents")
        if data in (None, OWN_SHARDS):
            source, documents, total = self._of_shards(most)
        else:
            source = str(data)
            # A line each, as every other file of texts that is explained.
            corpus = Corpus([source], text_column=self.columns.text_column, unit="line")
            for note in corpus.notes:
                self.reporter.note(note)
            texts = [document.text for document in corpus]
            total = len(texts)
            documents = (
                (f"document {n + 1}", encode_text(tokenizer, texts[n]).astype(np.int64))
                for n in evenly(total, most)
            )
        closed = folder.spec.kind != "decoder"
        found = list(passages_of(documents, tokenizer, length, closed=closed))
        if not found:
            raise InputError(f"{source} has no text to look at; give another with --data")
        if total > most:
            self.reporter.note(
                f"of {total:,} documents of {source} {most:,} are looked at, evenly chosen; more "
                "with --limit"
            )
        return source, found

    def _of_shards(self, most: int) -> tuple[str, Iterator[tuple[str, Ids]], int]:
        run, name = self.model.run, self.model.name
        if run is None or shards_record(self.workspace, run.manifest) is None:
            raise UsageError(
                f"{name} is a model whose shards are not known; give the text, --data FILE"
            )
        shards = shards_of(self.workspace, run.manifest)
        shards.verify("train")
        vocab_size = self.model.folder.tokenizer.vocab_size
        reader = ShardReader(shards.folder, "train", vocab_size)
        documents = (
            (f"document {n + 1}", reader.tokens(n).astype(np.int64))
            for n in evenly(len(reader), most)
        )
        return f"shards {shards.manifest.name}", documents, len(reader)


def look_inside(
    workspace: Workspace,
    start: str,
    way: Way,
    texts: Sequence[str],
    asked: ExplainedAnswer,
    *,
    text_pair: str | None = None,
    looked_at: LookedAt = LookedAt(),  # noqa: B008
    columns: LabelledColumns = LabelledColumns(),  # noqa: B008
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Insight:
    """What happens in a network while it reads. Raises InputError or UsageError for texts, data or
    a network with which it can't be seen."""
    reporter = reporter or Reporter()
    if way.of_answer:
        explainer = open_explainer(workspace, start, asked, device=device)
        model, network, tokenizer = explainer.model, explainer.network, explainer.tokenizer
        body = _one_stack(model.name, network)
        looked = _Looked(workspace, model, looked_at, columns, reporter)
        examples = _examples(texts, text_pair)
        of_file = way.takes == "texts" and looked_at.data is not None
        if of_file:
            examples = texts_of_file(explainer, Path(str(looked_at.data)), columns, reporter)
            examples = islice(examples, looked.most("texts"))
        explained = list(texts_explained(explainer, examples, reporter if of_file else None))
        if not explained and (texts or looked_at.data is not None):
            raise InputError(f"{looked_at.data} has no texts to look at; give another file")
    else:
        model = OpenedModel.open(workspace, start)
        _check_readable(model, asked, text_pair)
        looked = _Looked(workspace, model, looked_at, columns, reporter)
        body, explained = model.folder.backbone(dropout=0.0), []
        body = body.to(choose_device(device, "--device")).eval()
        network, tokenizer = body, model.folder.tokenizer
    data = _data_of(way, looked, texts)
    subject = Subject(model.name, network, body, tokenizer, explained, data, reporter.progress)
    return way.look(subject)


def _examples(texts: Sequence[str], text_pair: str | None) -> Iterator[Example]:
    for number, text in enumerate(texts, 1):
        yield Example(text, text_pair, None, f"text {number}")


def _one_stack(name: str, network: Any) -> Backbone:
    """The backbone of a network that has one alone."""
    body = getattr(network, "body", None)
    if not isinstance(body, Backbone):
        raise InputError(
            f"{name} has two networks, and one is looked into; give an encoder or a language model"
        )
    if body.kind == "encoder-decoder":
        raise InputError(
            f"{name} has an encoder and a decoder, and this way looks at networks of one stack; "
            "give an encoder or a language model, or look by probe or nearest, which look at the "
            "encoder"
        )
    return body


def _check_readable(model: OpenedModel, asked: ExplainedAnswer, text_pair: str | None) -> None:
    """Raises InputError for a model without a network that could be read, UsageError for an
    answer, which isn't looked at."""
    for name, value in {**asked.model_dump(), "text-pair": text_pair}.items():
        if value is not None:
            raise UsageError(f"--{name} is not for a way that looks at no answer; leave it out")
    if model.folder.architecture is None:
        raise InputError(
            f"{model.name} is {model.described}: it has no layers to look into; give a network"
        )
    if model.folder.virtual is not None:
        raise InputError(
            f"{model.name} has virtual tokens before each text, which are no part of it; take a "
            "model that was finetuned by another method"
        )


def _data_of(way: Way, looked: _Looked, texts: Sequence[str]) -> Any:
    """What a way looks at beside explained texts."""
    at = looked.looked_at
    if way.takes == "labels":
        return labelled_texts(
            looked.model, Path(str(at.data)), looked.columns, looked.length, looked.most("labels"),
            looked.reporter,
        )  # fmt: skip
    if way.takes != "documents":
        return None
    if way.name != Nearest.name:
        digest = looked.model.folder.digest()
        if at.lens is not None and at.lens.is_file():
            return LensText("", [], 0, at.lens, digest)
        if at.lens is not None and at.lens.is_dir():
            raise InputError(f"--lens {at.lens} is a folder; name a file in it")
        if at.lens is not None and not at.lens.parent.is_dir():
            raise InputError(f"--lens {at.lens}: there is no folder {at.lens.parent}; make it")
        source, passages = looked.passages(min(LENS_TOKENS, looked.length))
        return LensText(source, passages, at.steps or LENS_STEPS, at.lens, digest)
    return _searched(looked, texts[0])


def _searched(looked: _Looked, text: str) -> SearchedDocuments:
    """A text, and the documents among which its nearest are looked for."""
    folder = looked.model.folder
    ids = encode_text(folder.tokenizer, text).astype(np.int64)
    closed = folder.spec.kind != "decoder"
    query = list(passages_of([("text 1", ids)], folder.tokenizer, looked.length, closed=closed))
    if not query or not words_in(text):
        raise InputError("text 1 has no word that could be looked for; write some")
    if len(query) > 1:
        raise InputError(
            f"text 1 has {len(ids)} tokens and {looked.model.name} reads {looked.length} at once; "
            "shorten it"
        )
    source, passages = looked.passages(looked.length)
    embed: Callable[[Sequence[Ids]], Any] | None = None
    if looked.model.kind == "embed":
        network = folder.embedder().eval()
        pad = folder.tokenizer.special.get("pad", 0)

        def embed(texts: Sequence[Ids]) -> Any:
            return embed_ids(network, texts, pad)

    return SearchedDocuments(text, query[0], source, passages, embed)
