"""Evaluate a denoising pretraining on the validation part of its shards: the losses with the noise
as published, and of T5's spans how many are filled in exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from llmctl.data.shards.files import ShardReader
from llmctl.errors import UsageError
from llmctl.evaluation.frequencies import guesses
from llmctl.evaluation.report import MODEL, Figure, Report, share
from llmctl.evaluation.wilson import wilson_interval
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.denoise.batches import DenoisingBatch
from llmctl.tasks.denoise.config import DenoiseConfig
from llmctl.tasks.denoise.spans import FromIds, spans_in
from llmctl.tasks.evaluation import (
    FOR_LANGUAGE_MODELS,
    FOR_WRITERS,
    EvaluateConfig,
    Evaluator,
    Files,
    shards_of,
    trained_config,
    validation_losses,
)
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.pretraining import VALIDATION_SEED, open_pretraining
from llmctl.training.precision import choose_device

MAX_ROWS = 256
"""Rows whose spans are filled in where ``--max-tokens`` does not say: each is written token by
token."""
COUNTED_TOKENS = 200_000
"""Tokens of the training text among which the commonest span of each length is looked for."""

FIGURES = (
    Figure("loss, nats", "denoising_loss", ".4f", optional=True),
    Figure("accuracy", "denoising_accuracy", ".1%", optional=True),
    Figure("hidden: loss", "hidden_loss", ".4f", optional=True),
    Figure("accuracy", "hidden_accuracy", ".1%", optional=True),
)
EXACT_FILL = share("spans filled in exactly (95 %)", "exact_fill", "exact_interval")
EXPLAINED = (
    "loss and accuracy: of the target's tokens, each given the true ones before it; hidden: of "
    "those that the source does not show; by frequency: the commonest token, and the commonest "
    "span of the length, which is told it; nats: natural logarithms"
)


class DenoisingEvaluator(Evaluator):
    """The validation part of an encoder–decoder's shards under it."""

    kinds = ("seq2seq",)
    reports = ("denoise",)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        return files.data is None

    def choose(self) -> None:
        """A model is measured on its own shards alone."""
        name, run = self.model.name, self.model.run
        config = {} if run is None else run.manifest.config
        if run is None or run.manifest.stage != "pretrain" or "noise" not in config["objective"]:
            raise UsageError(
                f"{name} writes from sources: give --data FILE with pairs of source and target"
            )
        self.refuse("goes with --data, the sources", "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        if self.others:
            raise UsageError(
                f"--compare is for models that are measured on --data, and {name} is measured on "
                "its own shards"
            )
        self.shards = shards_of(self.workspace, run.manifest)

    def run(self, reporter: Reporter) -> Report:
        """Measure losses with the noise's published amounts, whatever the model was trained with,
        so that models can be compared."""
        run, shards = self.model.run, self.shards
        assert run is not None
        assert shards is not None
        trained = trained_config(run.manifest)
        objective: DenoiseConfig = trained.objective.replace(noise_share=None, mean_span=None)
        trained = trained.replace(objective=objective.model_dump())
        device = choose_device(self.config.device)
        values, trained = validation_losses(
            self.model.folder.seq2seq().to(device),
            shards,
            trained,
            device,
            limit=self.config.max_tokens,
            progress=partial(reporter.progress, "denoising loss"),
        )
        rows: dict[str, dict[str, Any]] = {MODEL: values}
        size = self.model.folder.tokenizer.vocab_size
        train, validation = (ShardReader(shards.folder, s, size) for s in ("train", "validation"))
        found = guesses(train, validation, size) if self.config.baselines else None
        if found is not None and "hidden_loss" in values:
            rows["by frequency"] = {
                "hidden_loss": found.unigram_loss, "hidden_accuracy": found.unigram_accuracy,
            }  # fmt: skip
            rows["by the token before"] = {
                "hidden_loss": found.bigram_loss, "hidden_accuracy": found.bigram_accuracy,
            }  # fmt: skip
        facts: dict[str, Any] = {
            "noise": objective.noise,
            "noise_share": objective.share or None,
            "validation_tokens": int(validation.document_lengths.sum()),
        }
        if objective.noise == "spans":
            filled, spans = self._filled(trained, reporter)
            facts["spans"] = len(spans)
            guessed = _by_frequency(spans, train) if spans else []
            for name, hits in {MODEL: filled, "by frequency": guessed}.items():
                if name in rows and spans:
                    rows[name] |= _share(sum(hits), len(hits))
        summary = {key: values[key] for key in values if key != "loss"}
        if "exact_fill" in rows[MODEL]:
            summary["exact_fill"] = rows[MODEL]["exact_fill"]
        return Report(
            task="denoise",
            data=shards.manifest.reference,
            facts=facts,
            results=rows,
            summary=summary,
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """A row for the model, and one for each guess."""
        facts = report.facts
        figures = [*FIGURES, *([EXACT_FILL] if facts.get("spans") else [])]
        share = f", {facts['noise_share']:.0%} hidden" if facts["noise_share"] else ""
        title = f"{report.model} on the validation part of {report.data}: {facts['noise']}{share}"
        rows = {name: {"exact_fill": None, "exact_interval": None, **row}
                for name, row in report.results.items()}  # fmt: skip
        yield Report(
            task=report.task, data=report.data, model=report.model, results=rows, summary={}
        ).table(title, figures)
        yield EXPLAINED

    def _filled(self, trained: Any, reporter: Reporter) -> tuple[list[bool], list[tuple[int, ...]]]:
        """Whether each of the spans of some rows is written just so; and the spans."""
        assert self.shards is not None
        batches = open_pretraining(self.shards, trained).batches("validation", seed=VALIDATION_SEED)
        length, end = trained.data.sequence_length, self.model.folder.frame.end[-1]
        most = MAX_ROWS if self.config.max_tokens is None else self.config.max_tokens // length + 1
        sources: list[list[int]] = []
        targets: list[list[int]] = []
        for number in range(batches.per_epoch):
            batch = batches(number)
            assert isinstance(batch, DenoisingBatch)
            for source, target in zip(
                batch.source_ids_BS.tolist(), batch.labels_BT.tolist(), strict=True
            ):
                # Where a document's end is hidden, writing would stop in the middle.
                if end not in target[:-1]:
                    sources.append(source)
                    targets.append(target)
            if len(sources) >= most:
                break
        if not sources:
            return [], []
        generation = FromIds(
            self.model,
            GenerateConfig(
                max_new_tokens=max(map(len, targets)), device=self.config.device,
                batch_size=self.config.batch_size,
            ),
            reporter=reporter,
        )  # fmt: skip
        generation.sources = sources[:most]
        sentinels = self.model.folder.tokenizer.sentinels
        hits: list[bool] = []
        spans: list[tuple[int, ...]] = []
        prompts = (Prompt(str(number), f"row {number}") for number in range(len(sources[:most])))
        for number, answer in enumerate(generation.answers(prompts)):
            truth = spans_in(targets[number], sentinels, end)
            written = spans_in(answer.completions[0].ids, sentinels, end)
            for sentinel, span in truth.items():
                if span:  # behind the last sentinel is none
                    hits.append(written.get(sentinel) == span)
                    spans.append(span)
            reporter.progress("spans filled in", number + 1, len(sources[:most]))
        return hits, spans


def _by_frequency(spans: Sequence[tuple[int, ...]], train: ShardReader) -> list[bool]:
    """Whether each span is the commonest of its length in the training text."""
    parts, tokens = [], 0
    for document in range(len(train)):
        parts.append(train.tokens(document).astype(np.uint64))
        tokens += len(parts[-1])
        if tokens >= COUNTED_TOKENS:
            break
    text = np.concatenate(parts)
    commonest: Mapping[int, tuple[int, ...]] = {
        length: _commonest(text, length) for length in {len(span) for span in spans}
    }
    return [span == commonest[len(span)] for span in spans]


def _commonest(text: np.ndarray[Any, np.dtype[np.uint64]], length: int) -> tuple[int, ...]:
    """The run of so many tokens that comes most often."""
    if length >= len(text):
        return ()
    codes = np.zeros(len(text) - length + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length):
            codes = codes * np.uint64(0x9E3779B97F4A7C15) + text[offset : offset + len(codes)]
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    place = int(first[counts.argmax()])
    return tuple(text[place : place + length].astype(int).tolist())


def _share(hits: int, count: int) -> dict[str, Any]:
    return {"exact_fill": hits / count, "exact_interval": list(wilson_interval(hits, count))}
