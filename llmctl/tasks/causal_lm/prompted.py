"""Evaluate a language model as a classifier that was never finetuned: a template asks, labels
written behind it are the answers, solved examples may stand before (Brown et al. 2020).

The likeliest answer is the prediction; the softmax of the answers' scores are its probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.benchmarks.base import accuracy
from llmctl.evaluation.choices import SCORES
from llmctl.evaluation.report import MODEL, Gap, Report, share
from llmctl.formats.columns import labelled_columns
from llmctl.inference.prompts import Shots, find_columns, read_rows
from llmctl.inference.templates import (
    LABEL,
    PromptRow,
    PromptTemplate,
    read_template,
    read_templates,
)
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.asking import Asked, Asker, answers, probabilities_of, search
from llmctl.tasks.causal_lm.benchmarks import WAYS
from llmctl.tasks.causal_lm.scoring import CausalAsker, LanguageEvaluator
from llmctl.tasks.classify.evaluate import (
    ACCURACY_GAP,
    EXPLAINED,
    FIGURES,
    ClassTable,
    joined,
    options_for,
    probabilities,
)
from llmctl.tasks.evaluation import EvaluateConfig, Files, check_asked
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.training_data import seen_in_training, training_examples


class PromptEvaluator(LanguageEvaluator):
    """The rows of a file, asked by a template."""

    reports = ("prompt",)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether there is a template, or some to choose from."""
        return files.template is not None or files.templates is not None

    def choose(self) -> None:
        """Find the rows; classifiers may stand beside language models."""
        super().choose()
        self._askers: dict[str, Asker] = {}
        check_asked(self.files)
        if self.config.task is not None:
            raise UsageError("--template and --task are two ways of asking; give one of them")
        self.data = data_record(self.path)
        if self.files.dev is not None and data_record(self.files.dev).digest == self.data.digest:
            raise UsageError(
                f"--dev {self.files.dev} is what is measured on, too: a template that is chosen "
                "there looks better than it is; give other rows"
            )

    def run(self, reporter: Reporter) -> Report:
        """Ask language models with each number of solved examples, and classifiers as they are."""
        template, tried = self._template(reporter)
        asked = self._asked(template, reporter)
        gold = asked.gold
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
            for count in self.config.shots:
                row = _row_name(name, count)
                shown = _row_name(model.name, count)
                outcomes, lost = answers(self._asker(model), shown, count, asked, shots, reporter)
                notes += lost
                by_way = {way: probabilities_of(outcomes, way) for way in SCORES}
                table.add(row, by_way[self.config.score])
                ways[row] = {way: accuracy(p.argmax(-1) == gold) for way, p in by_way.items()}
        if self.config.baselines:
            notes += self._add_baselines(table, asked)
        best = _row_name(MODEL, max(self.config.shots))
        return Report(
            task="prompt",
            data=str(self.path),
            facts={
                "template": template.file.input if tried else str(template.path),
                **({"templates": tried} if tried else {}),
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
        if "templates" in facts:
            yield searched(facts["templates"])
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

    def asker(self, model: OpenedModel) -> Asker:
        """A model that is ready to be asked."""
        return CausalAsker(model, self.config.device, self.config.dtype)

    def _asker(self, model: OpenedModel) -> Asker:
        if model.name not in self._askers:
            self._askers[model.name] = self.asker(model)
        return self._askers[model.name]

    def candidates(self) -> list[PromptTemplate]:
        """The template that is given, or those to choose from."""
        if self.files.templates is not None:
            return read_templates(self.files.templates, self.config.labels)
        assert self.files.template is not None
        return [read_template(self.files.template, self.config.labels)]

    def _template(self, reporter: Reporter) -> tuple[PromptTemplate, list[dict[str, Any]]]:
        """The template to ask by: the one that is given, or of several that which is best on the
        rows of ``--dev``; and what each of them came to there."""
        candidates = self.candidates()
        asker = self._asker(self.model)
        for template in candidates:
            asker.check(template)
        if self.files.templates is None:
            return candidates[0], []
        assert self.files.dev is not None
        dev, count = self.files.dev, max(self.config.shots)

        def right_of(template: PromptTemplate) -> NDArray[np.bool_]:
            asked = self._asked(template, Reporter(), dev)
            shots = Shots(template, asked.solved, self.config.seed)
            outcomes, _ = answers(asker, self.model.name, count, asked, shots, Reporter())
            found_NC = probabilities_of(outcomes, self.config.score)
            right_N: NDArray[np.bool_] = found_NC.argmax(-1) == asked.gold
            return right_N

        best, tried = search(candidates, right_of, reporter)
        reporter.note(f"chosen on {best.total:,} rows of {dev.name}: {best.template.file.input!r}")
        return best.template, tried

    def _asked(
        self, template: PromptTemplate, reporter: Reporter, path: Path | None = None
    ) -> Asked:
        """The questions of the data, or of another file, and the solved ones. Raises UsageError or
        InputError where the template doesn't go with them."""
        solved: list[PromptRow] = []
        if self.files.examples is not None:
            solved, _ = self._rows(self.files.examples, template, reporter)
        elif any(self.config.shots):
            raise UsageError(
                f"--shots {max(self.config.shots)}: give the file that examples are drawn from, "
                "--examples FILE"
            )
        rows, columns = self._rows(path or self.path, template, reporter)
        leaks = sorted(template.input_fields & {LABEL, columns.label})
        if leaks:
            raise UsageError(
                f"--template {template.path}: the input asks for {leaks[0]}, which is what is to "
                "be told; write it in the target alone"
            )
        asked = Asked(template, rows, solved, self._labels(template, [*rows, *solved]))
        asked.check_choices()
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

    @property
    def trained(self) -> OpenedModel | None:
        """What was trained on labels, by whose texts the baselines learn."""
        return self._classifier

    def _examples(self, model: OpenedModel, asked: Asked, reporter: Reporter) -> list[Example]:
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

    def _add_baselines(self, table: ClassTable, asked: Asked) -> list[str]:
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
        trained = self.trained
        if trained is None:
            return ["baselines left out: give what they are trained on, --examples FILE"]
        notes: list[str] = []
        data = training_examples(trained, notes)
        if data is None:
            return notes
        return table.add_baselines(
            list(map(joined, self._examples(trained, asked, Reporter()))),
            list(map(joined, data.trained)),
            asked.numbers([example.label for example in data.trained]),
        )


def searched(tried: Sequence[dict[str, Any]]) -> ReportTable:
    """What each template came to where one was chosen."""
    return ReportTable(
        f"templates on {tried[0]['total']:,} rows for development; the best of them was taken (*)",
        ["accuracy (95 %)"],
        [
            [
                f"{'*' if one['chosen'] else ' '} {' '.join(one['template'].split())}",
                share("", "accuracy", "interval").cell(one),
            ]
            for one in tried
        ],
    )


def _row_name(name: str, count: int) -> str:
    return f"{name}, {count} shot{'' if count == 1 else 's'}"
