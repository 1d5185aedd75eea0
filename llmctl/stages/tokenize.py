"""Tokenize: text files to a tokenizer and Arrow shards."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmctl import tokenizers
from llmctl.config import NOT_IDENTITY, ColumnName, Config
from llmctl.data.documents import Corpus
from llmctl.data.duplicates import SeenHashes, text_hash
from llmctl.data.encoding import BATCH_CHARACTERS, encode_in_order
from llmctl.data.shards import SPLITS, ShardWriter
from llmctl.errors import InputError, UsageError
from llmctl.stages.reporter import Reporter
from llmctl.tokenizers.base import Tokenizer
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
    """A kind to learn (wordpiece, bpe, unigram, sentencepiece-bpe, characters), or an existing one:
    a name in the workspace, a folder, a tokenizer.json, GPT-2's vocab.json, a .model, a .tiktoken,
    a vocab.txt."""
    vocab_size: int | None = Field(None, ge=8)
    """Unset: by the size of the corpus; characters are as many as it has."""
    cased: bool | None = None
    """Keep capitals and accents. Unset: a WordPiece to learn drops them, a vocab.txt tells."""
    split_pattern: Literal["gpt2", "gpt4"] | None = None
    """What a bpe to learn cuts text by before it merges bytes. Unset: gpt4, with fewer tokens for
    code and dialogue; digits come in groups of up to three."""
    validation: float = Field(0.02, ge=0, lt=1)
    """Share held out: of the documents, or with split = tail of the characters."""
    split: Literal["hash", "tail"] = "hash"
    """What is held out. hash: documents chosen by their hash, each text once. tail: the end of the
    corpus, to the character, with repeated documents and white space at their ends kept."""
    document: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What a document is in plain text; auto: a file, or pieces of a long one."""
    text_column: ColumnName | None = None
    """Where a table has its text."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What a byte that is not UTF-8 does: it is refused, or becomes U+FFFD."""
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
        keep_ends=config.split == "tail",
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
        for note in tokenizer.notes:
            reporter.note(note)
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
    if config.split_pattern is not None and given != "bpe":
        raise UsageError(f"split_pattern is for a bpe to learn, not for {given}; leave it out")
    if given in tokenizers.LEARNERS:
        if config.vocab_size is not None and given == "characters":
            raise UsageError(
                "--vocab-size is for pieces to learn: characters are as many as the corpus has; "
                "leave it out"
            )
        if config.cased is not None and given != "wordpiece":
            raise UsageError(
                f"--cased is for wordpiece: {given} always keeps capitals; leave it out"
            )
        return None
    if config.vocab_size is not None:
        raise UsageError(
            f"--vocab-size is for a tokenizer to learn, and {given} has its size; leave it out"
        )
    if given in workspace.names("tokenizer"):
        artefact = workspace.get("tokenizer", given)
        artefact.verify()
        tokenizer = tokenizers.load(artefact.folder, cased=config.cased)
        return tokenizer, artefact.as_input("tokenizer")
    path = Path(given)
    if not os.path.exists(path):  # unlike Path's, false for what can't be a name
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
        "split_pattern": config.split_pattern,
        "document": config.document,
        "text_column": config.text_column,
        "keep_ends": config.split == "tail",
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
    vocab_size = (
        None
        if config.tokenizer == "characters"
        else config.vocab_size or _default_vocabulary(corpus.total_bytes)
    )
    with workspace.publish(manifest) as (folder, summary):
        texts = _Texts(corpus, reporter)
        started = time.perf_counter()
        learned = tokenizers.learn(
            config.tokenizer,
            texts,
            vocab_size,
            cased=bool(config.cased),
            split_pattern=config.split_pattern,
            exact=config.vocab_size is not None,
        )
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
        # The high bits decide the split: by them a sample would be the validation documents.
        limit = self._share * 2.0**32
        for document in self._corpus:
            if self._share == 1.0 or text_hash(document.text) & 0xFFFFFFFF < limit:
                self._reporter.progress(
                    "learning the vocabulary", document.position, self._corpus.total_bytes
                )
                yield document.text


def _default_vocabulary(corpus_bytes: int) -> int:
    return next((n for most, n in VOCABULARY_STEPS if corpus_bytes <= most), LARGEST_VOCABULARY)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A text with its place in the order by which the corpus is split."""

    text: str
    place: int
    position: int
    """Bytes of the corpus read once its document is."""


class _ByHash:
    """Documents in the order of their hashes, each text once; ``limit`` is the share's."""

    def __init__(self, corpus: Corpus, share: float) -> None:
        self._corpus = corpus
        self.limit = round(share * 2**64)
        self.duplicates = 0

    def batches(self) -> Iterator[list[_Placed]]:
        seen = SeenHashes()
        self.duplicates = 0
        for group in _grouped((document.text, document.position) for document in self._corpus):
            hashes = np.array([text_hash(text) for text, _ in group], dtype=np.uint64)
            new = seen.add(hashes)
            self.duplicates += len(group) - int(np.count_nonzero(new))
            yield [
                _Placed(text, int(value), position)
                for (text, position), value, keep in zip(group, hashes, new, strict=True)
                if keep
            ]


