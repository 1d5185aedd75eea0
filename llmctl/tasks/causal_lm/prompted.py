"""Evaluate a language model as a classifier that was never finetuned: a template asks, labels
written behind it are the answers, solved examples may stand before (Brown et al. 2020).

The likeliest answer is the prediction; the softmax of the answers' scores are its probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.benchmarks.base import accuracy
from llmctl.evaluation.choices import SCORES, ChoiceScores, Question
from llmctl.evaluation.report import MODEL, Gap, Report, share
from llmctl.formats.columns import labelled_columns
from llmctl.inference.prompts import (
    LABEL,
    PromptRow,
    PromptTemplate,
    Shots,
    find_columns,
    read_rows,
    read_template,
    write_prompts,
)
from llmctl.inference.scoring import Scorer, encode_query, truncate_context
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.benchmarks import WAYS
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator, ask
from llmctl.tasks.classify.evaluate import (
    ACCURACY_GAP,
    EXPLAINED,
    FIGURES,
    ClassTable,
    joined,
    options_for,
    probabilities,
)
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.training_data import seen_in_training, training_examples


@dataclass(frozen=True)
class _Asked:
    """The questions of a file."""

    template: PromptTemplate
    rows: list[PromptRow]
    solved: list[PromptRow]
    """Rows of ``--examples``, from which those in prompts are drawn."""
    labels: list[str]

    def numbers(self, labels: Sequence[str | None]) -> NDArray[np.int64]:
        """Labels by their numbers."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        return np.array([number_of[label or ""] for label in labels])

    def choices(self, row: PromptRow) -> tuple[str, ...]:
        """The answers that a model chooses from."""
        return tuple(self.template.answer(row, label) for label in self.labels)


