"""Finetune a masked language model to fill a template's mask with the label's word
(pattern-exploiting training, Schick and Schütze 2021). No layer is new, so a few labels do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import is_held_out, with_label
from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import CLOZE, COLUMNS, MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.inference.cloze import encode_cloze, encode_words
from llmctl.inference.prompts import read_rows
from llmctl.inference.templates import (
    LABEL,
    MASK_PLACE,
    TEXT,
    TEXT_PAIR,
    PromptRow,
    Verbalizer,
    is_written_out,
    read_template,
)
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.cloze.batches import ClozeBatch, ClozeExample, collate, example_of
from llmctl.tasks.cloze.loss import LabelWords, cloze_loss
from llmctl.tasks.cloze.template import template_record
from llmctl.tasks.examples import ExamplesData, ExamplesTask, labels_in_order
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.workspace.manifests import InputRecord


class ClozeConfig(FinetuneConfig):
    """Everything that decides the finetuning of a masked language model by a cloze."""

    task: Literal["cloze"] = "cloze"
    """What is learned."""
    template: str = ""
    """The template's file, or the template written out: ``Topic: {mask}. {text}``."""
    labels: Verbalizer = Field({})
    """How labels are written: 1=world,2=sports, or their words alone. Unset: as the template's
    verbalizer says, or as they are."""
    data: ExamplesData = ExamplesData()
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )


class ClozeTask(ExamplesTask):
    """Labelled rows, written by a template, as batches."""

    config: ClozeConfig
    config_type = ClozeConfig
    backbones = ("encoder",)
    # PEFT has no name for filling masks, and that of classifiers asks for a layer of classes.
    peft_task: ClassVar[str] = "FEATURE_EXTRACTION"
    lacks = "and has no head that fills masks; --task cloze needs a masked language model"

    def __init__(self, data: Path, base: Pretrained, config: ClozeConfig, **more: Any) -> None:
        if not config.template:
            raise UsageError(
                "--task cloze needs --template, a file or written out: 'Topic: {mask}. {text}'"
            )
        self.template = read_template(config.template, config.labels)
        if not self.template.is_cloze:
            raise InputError(
                f"--template {config.template} has no mask; write {{ mask }} where the label's "
                "word is to stand"
            )
        if not self.template.fields:
            raise InputError(
                f"--template {config.template} has nothing of a row in it, so that all would be "
                "asked the same; write {text} where the text is to stand"
            )
        if further := sorted(self.template.target_fields - {LABEL}):
            raise InputError(
                f"--template {config.template}: its target asks for {further[0]}, and the words to "
                "be learned are the same for all rows; let it be of the label alone"
            )
        super().__init__(data, base, config, **more)

    @classmethod
    def kinds(cls, config: Any) -> tuple[str, ...]:
        return ("masked_lm",)

    @classmethod
    def further_inputs(cls, config: Any) -> list[InputRecord]:
        if not config.template or is_written_out(config.template):
            return []
        return [data_record(Path(config.template), "template")]

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        columns = self._columns
        if leaks := sorted(self.template.input_fields & {LABEL, columns.label}):
            raise UsageError(
                f"--template {self.template.path}: the input asks for {leaks[0]}, which is what is "
                "to be learned; write {{ mask }} there"
            )
        rows = [
            row for row in read_rows(self.data, self.template, columns, reading=reading)
            if row.values.get(TEXT)
        ]  # fmt: skip
        examples = [_example(row) for row in rows]
        kept = {example.source for example in with_label(examples, (), reporter)}
        self._rows = [row for row in rows if row.source in kept]
        examples = [example for example in examples if example.source in kept]
        if not examples:
            raise InputError(f"{self.data} has no labelled texts")
        return examples

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        self._counts = Counter(example.label or "" for example in examples)
        self.labels = list(self.template.verbalizer) or labels_in_order(self._counts)
        if len(self.labels) < 2:
            raise InputError(
                f"the label column has one class only ({self.labels[0]!r}); name the others with "
                "--labels, or check --label-column"
            )
        # Words that can't be written, or are alike, are told by the first row.
        self._choices = [self.template.answer(self._rows[0], label) for label in self.labels]
        return {label: number for number, label in enumerate(self.labels)}

    def _encoded(
        self, examples: Sequence[Example], numbers: Mapping[str, float]
    ) -> tuple[list[ClozeExample], list[ClozeExample]]:
        tokenizer, parts = self._tokenizer, (list[ClozeExample](), list[ClozeExample]())
        if "mask" not in tokenizer.special:
            raise InputError("the tokenizer has no token for a mask; take a model with one")
        first = self.template.question(self._rows[0]).partition(MASK_PLACE)[0]
        source = f"--template {self.template.path}"
        spaced = first.endswith(" ")
        self.words = LabelWords(
            encode_words(tokenizer, self._choices, spaced=spaced, source=source)
        )
        self._cut = 0
        for row, example in zip(self._rows, examples, strict=True):
            self.template.answer(row, row.label)  # a label without a word is told with its row
            query = encode_cloze(
                tokenizer,
                self.template.question(row),
                self._choices,
                max_length=self._max_length,
                source=row.source,
            )
            self._cut += query.cut > 0
            made = example_of(query, tokenizer.special["mask"], int(numbers[row.label or ""]))
            parts[is_held_out(example, self.config.data.validation)].append(made)
        return parts

    def _tell_cut(self, reporter: Reporter) -> None:
        if self._cut:
            reporter.note(
                f"{self._cut:,} of {len(self._rows):,} texts were longer than the "
                f"{self._max_length} tokens that are read, and lost what was farthest from the mask"
            )

    @property
    def new_parts(self) -> tuple[str, ...]:
        return ()

    @property
    def introduction(self) -> str:
        words = ", ".join(
            f"{label} is written {word!r}" if label != word else label
            for label, word in list(zip(self.labels, self._choices, strict=True))[:8]
        )
        return (
            f"{self.train_examples} examples to train on, {self.held_out_examples} held out; "
            f"labels: {words}{', …' if len(self.labels) > 8 else ''}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"classes": len(self.labels), COLUMNS: labelled_record(self._columns)}

    def network(self) -> MaskedLM:
        dropout = self.config.dropout
        if self.scratch:
            return MaskedLM(self.base.backbone(dropout=dropout, scratch=True), next_sentence=False)
        model: MaskedLM = self.base.with_head("masked_lm", dropout=dropout)
        return model

    def loss(self, model: MaskedLM, batch: ClozeBatch) -> LossParts:
        return cloze_loss(model, batch, self.words)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        # On few examples accuracy has ties, which the loss breaks.
        return {**values, "criterion": 1.0 - values["accuracy"] + 1e-3 * values["loss"]}

    def _collated(self, examples: Sequence[Any]) -> TensorBatch:
        return collate(examples, self._pad)

    def write(self, folder: Path, model: nn.Module) -> None:
        # With each label's word, so that the folder says all of them.
        written = dict(zip(self.labels, self._choices, strict=True))
        record = {**template_record(self.template), "verbalizer": written}
        extra = {
            CLOZE: {**record, "target": "{{ label }}"},
            MAX_LENGTH: self._max_length,
            COLUMNS: labelled_record(self._columns),
        }
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}


def _example(row: PromptRow) -> Example:
    pair = row.values.get(TEXT_PAIR)
    return Example(str(row.values[TEXT]), pair, row.label, row.source)
