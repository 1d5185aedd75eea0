"""Pretrain an n-gram model: shards to counts, counts to probabilities.

What ``llmctl pretrain --arch ngram`` does. It takes seconds to minutes, so there is nothing to go
on from: a run appears when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmctl import tokenizers
from llmctl.config import Config, build
from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError
from llmctl.evaluation.perplexity import Tally
from llmctl.formats.ngram.folder import NgramFormat
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.model import NgramModel
from llmctl.models.ngram.smoothing import NgramConfig, Trained, train
from llmctl.reporting.reporter import Record, Reporter
from llmctl.tasks.base import InstantTask
from llmctl.tokenizers import Tokenizer
from llmctl.training.planning.plan import cost
from llmctl.workspace.artefacts import Artefact
from llmctl.workspace.runs import RunRecorder

BLOCK_TOKENS = 1 << 20
"""Tokens sorted together: fastest where the keys fit into a processor's cache."""
SAMPLE_TOKENS = 1 << 19
"""Tokens counted to tell how long all will take."""
BYTES_OF_NGRAM = 64
"""Memory at the peak for each distinct n-gram, as measured at order 5."""


class NgramRunConfig(Config):
    """Everything that decides an n-gram model."""

    arch: Literal["ngram"] = "ngram"
    """The architecture."""
    model: NgramConfig = NgramConfig()


class Documents:
    """The documents of shards, each between the tokens of its start and end."""

    def __init__(self, shards: Artefact) -> None:
        """Raises InputError if the tokenizer has no such tokens."""
        self.tokenizer = tokenizers.load(shards.folder / "tokenizer")
        around = self.tokenizer.boundaries
        if around is None:
            raise InputError(
                f"the tokenizer of shards {shards.manifest.name} has no tokens for a document's "
                "start and end, which an n-gram model needs; learn one with `llmctl tokenize "
                "--tokenizer bpe`"
            )
        self.start, self.end = around
        self._shards = shards

    def blocks(self, split: str, size: int = BLOCK_TOKENS) -> Iterator[TokenBlock]:
        """The documents of a split in blocks of ``size`` tokens, or of one document if longer."""
        reader = ShardReader(self._shards.folder, split, self.tokenizer.vocab_size)
        dtype = np.min_scalar_type(self.tokenizer.vocab_size - 1)
        start, end = np.array([self.start], dtype), np.array([self.end], dtype)
        lengths = reader.document_lengths + 2
        stops = np.cumsum(lengths)
        first = 0
        while first < len(reader):
            done = stops[first] - lengths[first]
            last = max(int(np.searchsorted(stops, done + size, side="right")), first + 1)
            parts = []
            for document in range(first, last):
                parts += [start, reader.tokens(document).astype(dtype, copy=False), end]
            yield TokenBlock(np.concatenate(parts), stops[first:last] - lengths[first:last] - done)
            first = last

    def train_blocks(self) -> list[TokenBlock]:
        """The blocks to learn from. Raises InputError if there are none."""
        blocks = list(self.blocks("train"))
        if not blocks:
            raise InputError(
                f"shards {self._shards.manifest.name} have no training documents; tokenize more "
                "text, or with a smaller --validation"
            )
        return blocks


def score(model: NgramModel, blocks: Iterable[TokenBlock], tokenizer: Tokenizer) -> Tally:
    """How well a model predicts documents: their tokens and their ends."""
    size_of = tokenizer.token_bytes
    tally = Tally()
    for block in blocks:
        tally.nll -= float(model.log_probabilities(block).sum())
        tally.tokens += len(block.tokens) - len(block.starts)
        tally.bytes += int(size_of[block.tokens].sum())  # those around a document have none
        tally.documents += len(block.starts)
    return tally


