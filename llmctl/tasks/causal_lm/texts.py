"""Running text to be scored: documents of shards or of a file, as each model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from llmctl.data.shards.encoding import encode_text
from llmctl.data.shards.files import ShardReader
from llmctl.data.text.documents import Corpus
from llmctl.errors import InputError
from llmctl.evaluation.perplexity import Passage, TokenIds
from llmctl.tasks.evaluation import no_validation
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Artefact

Read = Callable[[], Iterator["ScoredDocument"]]
"""Reads a text from its beginning each time."""


@dataclass(frozen=True)
class ScoredDocument:
    """A piece of the text that is measured on."""

    ids: TokenIds
    """By the tokenizer of the model that is measured, without special tokens."""
    text: str | None
    """None: the ids are all there is."""
    size: int
    """UTF-8 bytes."""
    source: str


def text_of_shards(shards: Artefact, tokenizer: Tokenizer) -> tuple[Read, int]:
    """The validation part of shards, and how many tokens it has to be scored. Raises InputError
    if it has no documents."""
    reader = ShardReader(shards.folder, "validation", tokenizer.vocab_size)
    if not len(reader):
        raise no_validation(shards, ", or give --data FILE")

    bytes_of = tokenizer.token_bytes

    def read() -> Iterator[ScoredDocument]:
        for number in range(len(reader)):
            ids = reader.tokens(number).astype(np.int64)
            source = f"{shards.manifest.reference}, validation document {number + 1}"
            yield ScoredDocument(ids, None, int(bytes_of[ids].sum()), source)

    return read, int(reader.document_lengths.sum()) + len(reader)


def text_of_corpus(corpus: Corpus, tokenizer: Tokenizer) -> Read:
    """The documents of a file."""

    def read() -> Iterator[ScoredDocument]:
        for document in corpus:
            ids = encode_text(tokenizer, document.text).astype(np.int64)
            yield ScoredDocument(ids, document.text, len(document.text.encode()), document.source)

    return read


def limited(documents: Iterable[ScoredDocument], limit: int | None) -> Iterator[ScoredDocument]:
    """Whole documents, until there are so many tokens."""
    tokens = 0
    for document in documents:
        yield document
        tokens += len(document.ids) + 1
        if limit is not None and tokens >= limit:
            return


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The token that stands for what the tokenizer doesn't know."""
    special = tokenizer.special
    # GPT-2's is what begins and ends a document too: its bytes know everything.
    around = {special.get("bos"), special.get("eos")}
    return special["unk"] if special.get("unk") not in {None, *around} else None


def passages(
    documents: Iterable[ScoredDocument], model: OpenedModel, tokenizer: Tokenizer
) -> Iterator[Passage]:
    """Documents as a model reads them; ``tokenizer``: whose ids they have."""
    around = model.folder.tokenizer.boundaries
    if around is None:
        raise InputError(
            f"the tokenizer of {model.name} has no tokens for a document's start and end, from "
            "which text is scored; use a model that has them"
        )
    start, end = (np.array([token]) for token in around)
    same = model.folder.tokenizer.digest() == tokenizer.digest()
    for document in documents:
        ids = document.ids if same else _again(document, tokenizer, model)
        yield Passage(np.concatenate((start, ids, end)), document.size)


def _again(document: ScoredDocument, tokenizer: Tokenizer, model: OpenedModel) -> TokenIds:
    """A document by another tokenizer. Raises InputError where its text can't be told."""
    text = document.text
    if text is None:
        text = tokenizer.decode(document.ids.tolist())
        if tokenizer.encode(text) != document.ids.tolist():
            raise InputError(
                f"{document.source}: {model.name} has another tokenizer, and the text can't be "
                "told from its tokens; give the text itself: --data FILE"
            )
    ids, _ = model.folder.tokenizer.encode_batch([text])
    return ids.astype(np.int64)
