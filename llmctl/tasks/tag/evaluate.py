"""Evaluate a tagger on tagged texts, beside others and what is simpler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmctl.data.tables.tagged import TaggedColumns, TaggedText, read_tagged
from llmctl.data.tables.tags import Scheme
from llmctl.data.text import hashing
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import entities, tag_baselines
from llmctl.evaluation.report import MODEL, Figure, Gap, Report, share
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import FOR_LANGUAGE_MODELS, FOR_SOURCES, FOR_WRITERS, Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.tag.predict import TEXTS_SORTED, scheme_in, tag_texts
from llmctl.tasks.training_data import is_training_file, seen_in_training, training_file
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

OF_ENTITIES = (
    share("F1 (95 %)", "f1", "intervals.f1"),
    share("precision", "precision"),
    share("recall", "recall"),
    share("strict F1", "strict_f1"),
    share("words right", "accuracy"),
)
OF_WORDS = (share("words right (95 %)", "accuracy", "intervals.accuracy"),)
EXPLAINED = (
    "F1: of entities whose words and type are all right, as conlleval counts; strict F1: an entity "
    "whose tags don't spell it in full is none"
)
F1_GAP = Gap("F1", "+.1f", 100, " points")


class TagEvaluator(Evaluator):
    """Tagged texts under a tagger."""

    kinds = ("tag",)
    reports = ("tag",)

    def choose(self) -> None:
        """A tagger is compared with taggers."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        if self.files.data is None:
            raise UsageError(f"{self.model.name} is a tagger: give --data FILE with tagged words")
        for other in self.others:
            if other.kind not in self.kinds:
                raise UsageError(f"--compare {other.name} is {other.described}; give a tagger")
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Measure all on the same texts, and the baselines that the training's texts give."""
        texts, scheme = read_tagged(self.path, self._columns(self.model), reporter)
        true = [list(text.tags or ()) for text in texts]
        self._check(true, scheme)
        answers = {name: self._tagged(model, texts) for name, model in self.models.items()}
        notes: list[str] = []
        for model in self.models.values():
            notes += seen_in_training(model, self.path)
        if self.config.baselines:
            answers |= self._baselines(texts, notes)
        how: dict[str, Any] = {"resamples": self.config.resamples, "seed": self.config.seed}
        rows = {
            name: entities.report(true, found, scheme, **how) for name, found in answers.items()
        }
        differences = None
        if scheme != "plain":
            differences = {
                name: entities.f1_difference(true, answers[MODEL], found, **how)
                for name, found in answers.items()
                if name != MODEL
            }
        figures = ("accuracy",) if scheme == "plain" else ("f1", "accuracy")
        return Report(
            task="tag",
            data=str(self.path),
            facts={
                "texts": len(texts),
                "scheme": scheme,
                "training_file": is_training_file(self.model, self.path),
            },
            results=rows,
            differences=differences,
            notes=notes,
            summary={figure: rows[MODEL][figure] for figure in figures},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, the differences, and the model's figures by type."""
        model, plain = report.results[MODEL], report.facts["scheme"] == "plain"
        title = f"{report.model} on {report.facts['texts']:,} texts, {model['words']:,} words"
        yield report.table(title, OF_WORDS if plain else OF_ENTITIES)
        if plain:
            return
        yield EXPLAINED
        yield from report.gaps(F1_GAP)
        columns = [*OF_ENTITIES[1:3], share("F1", "f1"), Figure("entities", "entities", ",")]
        yield ReportTable(
            "by type",
            [column.heading for column in columns],
            [[kind, *(c.cell(row) for c in columns)] for kind, row in model["types"].items()],
        )

    def _columns(self, model: OpenedModel) -> TaggedColumns:
        """Where words and tags are: as given, else as in the training."""
        trained = {k: v for k, v in model.options.items() if k in TaggedColumns.model_fields}
        given = self.config.model_dump(include=set(TaggedColumns.model_fields), exclude_none=True)
        return TaggedColumns(**{**trained, **given})

    def _check(self, true: Sequence[Sequence[str]], scheme: Scheme) -> None:
        """Raises InputError for tags that a model can't answer."""
        labels = set(self.model.folder.labels or [])
        own = scheme_in(self.model.folder)
        if (scheme == "plain") != (own == "plain"):
            raise InputError(
                f"{self.path} has tags of the scheme {scheme}, and {self.model.name} was trained "
                f"on {own} ones; name their column with --label-column"
            )
        unknown = sorted({tag for tags in true for tag in tags} - labels)
        if unknown and len(unknown) == len({tag for tags in true for tag in tags} - {"O"}):
            raise InputError(
                f"{self.path}: {self.model.name} knows none of its tags "
                f"({', '.join(unknown[:5])}); it knows {', '.join(sorted(labels)[:10])}"
            )

    def _tagged(self, model: OpenedModel, texts: Sequence[TaggedText]) -> list[list[str]]:
        network = model.folder.network().to(choose_device(self.config.device))
        found = get_world().map_sharded(
            texts,
            lambda part, first: (tags for tags, _ in tag_texts(network, model.folder, list(part))),
            block=TEXTS_SORTED,
            kind=list[str],
        )
        return list(found)

    def _baselines(
        self, texts: Sequence[TaggedText], notes: list[str]
    ) -> dict[str, list[list[str]]]:
        """Answers of what is simpler, learned from the training's texts."""
        path = training_file(self.model, notes)
        if path is None:
            return {}
        trained = _trained_on(path, self._columns(self.model), self.model.options["validation"])
        words, asked = (
            [[text.word(n) for n in range(len(text.words))] for text in part]
            for part in (trained, texts)
        )
        tags = [text.tags or () for text in trained]
        found = {"most frequent tag": tag_baselines.most_frequent(words, tags, asked)}
        try:
            found["linear on word windows"] = tag_baselines.linear_on_windows(
                words, tags, asked, seed=self.config.seed
            )
        except UsageError as error:
            notes.append(f"linear on word windows left out: {error}")
        return found


def _trained_on(path: Path, columns: TaggedColumns, share: float) -> list[TaggedText]:
    """The texts of a training, those left out that were held out."""
    texts, _ = read_tagged(path, columns, Reporter())
    return [text for text in texts if not hashing.is_held_out(text.text, share)]