class NgramTask(InstantTask):
    """Documents to count n-grams in."""

    size_unit = "n-grams"

    def __init__(self, shards: Artefact, config: NgramRunConfig) -> None:
        """Raises InputError if the shards' tokenizer does not suit."""
        self.shards, self.config = shards, config
        self.documents = Documents(shards)

    @classmethod
    def config_type(cls, arch: str) -> type[NgramRunConfig]:
        """The class of the configuration."""
        return NgramRunConfig

    @classmethod
    def resolve(cls, arch: str, preset: str | None, *layers: Mapping[str, Any]) -> NgramRunConfig:
        """The configuration from the defaults and what is laid over them; it has no presets."""
        return build(NgramRunConfig, *layers)

    @classmethod
    def suits(cls, tokenizer: Tokenizer, config: NgramRunConfig) -> bool:
        """Whether a tokenizer marks where documents start and end."""
        return tokenizer.boundaries is not None

    @classmethod
    def wanted(cls, config: NgramRunConfig) -> str:
        """What shards are to suit, and what that needs."""
        return f"--arch {config.arch} (their tokenizer needs tokens for a document's start and end)"

    def fit(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        config, documents = self.config.model, self.documents
        order, tokenizer = config.order, documents.tokenizer
        recorder = RunRecorder(folder)
        recorder.start(step=0, total_steps=order)
        started = time.perf_counter()
        blocks = documents.train_blocks()
        tokens = _tokens_of(blocks)
        trained = train(
            blocks,
            tokenizer.vocab_size,
            documents.start,
            config,
            dtype=np.float32,
            progress=lambda done: reporter.progress("counting n-grams", done, order),
        )
        seconds = time.perf_counter() - started
        _note_thin(trained, config, reporter)
        NgramFormat().save(folder / "model", trained.model, tokenizer, config.model_dump())
        tally = score(trained.model, documents.blocks("validation"), tokenizer)
        figures = {
            "loss": tally.loss,
            "perplexity": tally.perplexity,
            "bits_per_byte": tally.bits_per_byte,
        }
        speed = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        recorder.record({"kind": "train", "step": order, **speed})
        if tally.documents:
            recorder.record({"kind": "validation", "step": order, **figures})
            reporter.metrics(Record("validation", order, figures), order)
        else:
            reporter.note("the shards have no validation documents: trained without a look")
        recorder.update(state="finished", step=order, share_done=1.0, elapsed=seconds)
        return {
            "parameters": trained.model.parameters,
            "steps": order,
            "seconds": round(seconds, 3),
            **speed,
            **({"validation": figures} if tally.documents else {}),
            "discounts": trained.discounts,
        }

    def plan(self, price: float | None) -> dict[str, Any]:
        documents, config = self.documents, self.config.model
        tokens = _tokens_of(documents.train_blocks())
        sample = next(documents.blocks("train", SAMPLE_TOKENS))
        vocab_size = documents.tokenizer.vocab_size
        started = time.perf_counter()
        train([sample], vocab_size, documents.start, config, dtype=np.float32)
        seconds = time.perf_counter() - started
        ngrams = vocab_size + (config.order - 1) * tokens
        expected = seconds * tokens / len(sample.tokens)
        return {
            "shards": self.shards.manifest.name,
            "tokens": tokens,
            "parameters_at_most": ngrams,
            "memory_bytes_at_most": ngrams * BYTES_OF_NGRAM,
            "expected_seconds": expected,
            **cost(expected, price),
        }


def _tokens_of(blocks: Iterable[TokenBlock]) -> int:
    """Tokens to be predicted: not the starts."""
    return sum(len(block.tokens) - len(block.starts) for block in blocks)


def _note_thin(trained: Trained, config: NgramConfig, reporter: Reporter) -> None:
    if trained.thin:
        orders = ", ".join(map(str, trained.thin))
        values = ", ".join(f"{value:g}" for value in trained.discounts[trained.thin[0] - 1])
        reporter.note(
            f"n-grams of order {orders}: too few are rare to tell {config.smoothing}'s discounts "
            f"from; using {values}"
        )
