"""Evaluate a language model on running text: perplexity and bits per byte.

The text is the validation part of the run's shards, or a file. With a sliding window each document
is read by itself, from its start token on. Shards are measured a second time as training does it:
blocks end to end over all documents. Both score the same tokens, each document's and its end.
Models with another tokenizer get the same text; bits per byte compare whatever the tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.data.shards.encoding import encode_text
from llmctl.data.shards.files import ShardReader
from llmctl.data.text.documents import Corpus
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.perplexity import (
    Ids,
    LogProbs,
    Passage,
    Tally,
    bits_per_byte_interval,
    perplexity,
)
from llmctl.formats.ngram.ngram_folder import NgramFolder
from llmctl.inference.scoring import Query, Scorer
from llmctl.inference.weights import WeightType
from llmctl.objectives.pretraining import VALIDATION_SEED
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject, trained_config
from llmctl.tasks.pretraining import open_pretraining
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact

NGRAM_WINDOW = 1 << 11
"""Tokens of a document that an n-gram model is given together; its own context is shorter."""


@dataclass(frozen=True)
class _Document:
    """A piece of the text that is measured on."""

    ids: Ids
    """By the tokenizer of the model that is measured, without special tokens."""
    text: str | None
    """None: the ids are all there is."""
    size: int
    """UTF-8 bytes."""
    source: str


def language_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """A text under the model, and under those that it is compared with."""
    tokenizer = given.subject.tokenizer
    read, total = _text(given, config, reporter)
    unknown = _Unknown(tokenizer)
    results: dict[str, Any] = {}
    tallies: dict[str, Tally] = {}
    for name, subject, dtype in _variants(given, config):
        shown = f"text under {subject.name}" + (f", {dtype}" if dtype != "fp32" else "")

        def progress(tally: Tally, shown: str = shown) -> None:
            reporter.progress(shown, tally.tokens, total)

        window, stride = _window(subject, config)
        unknown.count = 0
        tally = perplexity(
            _passages(unknown.counted(read()), subject, tokenizer),
            _log_probs(subject.scorer(config.device, dtype)),
            window=window,
            stride=stride,
            progress=progress,
        )
        reporter.progress(shown, tally.tokens, tally.tokens)
        tallies[name] = tally
        results[name] = {
            "kind": subject.kind,
            **({"order": subject.folder.config.order} if isinstance(subject.folder, NgramFolder)
               else {"window": window, "stride": stride, "dtype": dtype}),
            **tally.report(),
            "interval": _interval(tally.parts, config),
        }  # fmt: skip
        as_trained = given.data is None and dtype == "fp32"
        if as_trained and (blocks := _blocks(given, subject, config, reporter)):
            results[name]["blocks"] = blocks
    notes = list(given.notes)
    if unknown.count:
        notes.append(
            f"{unknown.count:,} tokens of the text are unknown to the tokenizer: what they stand "
            "for is not predicted, so figures are better than they should be"
        )
        reporter.note(notes[-1])
    main = tallies["model"]
    return {
        "task": "perplexity",
        "data": _described(given),
        "split": "validation" if given.data is None else None,
        "documents": main.documents,
        "bytes": main.bytes,
        "results": results,
        "differences": {
            name: _difference(main, tally, config)
            for name, tally in tallies.items()
            if name != "model"
        },
        "notes": notes,
        "summary": {k: results["model"][k] for k in ("loss", "perplexity", "bits_per_byte")},
    }


def _variants(given: Given, config: EvaluateConfig) -> Iterator[tuple[str, Subject, WeightType]]:
    """The models in the weights' type that is asked for, and the first in fp32 beside it."""
    for name, subject in given.subjects.items():
        dtype: WeightType = "fp32" if subject.kind == "ngram" else config.dtype
        yield name, subject, dtype
        if name == "model" and dtype != "fp32":
            yield "model, fp32", subject, "fp32"


def _described(given: Given) -> str:
    if given.data is not None:
        return str(given.data)
    assert given.shards is not None
    return given.shards.manifest.reference


def _text(
    given: Given, config: EvaluateConfig, reporter: Reporter
) -> tuple[Callable[[], Iterator[_Document]], int | None]:
    """How to read the text, from its beginning each time, and the tokens to be scored if known."""
    tokenizer = given.subject.tokenizer
    if given.data is None:
        assert given.shards is not None
        reader = ShardReader(given.shards.folder, "validation", tokenizer.vocab_size)
        if not len(reader):
            raise InputError(
                f"shards {given.shards.manifest.name} have no validation documents; tokenize with "
                "a larger --validation, or give --data FILE"
            )
        total = int(reader.document_lengths.sum()) + len(reader)
        everything = _of_shards(reader, tokenizer, given.shards)
    else:
        corpus = Corpus(
            [str(given.data)],
            text_column=config.text_column,
            reading=config.read_config().read_options(reporter.note),
            unit=config.document,
        )
        for note in corpus.notes:
            reporter.note(note)
        total, everything = 0, _of_corpus(corpus, tokenizer)
    limit = config.max_tokens
    if limit is not None:
        total = min(total, limit) if total else limit
    return lambda: _limited(everything(), limit), total or None


def _of_shards(
    reader: ShardReader, tokenizer: Tokenizer, shards: Artefact
) -> Callable[[], Iterator[_Document]]:
    size_of = tokenizer.token_bytes

    def read() -> Iterator[_Document]:
        for number in range(len(reader)):
            ids = reader.tokens(number).astype(np.int64)
            source = f"{shards.manifest.reference}, validation document {number + 1}"
            yield _Document(ids, None, int(size_of[ids].sum()), source)

    return read


