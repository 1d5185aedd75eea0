"""Evaluate a language model on running text: perplexity and bits per byte.

The text is the validation part of the run's shards, or a file. With a sliding window each document
is read by itself, from its start token on. Shards are measured a second time as training does it:
blocks end to end over all documents. Both score the same tokens, each document's and its end.
Models with another tokenizer get the same text; bits per byte compare whatever the tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from llmctl.data.text.documents import Corpus
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.perplexity import (
    LogProbs,
    Tally,
    TokenIds,
    bits_per_byte_interval,
    perplexity,
)
from llmctl.evaluation.report import MODEL, Figure, Gap, Report
from llmctl.formats.description import FIM
from llmctl.inference.scoring import Query, Scorer
from llmctl.inference.weights import WeightType
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.middles import measure_middles
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator
from llmctl.tasks.causal_lm.texts import (
    Read,
    ScoredDocument,
    limited,
    passages,
    text_of_corpus,
    text_of_shards,
    unknown_token,
)
from llmctl.tasks.evaluation import (
    shards_of,
    shards_record,
    trained_config,
    validation_losses,
)
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.training_data import pretrained_on
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.manifests import InputRecord

NGRAM_WINDOW = 1 << 11
"""Tokens of a document that an n-gram model is given together; its own context is shorter."""

FIGURES = (
    Figure("loss, nats", "loss", ".4f"),
    Figure("perplexity", "perplexity", ",.2f"),
    Figure("bits per byte (95 %)", "bits_per_byte", ".4f", "interval", ".4f"),
)
BITS_GAP = Gap("bits per byte", "+.4f")
EXPLAINED = (
    "loss: in natural logarithms (nats) a token; perplexity: its exponential, among how many "
    "tokens the model is torn; bits per byte: the same for each byte, which compares between "
    "tokenizers; lower is better"
)


class PerplexityEvaluator(LanguageEvaluator):
    """Text under language models."""

    reports = ("perplexity",)

    def choose(self) -> None:
        """Find the text, and an n-gram model to stand beside where there is one."""
        super().choose()
        self.refuse_prompts()
        run = self.model.run
        if self.files.data is None:
            if run is None:
                raise UsageError(
                    f"{self.model.name} is a folder: its shards are not known; give the text to "
                    "measure on, --data FILE"
                )
            self.shards = shards_of(self.workspace, run.manifest)
        elif self.path.is_dir():
            raise InputError(
                f"--data {self.path} is a folder: of text give a file of it, or name the --task of "
                "its questions"
            )
        else:
            self.data = data_record(self.path)
        measured = {model.kind for model in self.models.values()}
        if self.config.baselines and run is not None and "ngram" not in measured:
            record = shards_record(self.workspace, run.manifest)
            if record is not None:
                self._add_ngram(record)

    def _add_ngram(self, shards: InputRecord) -> None:
        """Compare with the newest n-gram model of some shards, or say how to make one."""
        name = _ngram_of(self.workspace, shards)
        if name is None:
            self.notes.append(
                f"no n-gram model of {shards.name} to compare with; make one: llmctl pretrain "
                f"--arch ngram --shards {shards.name.partition('/')[2]}"
            )
            return
        self.models[name] = OpenedModel.open(self.workspace, name)
        self.notes.append(f"beside it: {name}, the n-gram model of {shards.name}")

    def run(self, reporter: Reporter) -> Report:
        """Read the text by a sliding window with all models."""
        read, total = self._text(reporter)
        token, unknown = unknown_token(self.model.folder.tokenizer), 0

        def documents() -> Iterator[ScoredDocument]:
            nonlocal unknown  # the same for each model
            unknown = 0
            for document in read():
                unknown += int((document.ids == token).sum()) if token is not None else 0
                yield document

        results: dict[str, Any] = {}
        tallies: dict[str, Tally] = {}
        for name, model, dtype in self._variants():
            tallies[name] = self._tally(model, dtype, documents(), total, reporter)
            results[name] = self._row(model, dtype, tallies[name])
            if self.files.data is None and dtype == "fp32":
                results[name] |= self._blocks(model, reporter)
        notes = []
        if unknown:
            notes.append(
                f"{unknown:,} tokens of the text are unknown to the tokenizer: what they "
                "stand for is not predicted, so figures are better than they should be"
            )
        middles = self._middles(read())
        facts: dict[str, Any] = {"split": "validation" if self.files.data is None else None}
        if self.files.data is not None:
            known = pretrained_on(self.workspace, self.model, self.path)
            facts["training_file"] = bool(known)
            notes += known
        if middles is not None:
            facts["middles"] = middles
        main = tallies[MODEL]
        return Report(
            task="perplexity",
            data=str(self.files.data or (self.shards and self.shards.manifest.reference)),
            facts={**facts, "documents": main.documents, "bytes": main.bytes},
            results=results,
            differences={
                name: self._difference(main, tally)
                for name, tally in tallies.items()
                if name != MODEL
            },
            notes=notes,
            summary={key: results[MODEL][key] for key in ("loss", "perplexity", "bits_per_byte")},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, with a second one where shards are measured as in training."""
        text, documents = report.data, report.facts["documents"]
        if report.facts["split"]:
            text = f"the validation part of {text}"
        yield ReportTable(
            f"{report.model} on {text}: {documents:,} document{'' if documents == 1 else 's'}, "
            f"{report.facts['bytes']:,} bytes",
            ["tokens", *(figure.heading for figure in FIGURES)],
            [
                row
                for name, values in report.results.items()
                for row in _shown_rows(report.shown(name), values)
            ],
        )
        yield EXPLAINED
        if len({row["tokens"] for row in report.results.values()}) > 1:
            yield "tokens differ: perplexities don't compare, bits per byte do"
        yield from report.gaps(BITS_GAP)
        if (middles := report.facts.get("middles")) is not None:
            yield (
                f"middles of {middles['documents']:,} documents: bits per byte "
                f"{middles['both_sides']:.4f} with both sides known, "
                f"{middles['before_alone']:.4f} from what comes before alone: "
                f"{BITS_GAP.cell(middles['difference'])}"
            )

    def _middles(self, documents: Iterable[ScoredDocument]) -> dict[str, Any] | None:
        """How the model fills in the middle, if it has learned to."""
        folder = self.model.folder
        if not folder.fields.get(FIM) or self.model.kind != "causal_lm":
            return None
        return measure_middles(
            documents,
            folder.tokenizer,
            self.scorer(self.model),
            longest=folder.max_length,
            resamples=self.config.resamples,
            seed=self.config.seed,
        )

    def _variants(self) -> Iterator[tuple[str, OpenedModel, WeightType]]:
        """The models in the weights' type that is asked for, and the first in fp32 beside it."""
        for name, model in self.models.items():
            dtype: WeightType = "fp32" if model.kind == "ngram" else self.config.dtype
            yield name, model, dtype
            if name == MODEL and dtype != "fp32":
                yield f"{MODEL}, fp32", model, "fp32"

    def _text(self, reporter: Reporter) -> tuple[Read, int | None]:
        """The text, and the tokens to be scored if their number is known."""
        tokenizer, limit = self.model.folder.tokenizer, self.config.max_tokens
        if self.shards is not None:
            read, total = text_of_shards(self.shards, tokenizer)
        else:
            corpus = Corpus(
                [str(self.path)],
                text_column=self.config.text_column,
                reading=self.read_options(reporter),
                unit=self.config.document,
            )
            for note in corpus.notes:
                reporter.note(note)
            read, total = text_of_corpus(corpus, tokenizer), 0
        if limit is not None:
            total = min(total, limit) if total else limit
        return lambda: limited(read(), limit), total or None

    def _tally(
        self,
        model: OpenedModel,
        dtype: WeightType,
        documents: Iterable[ScoredDocument],
        total: int | None,
        reporter: Reporter,
    ) -> Tally:
        """The text under a model."""
        shown = f"text under {model.name}" + (f", {dtype}" if dtype != "fp32" else "")
        window, stride = self._window(model)
        tally = perplexity(
            passages(documents, model, self.model.folder.tokenizer),
            _log_probs(self.scorer(model, dtype)),
            window=window,
            stride=stride,
            progress=lambda tally: reporter.progress(shown, tally.tokens, total),
        )
        reporter.progress(shown, tally.tokens, tally.tokens)
        return tally

    def _window(self, model: OpenedModel) -> tuple[int, int]:
        """Tokens that a model reads at once, and by how many its window moves on."""
        if model.kind == "ngram":
            # Each token is behind all the context that the model looks at.
            return NGRAM_WINDOW, NGRAM_WINDOW - model.folder.config.order + 1
        window = model.folder.max_length
        stride = self.config.stride or max(1, window // 2)
        if stride > window:
            raise UsageError(
                f"--stride {stride}: {model.name} reads {window} tokens at once; use {window} or "
                "less"
            )
        return window, stride

    def _row(self, model: OpenedModel, dtype: WeightType, tally: Tally) -> dict[str, Any]:
        """The figures of a model."""
        window, stride = self._window(model)
        how: dict[str, Any] = {"window": window, "stride": stride, "dtype": dtype}
        if model.kind == "ngram":
            how = {"order": model.folder.config.order}
        interval = self._interval(tally.parts)
        return {"kind": model.kind, **how, **tally.report(), "interval": interval}

    def _blocks(self, model: OpenedModel, reporter: Reporter) -> dict[str, Any]:
        """The validation part as training looks at it, all of it; nothing for a model that was not
        trained on these shards, and for an n-gram model, for which it is the same."""
        run, shards = model.run, self.shards
        if model.kind != "causal_lm" or run is None or shards is None:
            return {}
        trained_on = {record.digest for record in run.manifest.inputs if record.role == "shards"}
        if shards.manifest.digest not in trained_on:
            return {}
        device = choose_device(self.config.device)
        values, trained = validation_losses(
            model.folder.causal_lm().to(device),
            shards,
            trained_config(run.manifest),
            device,
            limit=self.config.max_tokens,
            progress=partial(reporter.progress, f"blocks under {model.name}"),
        )
        blocks = {
            "length": trained.data.sequence_length,
            "document_mask": trained.data.document_mask,
            "loss": values["lm_loss"],
            "perplexity": math.exp(min(values["lm_loss"], 700.0)),
            "bits_per_byte": values["bits_per_byte"],
            "accuracy": values["lm_accuracy"],
        }
        return {"blocks": blocks}

    def _interval(self, parts: list[tuple[float, int]]) -> list[float] | None:
        how = {"resamples": self.config.resamples, "seed": self.config.seed}
        interval = bits_per_byte_interval(*zip(*parts, strict=True), **how)
        return None if interval is None else list(interval)

    def _difference(self, model: Tally, other: Tally) -> dict[str, float | None]:
        """Bits per byte of the model less those of another, with its interval."""
        pairs = zip(model.parts, other.parts, strict=True)
        interval = self._interval([(a - b, size) for (a, size), (b, _) in pairs])
        low, high = interval or (None, None)
        return {"difference": model.bits_per_byte - other.bits_per_byte, "low": low, "high": high}


def _shown_rows(name: str, row: dict[str, Any]) -> Iterator[list[str]]:
    """A model's row, and that of its blocks."""
    if row["kind"] == "ngram":
        how = f"{row['order']}-gram"
    else:
        dtype = f"{row['dtype']}, " if row["dtype"] != "fp32" else ""
        how = f"{dtype}window {row['window']}, stride {row['stride']}"
    yield [f"{name}, {how}", f"{row['tokens']:,}", *(figure.cell(row) for figure in FIGURES)]
    if blocks := row.get("blocks"):
        name = f"{name}, blocks of {blocks['length']} as in training"
        without = {**blocks, "interval": None}
        yield [name, "", *(figure.cell(without) for figure in FIGURES)]


def _ngram_of(workspace: Workspace, shards: InputRecord) -> str | None:
    """The newest n-gram model of some shards."""
    names = [
        run.manifest.name
        for run in workspace.list("run")
        if run.finished
        and run.manifest.config.get("arch") == "ngram"
        and shards.digest in [r.digest for r in run.manifest.inputs if r.role == "shards"]
    ]
    return names[-1] if names else None


def _log_probs(scorer: Scorer) -> LogProbs:
    def log_probs(pairs: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[Any]:
        queries = (Query(context, [continuation]) for context, continuation in pairs)
        return (answer.scores[0].log_probs for answer in scorer.score(queries))

    return log_probs