class _ByTail:
    """Documents by how much of the corpus is left where they begin; the one in which the share
    begins is cut in two there, so that the first part is text[: int(n * (1 - share))]."""

    duplicates = 0

    def __init__(self, corpus: Corpus, share: float, reporter: Reporter) -> None:
        self._corpus = corpus
        self._characters = 0
        for document in corpus:
            self._characters += len(document.text)
            reporter.progress("counting characters", document.position, corpus.total_bytes)
        self._cut = int(self._characters * (1 - share))
        self.limit = self._characters - self._cut + 1

    def batches(self) -> Iterator[list[_Placed]]:
        begin = 0
        for group in _grouped(self._parts()):
            placed = []
            for text, position in group:
                placed.append(_Placed(text, self._characters - begin, position))
                begin += len(text)
            yield placed

    def _parts(self) -> Iterator[tuple[str, int]]:
        begin = 0
        for document in self._corpus:
            cut = self._cut - begin
            begin += len(document.text)
            if 0 < cut < len(document.text):
                yield document.text[:cut], document.position
                yield document.text[cut:], document.position
            else:
                yield document.text, document.position


def _write_shards(
    corpus: Corpus,
    target: Path,
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write both splits. In a corpus so small that one of them is empty, the document with the
    lowest place goes to validation or the one with the highest to train."""
    order: _ByHash | _ByTail = (
        _ByHash(corpus, config.validation)
        if config.split == "hash"
        else _ByTail(corpus, config.validation, reporter)
    )
    limit = order.limit
    summary, lowest, highest = _one_pass(corpus, order, target, tokenizer, config, limit, reporter)
    documents, held_out = summary["documents"], summary["validation_documents"]
    if not documents:
        raise InputError("the corpus has no tokens: its text is control characters alone")
    if held_out == documents:
        limit = highest
    elif config.validation and not held_out and documents > 1:
        limit = lowest + 1
    else:
        return summary
    for path in target.glob("*.arrow"):
        path.unlink()
    return _one_pass(corpus, order, target, tokenizer, config, limit, reporter)[0]


def _one_pass(
    corpus: Corpus,
    order: _ByHash | _ByTail,
    target: Path,
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    limit: int,
    reporter: Reporter,
) -> tuple[dict[str, Any], int, int]:
    """Write the documents whose place is below ``limit`` to validation, the others to train.

    Returns a summary, and the lowest and the highest place of a document that has tokens.
    """
    started = time.perf_counter()
    workers = config.workers or (_cores() if corpus.total_bytes >= WORTH_WORKERS else 1)
    # What was sent to be encoded, in order: each document's place, how far the corpus is, and the
    # bytes of text up to there (the corpus's may be compressed, or columns that aren't read).
    sent: deque[tuple[list[int], int, int]] = deque()
    totals = {"characters": 0, "bytes": 0}
    lowest, highest = 2**64, -1

    def batches() -> Iterable[list[str]]:
        for batch in order.batches():
            texts = [placed.text for placed in batch]
            totals["characters"] += sum(map(len, texts))
            totals["bytes"] += sum(len(text.encode()) for text in texts)
            if texts:
                sent.append(
                    ([placed.place for placed in batch], batch[-1].position, totals["bytes"])
                )
                yield texts

    words = unknown = 0
    with ExitStack() as cleanup:
        writers = {}
        for split in SPLITS:
            writer = ShardWriter(target, split, tokenizer.vocab_size, tokenizer.digest())
            cleanup.callback(writer.abandon)
            writers[split] = writer
        for encoded in encode_in_order(batches(), target / "tokenizer", workers):
            places, position, text_bytes = sent.popleft()
            for (ids, starts), place in zip(encoded.documents(), places, strict=True):
                if len(ids):
                    writers["validation" if place < limit else "train"].add(ids, starts)
                    lowest, highest = min(lowest, place), max(highest, place)
            words += encoded.words
            unknown += encoded.unknown
            seconds = time.perf_counter() - started
            reporter.progress(
                "tokenizing",
                position,
                corpus.total_bytes,
                f"{text_bytes / 1e6 / seconds:.1f} MB/s",
            )
        for writer in writers.values():
            writer.close()
    seconds = time.perf_counter() - started
    tokens = sum(writer.tokens for writer in writers.values())
    summary = {
        "documents": sum(writer.documents for writer in writers.values()),
        "tokens": tokens,
        "train_documents": writers["train"].documents,
        "train_tokens": writers["train"].tokens,
        "validation_documents": writers["validation"].documents,
        "validation_tokens": writers["validation"].tokens,
        "duplicates": order.duplicates,
        "characters": totals["characters"],
        "tokens_per_word": tokens / max(words, 1),
        "unknown_share": unknown / max(tokens, 1),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.kind,
        "tokenizer_digest": tokenizer.digest(),
        "seconds": round(seconds, 3),
        "megabytes_per_second": totals["bytes"] / 1e6 / seconds,
    }
    return summary, lowest, highest


def _cores() -> int:
    """Those that this process may use: a container or a batch job seldom has all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _grouped(texts: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Texts with their positions, in batches of work."""
    group: list[tuple[str, int]] = []
    size = 0
    for text, position in texts:
        group.append((text, position))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
