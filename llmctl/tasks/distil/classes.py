"""A student of a classifier: the teacher's probabilities on labelled texts and on others.

    loss = (1 − α) T² KL(teacher ‖ student) + α cross-entropy     where the label is known, else
           T² KL(teacher ‖ student)

Any model that answers with probabilities of labels teaches: a classifier, one of several labels
too, one from a few labels, or a cloze; several answer together (see ensemble.py). They answer once,
before the training.

N texts, B texts of a batch, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.data.tables.encoded import encode_examples
from llmctl.data.tables.labelled import (
    LABEL_NAMES,
    Columns,
    Example,
    column_names,
    labels_of,
    read_examples,
    resolve_columns,
)
from llmctl.data.tables.labelled_files import find_separator, is_held_out
from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, did_you_mean
from llmctl.formats.columns import check_pairs_alike, labelled_record
from llmctl.formats.description import COLUMNS, MAX_LENGTH, MULTI_LABEL, PROBLEM, THRESHOLDS
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.classify import Classifier, parts_on
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.distil.batches import DistilBatch
from llmctl.tasks.distil.config import DistilConfig
from llmctl.tasks.distil.ensemble import LabelTeacher, together
from llmctl.tasks.distil.losses import binary_divergence, divergence
from llmctl.tasks.distil.task import DistilTask
from llmctl.tasks.kept_tensors import kept_tensor
from llmctl.tasks.opened import OpenedModel
from llmctl.training.batches import LossParts, SumAndCount
from llmctl.training.device import Machine
from llmctl.workspace.files import sha256_json
from llmctl.workspace.manifests import InputRecord

TAUGHT = "teacher"
"""The folder of a run that the teachers' answers are kept in."""
WEIGHED = "teacher_weights"
"""The folder of a run that the teachers' weights are kept in, where they are measured."""
NO_LABEL = -1.0
"""The label of a text that has none."""