def _of_corpus(corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], Iterator[_Document]]:
    def read() -> Iterator[_Document]:
        for document in corpus:
            ids = encode_text(tokenizer, document.text)
            size = len(document.text.encode())
            yield _Document(ids.astype(np.int64), document.text, size, document.source)

    return read


def _limited(documents: Iterable[_Document], limit: int | None) -> Iterator[_Document]:
    """Whole documents, until there are so many tokens."""
    tokens = 0
    for document in documents:
        yield document
        tokens += len(document.ids) + 1
        if limit is not None and tokens >= limit:
            return


class _Unknown:
    """Counts tokens that stand for what the tokenizer doesn't know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special
        # GPT-2's is what begins and ends a document too: its bytes know everything.
        around = {special.get("bos"), special.get("eos")}
        self._id = special["unk"] if special.get("unk") not in {None, *around} else None
        self.count = 0

    def counted(self, documents: Iterable[_Document]) -> Iterator[_Document]:
        for document in documents:
            if self._id is not None:
                self.count += int((document.ids == self._id).sum())
            yield document


def _passages(
    documents: Iterable[_Document], subject: Subject, tokenizer: Tokenizer
) -> Iterator[Passage]:
    """Documents as a model reads them; ``tokenizer``: whose ids they have."""
    around = subject.tokenizer.boundaries
    if around is None:
        raise InputError(
            f"the tokenizer of {subject.name} has no tokens for a document's start and end, from "
            "which text is scored; use a model that has them"
        )
    start, end = (np.array([token]) for token in around)
    same = subject.tokenizer.digest() == tokenizer.digest()
    for document in documents:
        ids = document.ids if same else _again(document, tokenizer, subject)
        yield Passage(np.concatenate((start, ids, end)), document.size)


def _again(document: _Document, tokenizer: Tokenizer, subject: Subject) -> Ids:
    """A document by another tokenizer. Raises InputError where its text can't be told."""
    text = document.text
    if text is None:
        text = tokenizer.decode(document.ids.tolist())
        if tokenizer.encode(text) != document.ids.tolist():
            raise InputError(
                f"{document.source}: {subject.name} has another tokenizer, and the text can't be "
                "told from its tokens; give the text itself: --data FILE"
            )
    ids, _ = subject.tokenizer.encode_batch([text])
    return ids.astype(np.int64)


def _window(subject: Subject, config: EvaluateConfig) -> tuple[int, int]:
    """Tokens that a model reads at once, and by how many its window moves on."""
    if isinstance(subject.folder, NgramFolder):
        # Each token is behind all the context that the model looks at.
        return NGRAM_WINDOW, NGRAM_WINDOW - subject.folder.config.order + 1
    window = subject.folder.max_length
    stride = config.stride or max(1, window // 2)
    if stride > window:
        raise UsageError(
            f"--stride {stride}: {subject.name} reads {window} tokens at once; use {window} or less"
        )
    return window, stride


def _log_probs(scorer: Scorer) -> LogProbs:
    def log_probs(pairs: Iterable[tuple[Ids, Ids]]) -> Iterator[Any]:
        queries = (Query(context, [continuation]) for context, continuation in pairs)
        return (answer.scores[0].log_probs for answer in scorer.score(queries))

    return log_probs


def _blocks(
    given: Given, subject: Subject, config: EvaluateConfig, reporter: Reporter
) -> dict[str, Any] | None:
    """The validation part as training looks at it, all of it; None for a model that was not
    trained on these shards, and for an n-gram model, for which it is the same."""
    run, shards = subject.run, given.shards
    if subject.kind != "causal_lm" or run is None or shards is None:
        return None
    trained_on = {record.digest for record in run.manifest.inputs if record.role == "shards"}
    if shards.manifest.digest not in trained_on:
        return None
    pretraining, trained = open_pretraining(shards, trained_config(run.manifest))
    batches = pretraining.batches("validation", seed=VALIDATION_SEED)
    total = batches.per_epoch
    if config.max_tokens is not None:
        tokens = trained.data.sequence_length * trained.training.batch_size
        total = min(total, math.ceil(config.max_tokens / tokens))
    device = choose_device(config.device)

    def batch(number: int) -> Any:
        reporter.progress(f"blocks under {subject.name}", number + 1, total)
        return batches(number)

    values = evaluate(
        subject.neural.causal_lm().to(device), batch, total, device=device, world=current()
    )
    return {
        "length": trained.data.sequence_length,
        "document_mask": trained.data.document_mask,
        "loss": values["lm_loss"],
        "perplexity": math.exp(min(values["lm_loss"], 700.0)),
        "bits_per_byte": values["bits_per_byte"],
        "accuracy": values["lm_accuracy"],
    }


def _interval(parts: list[tuple[float, int]], config: EvaluateConfig) -> list[float] | None:
    nll, size = zip(*parts, strict=True)
    found = bits_per_byte_interval(nll, size, resamples=config.resamples, seed=config.seed)
    return None if found is None else list(found)


def _difference(model: Tally, other: Tally, config: EvaluateConfig) -> dict[str, float | None]:
    """Bits per byte of the model less those of another, with its interval."""
    pairs = zip(model.parts, other.parts, strict=True)
    interval = _interval([(a - b, size) for (a, size), (b, _) in pairs], config)
    low, high = interval or (None, None)
    return {"difference": model.bits_per_byte - other.bits_per_byte, "low": low, "high": high}
