"""Tokenize: text files to a tokenizer and Arrow shards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmctl import tokenizers
from llmctl.config import NOT_IDENTITY, Config
from llmctl.data.documents import Corpus
from llmctl.data.duplicates import SeenHashes, text_hash
from llmctl.data.encoding import BATCH_CHARACTERS, encode_in_order
from llmctl.data.shards import SPLITS, ShardWriter
from llmctl.errors import InputError
from llmctl.stages.reporter import Reporter
from llmctl.tokenizers.base import Tokenizer, VocabularyError
from llmctl.workspace.artefacts import Artefact, InputRecord, Workspace, fingerprint, new_manifest

LEARN_BYTES = 1 << 29
"""A larger corpus is sampled, document by document, to learn the vocabulary from."""
WORTH_WORKERS = 4 << 20
"""A smaller corpus is done before worker processes have started."""
VOCABULARY_STEPS = ((1 << 20, 4000), (1 << 23, 8000), (1 << 27, 16000))
"""Corpus bytes up to which a vocabulary of this size is the default …"""
LARGEST_VOCABULARY = 30000
"""… and the default for all larger: about BERT's."""


class TokenizeConfig(Config):
    """What is made of a corpus."""

    tokenizer: str = "wordpiece"
    """A kind to learn (wordpiece, bpe, unigram), or an existing one: a name in the workspace, a
    tokenizer.json, a .model, a vocab.txt."""
    vocab_size: int | None = Field(None, ge=8)
    """Unset: by the size of the corpus."""
    cased: bool = False
    """WordPiece: keep capitals and accents."""
    validation: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out, chosen by their hash."""
    document: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What a document is in plain text; auto: a file, or pieces of a long one."""
    text_column: str | None = None
    """Where a table has its text."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    workers: int = Field(0, ge=0, json_schema_extra=NOT_IDENTITY)
    """Processes; 0: one for each core, or one alone for a small corpus."""


def tokenize(
    workspace: Workspace,
    sources: Sequence[str],
    config: TokenizeConfig,
    *,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """Make shards of the sources; returns them, and whether they were there already."""
    reporter = reporter or Reporter()
    corpus = Corpus(
        sources,
        text_column=config.text_column,
        encoding_errors=config.encoding_errors,
        unit=config.document,
    )
    inputs = [InputRecord(role="corpus", name=" ".join(sources), digest=corpus.digest())]
    existing = _existing_tokenizer(workspace, config)
    if existing is not None:
        inputs.append(existing[1])
    print_of_shards = fingerprint("tokenize", config.identity(), inputs)
    shards_name, found = workspace.match(
        "shards", name, corpus.suggested_name, print_of_shards, force=force
    )
    if found is not None:
        return found, True

    if existing is None:
        tokenizer_artefact = _learn(workspace, corpus, config, inputs, shards_name, force, reporter)
        made_from = [*inputs, tokenizer_artefact.as_input("tokenizer")]
        tokenizer = tokenizers.load(tokenizer_artefact.folder)
    else:
        tokenizer, _ = existing
        made_from = inputs
    manifest = new_manifest(
        "shards",
        shards_name,
        stage="tokenize",
        config=config.model_dump(mode="json"),
        identity=config.identity(),
        inputs=made_from,
        seed=None,
    ).model_copy(update={"fingerprint": print_of_shards})
    with workspace.publish(manifest) as (target, summary):
        # The shards carry their tokenizer: whoever has them can read them.
        tokenizer.save(target / "tokenizer")
        summary.update(_write_shards(corpus, target, tokenizer, config, reporter))
    return workspace.get("shards", shards_name), False


def _existing_tokenizer(
    workspace: Workspace, config: TokenizeConfig
) -> tuple[Tokenizer, InputRecord] | None:
    """The tokenizer that is to be used as it is, or None if one is to be learned."""
    given = config.tokenizer
    if given in tokenizers.LEARNERS:
        return None
    if given in workspace.names("tokenizer"):
        artefact = workspace.get("tokenizer", given)
        artefact.verify()
        return tokenizers.load(artefact.folder), artefact.as_input("tokenizer")
    path = Path(given)
    if not path.exists():
        known = [*tokenizers.LEARNERS, *workspace.names("tokenizer")]
        raise InputError(
            f"--tokenizer {given!r} is neither a kind nor a tokenizer of the workspace nor a file; "
            f"there are: {', '.join(known)}"
        )
    tokenizer = tokenizers.load(path, cased=config.cased)
    return tokenizer, InputRecord(role="tokenizer", name=path.name, digest=tokenizer.digest())


def _learn(
    workspace: Workspace,
    corpus: Corpus,
    config: TokenizeConfig,
    inputs: Sequence[InputRecord],
    shards_name: str,
    force: bool,
    reporter: Reporter,
) -> Artefact:
    identity = {
        "kind": config.tokenizer,
        "vocab_size": config.vocab_size,
        "cased": config.cased,
        "document": config.document,
        "text_column": config.text_column,
    }
    name, found = workspace.match(
        "tokenizer",
        shards_name if force else None,
        shards_name,
        fingerprint("tokenizer", identity, inputs),
        force=force,
    )
    if found is not None:
        return found
    manifest = new_manifest(
        "tokenizer",
        name,
        stage="tokenize",
        config=config.model_dump(mode="json"),
        identity=identity,
        inputs=inputs,
        seed=None,
    ).model_copy(update={"fingerprint": fingerprint("tokenizer", identity, inputs)})
    vocab_size = config.vocab_size or _default_vocabulary(corpus.total_bytes)
    with workspace.publish(manifest) as (folder, summary):
        texts = _Texts(corpus, reporter)
        started = time.perf_counter()
        try:
            learned = tokenizers.learn(config.tokenizer, texts, vocab_size, cased=config.cased)
        except VocabularyError as error:
            if config.vocab_size is not None:
                raise
            # The size was our choice, not the user's: take what the corpus has.
            learned = tokenizers.learn(config.tokenizer, texts, error.available, cased=config.cased)
        learned.save(folder)
        summary.update(
            kind=learned.kind,
            vocab_size=learned.vocab_size,
            seconds=round(time.perf_counter() - started, 3),
        )
    reporter.note(
        f"learned tokenizer {name}: {config.tokenizer}, {learned.vocab_size:,} pieces, in "
        f"{summary['seconds']:.1f} s"
    )
    return workspace.get("tokenizer", name)


class _Texts:
    """The corpus's texts to learn from: all of them, or a sample by hash of a large one."""

    def __init__(self, corpus: Corpus, reporter: Reporter) -> None:
        self._corpus, self._reporter = corpus, reporter
        self._share = min(1.0, LEARN_BYTES / max(corpus.total_bytes, 1))

    def __iter__(self) -> Iterator[str]:
        limit = self._share * 2.0**64
        for document in self._corpus:
            if self._share == 1.0 or text_hash(document.text) < limit:
                self._reporter.progress(
                    "learning the vocabulary", document.position, self._corpus.total_bytes
                )
                yield document.text


