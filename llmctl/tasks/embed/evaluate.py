"""Evaluate an embedder: scored pairs by Spearman's ρ, other pairs by what is found among all.

N texts, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.random import key_of
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.rows import RowReader
from llmctl.data.tables.similar_texts import (
    ALIKE_COLUMNS,
    SimilarColumns,
    SimilarTexts,
    read_similar,
    resolve_similar,
    similar_record,
)
from llmctl.data.text.files import is_table
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import similarity
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.evaluation.report import MODEL, Figure, Gap, Report, share
from llmctl.formats.description import COLUMNS
from llmctl.inference.embedding import narrowed, normalized
from llmctl.models.heads.embed import Embedder
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.embed.texts import TextEmbedder, new_embedder
from llmctl.tasks.evaluation import FOR_LANGUAGE_MODELS, FOR_SOURCES, FOR_WRITERS, Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.training_data import is_training_file, seen_in_training

TFIDF, UNTRAINED = "TF-IDF cosine", "untrained body"
ALIKE_SHARE = 0.8
"""The share of the scores' range from which a pair counts as alike in alignment: 4 of 5, as Gao et
al. 2021 (§5) take it."""

SPACE_FIGURES = (
    Figure("align.", "alignment", ".2f", optional=True),
    Figure("unif.", "uniformity", ".2f", optional=True),
)
STS_FIGURES = (
    Figure("Spearman (95 %)", "spearman", ".3f", "intervals.spearman", ends=".3f"),
    Figure("Pearson", "pearson", ".3f"),
    *SPACE_FIGURES,
)
RETRIEVAL_FIGURES = (
    share("R@1", "recall_1"),
    share("R@10", "recall_10"),
    Figure("MRR", "mrr"),
    Figure("nDCG (95 %)", "ndcg", ".3f", "intervals.ndcg", ends=".3f"),
    *SPACE_FIGURES,
)
OF_THE_SPACE = (
    "align.: the mean squared distance of texts that belong together; unif.: how evenly texts lie "
    "on the sphere, log E exp(−2d²); the lower both, the better"
)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class _Texts:
    """All texts of the examples, each once, and the places of those of each example."""

    texts: list[str]
    place: Mapping[str, int]

    @classmethod
    def of(cls, examples: Sequence[SimilarTexts]) -> _Texts:
        place: dict[str, int] = {}
        for example in examples:
            for text in (example.text, example.other, *example.negatives):
                place.setdefault(text, len(place))
        return cls(list(place), place)

    def places(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Where some texts are."""
        return np.asarray([self.place[text] for text in texts], dtype=np.int64)


