"""Tokenize: text files to a tokenizer and Arrow shards."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from llmctl import tokenizers
from llmctl.config import NOT_IDENTITY, ColumnName
from llmctl.data.text.decoding import ReadConfig
from llmctl.data.text.documents import Corpus, CorpusPart
from llmctl.data.text.hashing import text_hash
from llmctl.errors import InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize.shards import (
    ByHash,
    ByTail,
    FromText,
    TokenizerSummary,
    count_characters,
    note_split,
    write_shards,
)
from llmctl.tokenizers.additional import MOST_SENTINELS, with_additional
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.marks import marks_taken, takes_marks
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, new_manifest
from llmctl.workspace.parts import PartsFolder

LEARN_BYTES = 1 << 29
"""A larger corpus is sampled, document by document, to learn the vocabulary from."""
MARKS_SAMPLE = 1 << 20
"""Characters looked at for marks that a tokenizer takes away."""
VOCABULARY_STEPS = ((1 << 20, 4000), (1 << 23, 8000), (1 << 27, 16000))
"""Corpus bytes up to which a vocabulary of this size is the default."""
LARGEST_VOCABULARY = 30000
"""The default vocabulary of all larger corpora: about BERT's."""


class TokenizeConfig(ReadConfig):
    """What is made of a corpus."""

    tokenizer: str = "wordpiece"
    """A kind to learn (wordpiece, bpe, unigram, sentencepiece-bpe, characters), or an existing one:
    a name in the workspace, a folder, a tokenizer.json, GPT-2's vocab.json, a .model, a .tiktoken,
    a vocab.txt."""
    vocab_size: int | None = Field(None, ge=8, le=1 << 24)
    """Pieces to learn. Unset: by the size of the corpus; characters are as many as it has."""
    cased: bool | None = None
    """Keep capitals and accents. Unset: a WordPiece to learn drops them, a vocab.txt tells."""
    split_pattern: Literal["gpt2", "gpt4"] | None = None
    """What a bpe to learn cuts text by before it merges bytes. Unset: gpt4, with fewer tokens for
    code and dialogue; digits come in groups of up to three."""
    sentinels: int = Field(0, ge=0, le=MOST_SENTINELS)
    """Sentinels (<extra_id_0>, …) that the tokenizer gets beside its pieces, for the noise of a T5;
    T5 has 100."""
    fim: bool = False
    """Whether the tokenizer gets the tokens of fill-in-the-middle beside its pieces."""
    validation: float = Field(0.02, ge=0, lt=1)
    """Share held out: of the documents, or with split = tail of the characters."""
    split: Literal["hash", "tail"] = "hash"
    """What is held out. hash: documents chosen by their hash, each text once. tail: the end of the
    corpus, to the character, with repeated documents and white space at their ends kept."""
    document: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What a document is in plain text; auto: a file, or pieces of a long one."""
    text_column: ColumnName | None = None
    """Column of a table that holds the text; several are written a,b."""
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
    corpus = open_corpus(sources, config, reporter)
    existing = existing_tokenizer(workspace, config)
    inputs = corpus_inputs(corpus, sources, existing)
    identity = Identity.of("tokenize", config, inputs)
    shards_name, finished = workspace.match(
        "shards", name, corpus.suggested_name, identity, force=force
    )
    if finished is not None:
        return finished, True

    tokenizer, made_from = tokenizer_for(
        workspace, corpus, config, inputs, shards_name, existing, force, reporter
    )
    manifest = new_manifest(
        "shards",
        shards_name,
        stage="tokenize",
        config=config.model_dump(mode="json"),
        identity=identity,
        inputs=made_from,
    )
    with workspace.publish(manifest) as (target, summary):
        # The shards carry their tokenizer: whoever has them can read them.
        tokenizer.save(target / "tokenizer")
        vocabulary = TokenizerSummary.of(tokenizer)
        order = (
            ByHash(corpus, config.validation)
            if config.split == "hash"
            else ByTail(corpus, config.validation, sum(count_characters(corpus, 1, reporter)))
        )
        source = FromText(order, target / "tokenizer", config.workers, corpus.total_bytes)
        summary.update(write_shards(source, target, vocabulary, config.validation, reporter))
    if str(corpus.plain):
        reporter.note(str(corpus.plain))
    if config.split == "hash":
        note_split(summary, config.validation, reporter)
    PartsFolder(workspace, shards_name).remove_if_idle()
    return workspace.get("shards", shards_name), False


def open_corpus(sources: Sequence[str], config: TokenizeConfig, reporter: Reporter) -> Corpus:
    """The documents of the sources, as the configuration would have them."""
    corpus = Corpus(
        sources,
        text_column=config.text_column,
        reading=config.read_options(reporter.note),
        unit=config.document,
        keep_ends=config.split == "tail",
    )
    for note in corpus.notes:
        reporter.note(note)
    return corpus


Existing = tuple[Tokenizer, InputRecord]
"""A tokenizer that is not learned, and its record as an input."""


def corpus_inputs(
    corpus: Corpus, sources: Sequence[str], existing: Existing | None
) -> list[InputRecord]:
    """What shards are made from, as their fingerprint knows it."""
    inputs = [InputRecord(role="corpus", name=" ".join(sources), digest=corpus.digest())]
    return inputs if existing is None else [*inputs, existing[1]]


def tokenizer_for(
    workspace: Workspace,
    corpus: Corpus,
    config: TokenizeConfig,
    inputs: Sequence[InputRecord],
    shards_name: str,
    existing: Existing | None,
    force: bool,
    reporter: Reporter,
) -> tuple[Tokenizer, list[InputRecord]]:
    """The tokenizer, learned if it is to be, and what the shards' manifest says they are from."""
    if existing is None:
        artefact = _learn(workspace, corpus, config, inputs, shards_name, force, reporter)
        tokenizer = tokenizers.load(artefact.folder)
        made_from = [*inputs, artefact.as_input("tokenizer")]
    else:
        tokenizer = with_additional(existing[0], sentinels=config.sentinels, fim=config.fim)
        made_from = list(inputs)
    for note in tokenizer.notes:
        reporter.note(note)
    if takes_marks(tokenizer) and (note := marks_taken(tokenizer, _common_characters(corpus))):
        reporter.note(note)
    return tokenizer, made_from