def _default_vocabulary(corpus_bytes: int) -> int:
    return next((n for most, n in VOCABULARY_STEPS if corpus_bytes <= most), LARGEST_VOCABULARY)


def _write_shards(
    corpus: Corpus,
    target: Path,
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write both splits. A corpus too small for its share of validation documents gives the one
    whose hash is lowest, so that there is something to validate on."""
    limit = round(config.validation * 2**64)
    summary = _one_pass(corpus, target, tokenizer, config, limit, reporter)
    lowest = summary.pop("lowest_hash")
    if config.validation and not summary["validation_documents"] and summary["documents"] > 1:
        for path in target.glob("*.arrow"):
            path.unlink()
        summary = _one_pass(corpus, target, tokenizer, config, lowest + 1, reporter)
        summary.pop("lowest_hash")
    if not summary["tokens"]:
        raise InputError("the corpus has no tokens: its text is control characters alone")
    return summary


def _one_pass(
    corpus: Corpus,
    target: Path,
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    limit: int,
    reporter: Reporter,
) -> dict[str, Any]:
    started = time.perf_counter()
    workers = config.workers or (
        (os.cpu_count() or 1) if corpus.total_bytes >= WORTH_WORKERS else 1
    )
    seen = SeenHashes()
    # What was sent to be encoded, in order: each document's split, and how far the corpus is.
    sent: list[tuple[list[bool], int]] = []
    totals = {"characters": 0, "duplicates": 0, "lowest": 2**64 - 1}

    def batches() -> Iterable[list[str]]:
        for group in _grouped(corpus):
            hashes = np.array([text_hash(text) for text, _ in group], dtype=np.uint64)
            new = seen.add(hashes)
            texts = [text for (text, _), keep in zip(group, new, strict=True) if keep]
            totals["duplicates"] += len(group) - len(texts)
            totals["characters"] += sum(map(len, texts))
            totals["lowest"] = min(totals["lowest"], int(hashes.min()))
            if texts:
                held_out = [int(value) < limit for value in hashes[new]]
                sent.append((held_out, group[-1][1]))
                yield texts

    words = unknown = 0
    with ExitStack() as cleanup:
        writers = {}
        for split in SPLITS:
            writer = ShardWriter(target, split, tokenizer.vocab_size, tokenizer.digest())
            cleanup.callback(writer.abandon)
            writers[split] = writer
        for encoded in encode_in_order(batches(), target / "tokenizer", workers):
            held_out, position = sent.pop(0)
            for (ids, starts), validation in zip(encoded.documents(), held_out, strict=True):
                if len(ids):
                    writers["validation" if validation else "train"].add(ids, starts)
            words += encoded.words
            unknown += encoded.unknown
            seconds = time.perf_counter() - started
            reporter.progress(
                "tokenizing",
                position,
                corpus.total_bytes,
                f"{position / 1e6 / seconds:.1f} MB/s",
            )
        for writer in writers.values():
            writer.close()
    seconds = time.perf_counter() - started
    tokens = sum(writer.tokens for writer in writers.values())
    return {
        "documents": sum(writer.documents for writer in writers.values()),
        "tokens": tokens,
        "train_documents": writers["train"].documents,
        "train_tokens": writers["train"].tokens,
        "validation_documents": writers["validation"].documents,
        "validation_tokens": writers["validation"].tokens,
        "duplicates": totals["duplicates"],
        "characters": totals["characters"],
        "tokens_per_word": tokens / max(words, 1),
        "unknown_share": unknown / max(tokens, 1),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.kind,
        "tokenizer_digest": tokenizer.digest(),
        "seconds": round(seconds, 3),
        "megabytes_per_second": corpus.total_bytes / 1e6 / seconds,
        "lowest_hash": totals["lowest"],
    }


def _grouped(corpus: Corpus) -> Iterator[list[tuple[str, int]]]:
    group: list[tuple[str, int]] = []
    size = 0
    for document in corpus:
        group.append((document.text, document.position))
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