class SimilarityEvaluator(Evaluator):
    """Texts that belong together, or are as alike as a score says, under an embedder."""

    kinds = ("embed",)
    reports = ("sts", "retrieval")

    def choose(self) -> None:
        """An embedder is compared with embedders, and with bodies that were never one."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        if self.files.data is None:
            raise UsageError(
                f"{self.model.name} makes vectors: give --data FILE with scored pairs of texts, or "
                "with queries and what belongs to them"
            )
        for other in self.others:
            if other.folder.architecture is None or other.folder.spec.kind == "encoder-decoder":
                raise UsageError(
                    f"--compare {other.name} has no body that texts could be embedded with"
                )
        for width in self.config.widths:
            if width >= (full := int(self.model.folder.config.hidden_size)):
                raise UsageError(f"widths: {width} is no part of vectors {full} wide")
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Embed all texts once with each model, and measure."""
        reading = self.read_options(reporter, as_trained=True)
        columns = self._columns(reading)
        reporter.note(f"{self.path.name}: {columns.describe()}")
        examples = list(read_similar(self.path, columns, reading=reading))
        whole = [example for example in examples if example.text and example.other]
        notes: list[str] = []
        if len(whole) < len(examples):
            notes.append(f"left out {len(examples) - len(whole):,} rows of which a text is empty")
        if len(whole) < 2:
            raise InputError(f"{self.path} has {len(whole)} pairs of texts; two are the least")
        texts = _Texts.of(whole)
        vectors = self._vectors(texts.texts, notes)
        for model in self.models.values():
            notes += seen_in_training(model, self.path)
        measure = self._scored if columns.score is not None else self._searched
        report = measure(whole, texts, vectors, notes)
        facts = {
            "examples": len(whole),
            "texts": len(texts.texts),
            "columns": similar_record(columns),
            "training_file": is_training_file(self.model, self.path),
        }
        return Report(
            task=report["task"],
            data=str(self.path),
            facts={**facts, **report.get("facts", {})},
            results=report["results"],
            differences=report["differences"],
            notes=notes,
            summary={name: report["results"][MODEL][name] for name in report["summary"]},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows and the differences."""
        if report.task == "sts":
            title = f"{report.model} on {report.facts['examples']:,} scored pairs"
            yield report.table(title, STS_FIGURES)
            yield f"Spearman: how cosines follow the scores in order; {OF_THE_SPACE}"
            yield from report.gaps(Gap("Spearman", "+.3f"))
            return
        facts = report.facts
        title = f"{report.model}: {facts['queries']:,} queries among {facts['candidates']:,} texts"
        yield report.table(title, RETRIEVAL_FIGURES)
        yield (
            "R@k: the share of what belongs to a query among the nearest k; MRR and nDCG: of the "
            f"nearest {similarity.DEPTH}; {OF_THE_SPACE}"
        )
        yield from report.gaps(Gap("nDCG", "+.3f"))

    def _columns(self, reading: Any) -> SimilarColumns:
        """The columns of the file: those given, those of the training where they are there, and
        the obvious ones."""
        config = self.config
        asked = {
            "text_column": config.text_column,
            "text_pair_column": config.text_pair_column,
            "negative_column": config.negative_column,
            "score_column": config.score_column,
        }
        trained = self.model.folder.fields.get(COLUMNS)
        if not any(asked.values()) and isinstance(trained, dict) and is_table(self.path):
            text, other = (trained.get("text") or [None])[0], trained.get("text_pair")
            names = RowReader(self.path, known=ALIKE_COLUMNS, reading=reading).columns
            if text in names and other in names:
                asked |= {"text_column": text, "text_pair_column": other}
        return resolve_similar(self.path, **asked, reading=reading)

    def _vectors(self, texts: Sequence[str], notes: list[str]) -> dict[str, Vectors]:
        """The vectors of all texts by each model, at each width, and by a body with random
        weights."""
        found: dict[str, Vectors] = {}
        examples = [Example(text, None, None, str(self.path)) for text in texts]
        for name, model in self.models.items():
            found[name] = self._embedded(model, _network_of(model, notes), examples, notes)
            if name == MODEL:
                for width in self.config.widths:
                    found[f"{MODEL}, {width} wide"] = narrowed(found[MODEL], width)
        if self.config.baselines:
            folder = self.model.folder
            torch.manual_seed(key_of(self.config.seed, "untrained"))
            pooling = folder.embedder().pooling
            network = new_embedder(folder, pooling, scratch=True)
            found[UNTRAINED] = self._embedded(self.model, network, examples, [])
        return found

    def _embedded(
        self, model: OpenedModel, network: Embedder, examples: list[Example], notes: list[str]
    ) -> Vectors:
        embedder = TextEmbedder(model, network=network, device=self.config.device)
        vectors = np.concatenate([block for _, block in embedder.blocks(examples)])
        if embedder.cut:
            notes.append(
                f"{model.name}: {embedder.cut:,} of {len(examples):,} texts were longer than "
                f"{model.folder.max_length} tokens and were cut"
            )
        return vectors

    def _tfidf(self, texts: Sequence[str], notes: list[str]) -> Any:
        """Rows of TF-IDF, or None, with a note, where they can't be had."""
        if not self.config.baselines:
            return None
        try:
            return similarity.tfidf_vectors(texts)
        except UsageError as error:
            notes.append(f"{TFIDF} left out: {error}")
            return None

    def _scored(
        self,
        examples: Sequence[SimilarTexts],
        texts: _Texts,
        vectors: Mapping[str, Vectors],
        notes: list[str],
    ) -> dict[str, Any]:
        """The rows of scored pairs."""
        first, second = (
            texts.places([getattr(example, side) for example in examples])
            for side in ("text", "other")
        )
        scores = np.asarray([example.score for example in examples], dtype=np.float64)
        if scores.min() == scores.max():
            raise InputError(
                f"{self.path}: all scores are {scores[0]:g}; there is no order in them"
            )
        guesses = {
            name: similarity.cosines_of_pairs(found[first], found[second])
            for name, found in vectors.items()
        }
        if (rows := self._tfidf(texts.texts, notes)) is not None:
            product = rows[first].multiply(rows[second]) if hasattr(rows, "multiply") else None
            guesses[TFIDF] = (
                np.zeros(len(scores)) if product is None else np.asarray(product.sum(1)).ravel()
            )
        low, high = min(0.0, float(scores.min())), float(scores.max())
        alike = scores >= low + ALIKE_SHARE * (high - low)
        resampled = similarity.resampled_spearman(
            [*guesses.values()], scores, resamples=self.config.resamples, seed=self.config.seed
        )
        results: dict[str, dict[str, Any]] = {}
        for (name, guess), drawn in zip(guesses.items(), resampled, strict=True):
            results[name] = {
                "spearman": similarity.spearman(guess, scores),
                "pearson": similarity.pearson(guess, scores),
                "intervals": {"spearman": list(percentile_interval(drawn))},
            }
            if name in vectors:
                near = first[alike], second[alike]
                results[name] |= _of_space(vectors[name], *near, seed=self.config.seed)
        differences = {
            name: _gap(results[MODEL]["spearman"] - results[name]["spearman"], resampled[0] - drawn)
            for name, drawn in zip(guesses, resampled, strict=True)
            if name != MODEL
        }
        return {
            "task": "sts", "results": results, "differences": differences, "summary": ["spearman"],
        }  # fmt: skip

    def _searched(
        self,
        examples: Sequence[SimilarTexts],
        texts: _Texts,
        vectors: Mapping[str, Vectors],
        notes: list[str],
    ) -> dict[str, Any]:
        """The rows of queries and what belongs to them."""
        belongs: dict[str, set[str]] = {}
        for example in examples:
            belongs.setdefault(example.text, set()).add(example.other)
        others = (text for example in examples for text in (example.other, *example.negatives))
        candidates = {text: number for number, text in enumerate(dict.fromkeys(others))}
        queries = list(belongs)
        relevant = [{candidates[text] for text in belongs[query]} for query in queries]
        # A query is no answer to itself.
        itself = [
            {candidates[query]} - relevant[row] if query in candidates else set[int]()
            for row, query in enumerate(queries)
        ]
        of_queries, of_candidates = texts.places(queries), texts.places(list(candidates))

        def scorer(rows: Any) -> Callable[[int, int], Any]:
            answers = rows[of_candidates].T

            def scores(begin: int, stop: int) -> Any:
                product = rows[of_queries[begin:stop]] @ answers
                return product.toarray() if hasattr(product, "toarray") else product

            return scores

        rows: dict[str, Any] = {name: normalized(found) for name, found in vectors.items()}
        if (tfidf := self._tfidf(texts.texts, notes)) is not None:
            rows[TFIDF] = tfidf
        pairs = [
            texts.places([getattr(example, side) for example in examples])
            for side in ("text", "other")
        ]
        options = {"resamples": self.config.resamples, "seed": self.config.seed}
        found = {
            name: similarity.retrieved(scorer(entry), relevant, itself)
            for name, entry in rows.items()
        }
        results: dict[str, dict[str, Any]] = {}
        for name, measured in found.items():
            interval = similarity.mean_interval(measured.ndcg, **options)
            results[name] = {**measured.figures(), "intervals": {"ndcg": list(interval)}}
            if name in vectors:
                results[name] |= _of_space(vectors[name], *pairs, seed=self.config.seed)
        differences = {}
        for name, measured in found.items():
            if name != MODEL:
                more = found[MODEL].ndcg - measured.ndcg
                low, high = similarity.mean_interval(more, **options)
                differences[name] = {"difference": float(more.mean()), "low": low, "high": high}
        return {
            "task": "retrieval",
            "facts": {"queries": len(queries), "candidates": len(candidates)},
            "results": results,
            "differences": differences,
            "summary": ["recall_1", "mrr", "ndcg"],
        }


def _network_of(model: OpenedModel, notes: list[str]) -> Embedder:
    """The embedder of a model; of one that never was one, its body with the mean."""
    if model.folder.purpose.kind == "embed":
        return model.folder.embedder()
    notes.append(
        f"{model.name} was not trained to make vectors: its row is of the mean of hidden states"
    )
    return new_embedder(model.folder, "mean")


def _of_space(
    vectors: Vectors, first: NDArray[np.int64], second: NDArray[np.int64], *, seed: int
) -> dict[str, float]:
    """Alignment of some pairs, where there are any, and uniformity of all texts."""
    aligned = {}
    if len(first):
        aligned["alignment"] = similarity.alignment(vectors[first], vectors[second])
    return {**aligned, "uniformity": similarity.uniformity(vectors, seed)}


def _gap(difference: float, resampled: NDArray[np.float64]) -> dict[str, float]:
    low, high = percentile_interval(resampled)
    return {"difference": difference, "low": low, "high": high}