def _common_characters(corpus: Corpus) -> Counter[str]:
    """The characters of the corpus's beginning."""
    counts: Counter[str] = Counter()
    for document in CorpusPart(corpus, 1, 1):  # unlike the corpus it may have no text
        counts.update(document.text[:MARKS_SAMPLE])
        if counts.total() >= MARKS_SAMPLE:
            break
    return counts


def existing_tokenizer(workspace: Workspace, config: TokenizeConfig) -> Existing | None:
    """The tokenizer that is to be used as it is, or None if one is to be learned."""
    named = config.tokenizer
    if config.split_pattern is not None and named != "bpe":
        raise UsageError(f"split_pattern is for a bpe to learn, not for {named}; leave it out")
    if named in tokenizers.LEARNERS:
        if config.vocab_size is not None and named == "characters":
            raise UsageError(
                "--vocab-size is for pieces to learn: characters are as many as the corpus has; "
                "leave it out"
            )
        if config.cased is not None and named != "wordpiece":
            raise UsageError(
                f"--cased is for wordpiece: {named} always keeps capitals; leave it out"
            )
        return None
    if config.vocab_size is not None:
        raise UsageError(
            f"--vocab-size is for a tokenizer to learn, and {named} has its size; leave it out"
        )
    if named in workspace.names("tokenizer"):
        artefact = workspace.get("tokenizer", named)
        artefact.verify()
        tokenizer = tokenizers.load(artefact.folder, cased=config.cased)
        return tokenizer, artefact.as_input("tokenizer")
    path = Path(named)
    if not os.path.exists(path):  # unlike Path's, false for what can't be a name
        known = [*tokenizers.LEARNERS, *workspace.names("tokenizer")]
        raise InputError(
            f"--tokenizer {named!r} is neither a kind nor a tokenizer of the workspace nor a file; "
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
    values = {
        "kind": config.tokenizer,
        "vocab_size": config.vocab_size,
        "cased": config.cased,
        "split_pattern": config.split_pattern,
        "sentinels": config.sentinels,
        "fim": config.fim,
        "document": config.document,
        "text_column": config.text_column,
        "keep_ends": config.split == "tail",
    }
    defaults = {key: value for key, value in config.defaults().items() if key in values}
    identity = Identity("tokenizer", values, defaults, inputs)
    name, finished = workspace.match(
        "tokenizer", shards_name if force else None, shards_name, identity, force=force
    )
    if finished is not None:
        return finished
    manifest = new_manifest(
        "tokenizer",
        name,
        stage="tokenize",
        config=config.model_dump(mode="json"),
        identity=identity,
    )
    usual = (n for most, n in VOCABULARY_STEPS if corpus.total_bytes <= most)
    vocab_size = config.vocab_size or next(usual, LARGEST_VOCABULARY)
    with workspace.publish(manifest) as (folder, summary):
        texts = _LearningTexts(corpus, reporter)
        started = time.perf_counter()
        learned = tokenizers.learn(
            config.tokenizer,
            texts,
            None if config.tokenizer == "characters" else vocab_size,
            cased=bool(config.cased),
            split_pattern=config.split_pattern,
            exact=config.vocab_size is not None,
        )
        learned = with_additional(learned, sentinels=config.sentinels, fim=config.fim)
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


class _LearningTexts:
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