class ClassDistilTask(DistilTask):
    """Texts with a teacher's probabilities, and a classifier to train on them."""

    peft_task = "SEQ_CLS"
    fields_of_others: ClassVar[tuple[str, ...]] = ("on_policy", "mask_rate", "vectors")
    _teacher_NC: Tensor | None = None

    @classmethod
    def further_inputs(cls, config: DistilConfig) -> list[InputRecord]:
        more = config.data.unlabelled
        return [] if more is None else [data_record(Path(more), "unlabelled")]

    def _read(self, reporter: Reporter) -> None:
        first, *others = self.teachers.models
        self._asked = [LabelTeacher(first)]
        self.labels, self.several = self._asked[0].labels, self._asked[0].several
        for model in others:
            self._asked.append(teacher := LabelTeacher(model, self.labels))
            if teacher.several != self.several:
                raise InputError(
                    f"--teacher {model.name} gives a text {_number_of(teacher)}, and "
                    f"{first.name} {_number_of(self._asked[0])}: teachers of one student are alike"
                )
        self._examples = self._all_examples(reporter)
        self._known_NC = torch.tensor([self._label(example) for example in self._examples])
        self.labelled = int((self._known_NC[:, 0] >= 0).sum())
        base = self.base
        causal = base.spec.kind == "decoder"
        self._tokenizer = (
            base.tokenizer.for_decoder(pairs=True)
            if causal
            else base.tokenizer.for_encoder(segments=base.config.pairs_by_segments)
        )
        self._max_length = min(self.text_length(self.config.data.max_length), self._longest)
        encoded = encode_examples(
            self._tokenizer, self._examples, self._max_length, pad=self._pad if causal else None
        )
        if cut := sum(one.cut for one in encoded):
            reporter.note(
                f"{cut:,} of {len(encoded):,} texts were longer than {self._max_length} tokens and "
                "were cut for the student"
            )
        share = self.config.data.validation
        for row, (example, one) in enumerate(zip(self._examples, encoded, strict=True)):
            part = self._held_out if is_held_out(example, share) else self._train
            part.append(replace(one, label=row))
        if self.teachers.untrained and not self._labelled_to_train:
            raise InputError(
                f"ensemble.weights accuracy: {self.data} has no labelled text to train on, and "
                "teachers are weighed by these; weigh by numbers, or even"
            )

    def _all_examples(self, reporter: Reporter) -> list[Example]:
        options = self.config.data
        reading = options.read_options(reporter.note)
        self._columns = self._resolve(self.data, reading)
        reporter.note(f"{self.data.name}: {self._columns.describe()}")
        if self._columns.label is None:
            reporter.note("no label column: the student learns from its teacher's answers alone")
        for model in self.teachers.models:
            check_pairs_alike(model, self.data, self._columns, options)
        examples = list(read_examples(self.data, self._columns, reading=reading))
        if options.unlabelled is not None:
            further = Columns(self._columns.text, self._columns.text_pair, None)
            more = list(read_examples(Path(options.unlabelled), further, reading=reading))
            if not any(example.text for example in more):
                raise InputError(f"--unlabelled {options.unlabelled} has no texts")
            examples += more
        kept = [example for example in examples if example.text]
        if len(kept) < len(examples):
            reporter.note(f"left out {len(examples) - len(kept):,} rows without text")
        if not kept:
            raise InputError(f"{self.data} has no texts")
        return kept

    def _resolve(self, data: Path, reading: ReadOptions) -> Columns:
        """The columns of the data: the label's where one is named, or called so."""
        options = self.config.data
        label = options.label_column
        if label is None:
            wanted = [options.text_column, options.text_pair_column]
            names = column_names(data, [name for name in wanted if name], reading)
            taken = {*(options.text_column or "").split(","), options.text_pair_column}
            label = next(
                (
                    n
                    for known in LABEL_NAMES
                    for n in names
                    if n.lower() == known and n not in taken
                ),
                None,
            )
        columns = resolve_columns(
            data,
            text_column=options.text_column,
            text_pair_column=options.text_pair_column,
            label_column=label,
            need_label=label is not None,
            reading=reading,
        )
        if label is not None and self.several:
            columns = replace(columns, separator=find_separator(data, columns, reading))
        return columns

    def _label(self, example: Example) -> list[float]:
        """What is true of an example: the number of its class, or a yes or no to each label.

        Raises InputError for a label that its teacher doesn't know."""
        width = len(self.labels) if self.several else 1
        if example.label is None:
            return [NO_LABEL] * width
        names = labels_of(example.label) if self.several else [example.label]
        for name in names:
            if name not in self.labels:
                raise InputError(
                    f"{example.source}: {self.teacher.name} has no class "
                    f"{name!r}{did_you_mean(name, self.labels)}; it has "
                    f"{', '.join(self.labels[:8])}: mend the label, or leave --label-column out"
                )
        if self.several:
            return [float(label in names) for label in self.labels]
        return [float(self.labels.index(names[0]))]

    @property
    def introduction(self) -> str:
        known = f", {self.labelled:,} of {len(self._examples):,} with a label"
        return super().introduction + known

    @property
    def facts(self) -> dict[str, Any]:
        several = {"teachers": [model.name for model in self.teachers.models]}
        return {
            **super().facts,
            **(several if len(self._asked) > 1 else {}),
            "classes": len(self.labels),
            "labelled": self.labelled,
            COLUMNS: labelled_record(self._columns),
        }

    @property
    def losses(self) -> tuple[str, ...]:
        return ("distil_loss", "label_loss") if self.labelled else ("distil_loss",)

    @property
    def _keeps_head(self) -> bool:
        """Whether the student begins with its teacher's output layer."""
        return self.config.layers is not None and self.teacher.kind == "classify"

    @property
    def new_parts(self) -> tuple[str, ...]:
        own = () if self._keeps_head else parts_on(self.base.spec.build, self.base.config)
        return (*own, *super().new_parts)

    def _student(self) -> Classifier:
        dropout = self.config.dropout
        if not self._keeps_head:
            return self.base.new_classifier(len(self.labels), dropout=dropout, scratch=self.scratch)
        model: Classifier = self.base.with_head("classify", dropout=dropout)
        model.dropout.p = dropout
        return model

    def before_training(self, folder: Path, machine: Machine, reporter: Reporter) -> None:
        share_ENC = kept_tensor(
            folder / TAUGHT,
            "probabilities",
            self._digest(self.teachers.models),
            lambda: torch.stack([t.probabilities(self._examples, reporter) for t in self._asked]),
            machine,
            reporter,
            "the teachers' answers",
        )
        weights = self.config.ensemble.weights
        if weights == "accuracy":
            weight_E = kept_tensor(
                folder / WEIGHED,
                "accuracy",
                self._digest([*self.teachers.models, *self.teachers.untrained]),
                self._right_before,
                machine,
                reporter,
                "the teachers' weights",
            )
        else:
            each = weights if isinstance(weights, tuple) else [1.0] * len(self._asked)
            weight_E = torch.tensor(each, dtype=torch.float64)
        self._weight_E = weight_E / weight_E.sum()
        if len(self._asked) > 1:
            told = (f"{name} {share:.1%}" for name, share in self._shares.items())
            reporter.note(f"teachers weigh {', '.join(told)}")
        mean = self.config.ensemble.mean
        self._teacher_NC = together(share_ENC, self._weight_E, mean, several=self.several)

    def _digest(self, models: Sequence[OpenedModel]) -> str:
        """The digest of all that decides what some models answer."""
        hashed = hashlib.sha256()
        for example in self._examples:
            for text in (example.text, example.text_pair):
                hashed.update(f"{'-' if text is None else len(text)}:{text or ''}".encode())
        return sha256_json([*(model.folder.digest() for model in models), hashed.hexdigest()])

    @property
    def _labelled_to_train(self) -> list[Example]:
        rows = [self._examples[int(one.label)] for one in self._train]
        return [row for row in rows if row.label is not None]

    def _right_before(self) -> Tensor:
        """How many of the labelled texts each template got right before it was trained, (E,).
        Raises InputError where none got any."""
        rows = self._labelled_to_train
        pairs = zip(self._asked, self.teachers.untrained, strict=True)
        weight_E = torch.tensor(
            [teacher.right_before(model, rows) for teacher, model in pairs], dtype=torch.float64
        )
        if not weight_E.any():
            raise InputError(
                f"ensemble.weights accuracy: before they were trained the teachers got none of "
                f"the {len(rows):,} labelled texts right; weigh by numbers, or even"
            )
        return weight_E

    @property
    def _shares(self) -> dict[str, float]:
        """How much of the answers is each teacher's."""
        names = [model.name for model in self.teachers.models]
        return dict(zip(names, self._weight_E.tolist(), strict=True))

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"teachers": self._shares} if len(self._asked) > 1 else {}

    def loss(self, model: Classifier, batch: DistilBatch) -> LossParts:
        """The loss in nats. A text whose label isn't known has its teacher's part alone."""
        assert self._teacher_NC is not None, "before_training computes it"
        objective = self.config.objective
        rows_B = batch.labels_B.cpu()
        device = batch.input_ids_BT.device
        teacher_BC = self._teacher_NC[rows_B].to(device)
        known_BC = self._known_NC[rows_B].to(device)
        with self.inside.watching(model.body, teacher=False) as ours:
            logits_BC = model(*batch.inputs).float()
        labelled_B = known_BC[:, 0] >= 0
        share_B = torch.where(labelled_B, objective.labels, 0.0)
        told = logits_BC.detach()
        if self.several:
            apart_B = binary_divergence(logits_BC, teacher_BC, temperature=objective.temperature)
            nll_B = F.binary_cross_entropy_with_logits(
                logits_BC, known_BC.clamp(min=0), reduction="none"
            ).mean(1)
            agreed = ((told > 0) == (teacher_BC > 0)).float().mean(1).sum()
            right_B = ((told > 0) == (known_BC > 0)).float().mean(1)
        else:
            apart_B = divergence(
                logits_BC,
                teacher_BC,
                kind=objective.divergence,
                temperature=objective.temperature,
                jsd_weight=objective.jsd_weight,
            )
            class_B = known_BC[:, 0].long().clamp(min=0)
            nll_B = F.cross_entropy(logits_BC, class_B, reduction="none")
            agreed = (told.argmax(-1) == teacher_BC.argmax(-1)).sum()
            right_B = (told.argmax(-1) == class_B).float()
        count = len(batch)
        losses = {"distil_loss": SumAndCount(((1 - share_B) * apart_B).sum(), count)}
        figures = {"agreement": SumAndCount(agreed, count)}
        if self.labelled:
            losses["label_loss"] = SumAndCount((share_B * nll_B).sum(), count)
            name = "label_accuracy" if self.several else "accuracy"
            figures[name] = SumAndCount((right_B * labelled_B).sum(), int(labelled_B.sum()))
        return LossParts({**losses, **self.inside_losses(model, ours, batch)}, figures)

    def _write(self, folder: Path, model: nn.Module) -> None:
        extra: dict[str, Any] = {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            PROBLEM: "single_label_classification",
            "classifier_dropout": self.config.dropout,
            "pad_token_id": self._pad,
            MAX_LENGTH: self._max_length,
            COLUMNS: labelled_record(self._columns),
        }
        if self.several:
            each = [teacher.thresholds for teacher in self._asked]
            thresholds = (self._weight_E @ torch.tensor(each, dtype=torch.float64)).tolist()
            extra |= {PROBLEM: MULTI_LABEL, THRESHOLDS: thresholds}
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return self.base.spec.export_head("classify", model)


def _number_of(teacher: LabelTeacher) -> str:
    return "any number of labels" if teacher.several else "one label"