class PromptEvaluator(LanguageEvaluator):
    """The rows of a file, asked by a template."""

    reports = ("prompt",)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether there is a template."""
        return files.template is not None

    def choose(self) -> None:
        """Find the rows; classifiers may stand beside language models."""
        super().choose()
        if self.files.data is None:
            raise UsageError(f"--template {self.files.template} asks about --data FILE; give it")
        if self.config.task is not None:
            raise UsageError("--template and --task are two ways of asking; give one of them")
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Ask language models with each number of solved examples, and classifiers as they are."""
        asked = self._asked(reporter)
        gold = asked.numbers([row.label for row in asked.rows])
        table = ClassTable(gold, asked.labels, self.config)
        shots = Shots(asked.template, asked.solved, self.config.seed)
        notes: list[str] = []
        ways: dict[str, dict[str, Any]] = {}
        for name, model in self.models.items():
            if not self.predicts_text(model):
                examples = self._examples(model, asked, reporter)
                notes += seen_in_training(model, self.path)
                probabilities_NC = probabilities(
                    model, examples, asked.labels, self.config.device, notes
                )
                table.add(name, probabilities_NC)
                continue
            scorer = self.scorer(model)
            for count in self.config.shots:
                row = _row_name(name, count)
                outcomes = _answers(model, scorer, count, asked, shots, reporter, notes)
                by_way = {way: _probabilities(outcomes, way) for way in SCORES}
                table.add(row, by_way[self.config.score])
                ways[row] = {way: accuracy(p.argmax(-1) == gold) for way, p in by_way.items()}
        if self.config.baselines:
            notes += self._add_baselines(table, asked)
        best = _row_name(MODEL, max(self.config.shots))
        return Report(
            task="prompt",
            data=str(self.path),
            facts={
                "template": str(self.files.template),
                "examples": len(asked.rows),
                "labels": asked.labels,
                "shots": list(self.config.shots),
                "score": self.config.score,
                "chance": 1 / len(asked.labels),
                "by_score": ways,
                "row": best,
            },
            results=table.rows,
            differences=table.differences(best),
            notes=notes,
            summary=table.summary(best),
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows as a classifier's, and what each way of choosing comes to."""
        facts = report.facts
        yield report.table(
            f"{report.model} asked by {facts['template']} about {facts['examples']:,} examples, "
            f"{len(facts['labels'])} labels",
            FIGURES,
        )
        yield EXPLAINED
        ways = [share(WAYS[way], f"{way}.accuracy") for way in SCORES]
        yield ReportTable(
            f"accuracy by how the answer is chosen (above: {WAYS[facts['score']]}); "
            f"chance {facts['chance']:.1%}",
            [way.heading for way in ways],
            [
                [report.shown(name), *(way.cell(row) for way in ways)]
                for name, row in facts["by_score"].items()
            ],
        )
        of = f"{ACCURACY_GAP.of} of {report.shown(facts['row'])}"
        yield from report.gaps(Gap(of, ACCURACY_GAP.form, ACCURACY_GAP.scale, ACCURACY_GAP.unit))

    def _asked(self, reporter: Reporter) -> _Asked:
        """The questions, and the solved ones. Raises UsageError or InputError where the template
        doesn't go with them."""
        assert self.files.template is not None
        template = read_template(self.files.template)
        solved: list[PromptRow] = []
        if self.files.examples is not None:
            solved, _ = self._rows(self.files.examples, template, reporter)
        elif any(self.config.shots):
            raise UsageError(
                f"--shots {max(self.config.shots)}: give the file that examples are drawn from, "
                "--examples FILE"
            )
        rows, columns = self._rows(self.path, template, reporter)
        leaks = sorted(template.input_fields & {LABEL, columns.label})
        if leaks:
            raise UsageError(
                f"--template {template.path}: the input asks for {leaks[0]}, which is what is to "
                "be told; write it in the target alone"
            )
        asked = _Asked(template, rows, solved, self._labels(template, [*rows, *solved]))
        for row in (*rows, *solved):
            answers = [template.answer(row, row.label), *asked.choices(row)]
            if len(set(answers)) < len(asked.labels):
                raise InputError(
                    f"{row.source}: --template {template.path} writes two labels alike "
                    f"({answers[0]!r}); put {{{{ label }}}} into its target, and a word for each "
                    "into its [verbalizer]"
                )
        return asked

    def _rows(
        self, path: Path, template: PromptTemplate, reporter: Reporter
    ) -> tuple[list[PromptRow], Columns]:
        """The labelled rows of a file. Raises InputError if there are none."""
        reading = self.read_options(reporter)
        columns = find_columns(
            path,
            template,
            text_column=self.config.text_column,
            text_pair_column=self.config.text_pair_column,
            label_column=self.config.label_column,
            need_label=True,
            reading=reading,
        )
        reporter.note(f"{path.name}: {columns.describe()}")
        rows = list(read_rows(path, template, columns, reading=reading))
        if not rows:
            raise InputError(f"{path} has no rows; give a file with examples")
        return rows, columns

    def _labels(self, template: PromptTemplate, rows: Sequence[PromptRow]) -> list[str]:
        """The labels to choose from: those of the template, of a classifier beside the model, or
        of the rows. Raises InputError where they don't go together."""
        labels_seen = sorted({row.label or "" for row in rows})
        classifier = self._classifier
        labels = (
            list(template.verbalizer) or (classifier and classifier.folder.labels) or labels_seen
        )
        if len(labels) < 2:
            raise InputError(
                f"{self.path} has one label only ({labels[0]!r}), so there is nothing to choose "
                "from; name all of them in the template's [verbalizer]"
            )
        if classifier is not None and (unknown := sorted({*labels_seen} - {*labels})):
            raise InputError(
                f"{self.path} has labels that {classifier.name} does not know "
                f"({', '.join(unknown[:5])}); it knows {', '.join(labels[:10])}"
            )
        return labels

    @property
    def _classifier(self) -> OpenedModel | None:
        """The first classifier that the model is compared with."""
        return next((other for other in self.others if not self.predicts_text(other)), None)

    def _examples(self, model: OpenedModel, asked: _Asked, reporter: Reporter) -> list[Example]:
        """The rows of the questions for a classifier, with the columns of its finetuning. Raises
        InputError if they have other labels there."""
        reading = self.config.read_config(model.options).read_options(reporter.note)
        columns = labelled_columns(
            model,
            self.path,
            options_for(self.config),
            need_label=True,
            reading=reading,
            note=lambda text: reporter.note(f"{model.name}: {text}"),
        )
        examples = list(read_examples(self.path, columns, reading=reading))
        if [example.label for example in examples] != [row.label for row in asked.rows]:
            raise InputError(
                f"{self.path} has other labels by the columns that {model.name} was finetuned with "
                f"({columns.describe()}); give --text-column and --label-column"
            )
        return examples

    def _add_baselines(self, table: ClassTable, asked: _Asked) -> list[str]:
        """What is simpler, trained on the examples of prompts or on what a classifier beside it
        was."""
        if asked.solved:
            texts, train_texts = (
                [asked.template.question(row) for row in rows]
                for rows in (asked.rows, asked.solved)
            )
            return table.add_baselines(
                texts, train_texts, asked.numbers([row.label for row in asked.solved])
            )
        classifier = self._classifier
        if classifier is None:
            return ["baselines left out: give what they are trained on, --examples FILE"]
        notes: list[str] = []
        data = training_examples(classifier, notes)
        if data is None:
            return notes
        return table.add_baselines(
            list(map(joined, self._examples(classifier, asked, Reporter()))),
            list(map(joined, data.trained)),
            asked.numbers([example.label for example in data.trained]),
        )


def _row_name(name: str, count: int) -> str:
    return f"{name}, {count} shot{'' if count == 1 else 's'}"


def _answers(
    model: OpenedModel,
    scorer: Scorer,
    count: int,
    asked: _Asked,
    shots: Shots,
    reporter: Reporter,
    notes: list[str],
) -> list[ChoiceScores]:
    """What a model makes of each row with so many examples before it."""
    template, tokenizer = asked.template, model.folder.tokenizer
    shown = _row_name(model.name, count)

    def fits(row: PromptRow, prompt: str) -> bool:
        query = encode_query(tokenizer, prompt, asked.choices(row))
        return not truncate_context(query, scorer.longest)[1]

    prompts = list(write_prompts(template, asked.rows, shots, count, fits))
    questions = [
        Question(
            prompt.text,
            asked.choices(prompt.row),
            asked.labels.index(prompt.row.label or ""),
            template.prior,
            prompt.row.source,
        )
        for prompt in prompts
    ]
    dropped = [prompt.dropped for prompt in prompts]
    outcomes, cut = [], 0
    for outcome, lost in ask(scorer, tokenizer, questions):
        outcomes.append(outcome)
        cut += lost > 0
        reporter.progress(f"prompts to {shown}", len(outcomes), len(questions))
    if any(dropped):
        notes.append(
            f"{shown}: in {np.count_nonzero(dropped):,} of {len(questions):,} prompts not all "
            f"examples fit into the {scorer.longest} tokens that the model reads at once; there "
            f"are {count - np.mean(dropped):.1f} on average"
        )
    if cut:
        notes.append(
            f"{shown}: {cut:,} of {len(questions):,} prompts are longer even without examples than "
            f"the {scorer.longest} tokens that the model reads at once, and lost their beginning"
        )
    return outcomes


def _probabilities(outcomes: Sequence[ChoiceScores], way: str) -> NDArray[np.float64]:
    scores = np.array([SCORES[way](outcome) for outcome in outcomes])
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)
