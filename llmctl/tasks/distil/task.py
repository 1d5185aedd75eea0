"""Distillation: a student learns what its teacher answers (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network").

What the teacher does decides how: classes.py for classifiers, vectors.py for embedders,
language.py, with masked.py and causal.py, for language models. Answers to texts as a whole don't
ask for one vocabulary: the teacher gives them once, before the training, and they are kept beside
the run. Tokens, and what models are like inside, are compared place by place, so there both have
the same pieces.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.data.tables.encoded import EncodedExample, pad_token
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.models.spec import Backbone
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.distil.batches import DistilBatch, padded, read
from llmctl.tasks.distil.config import DistilConfig
from llmctl.tasks.distil.ensemble import Teachers
from llmctl.tasks.distil.inside import Inside, InsideLoss
from llmctl.tasks.distil.student import check_no_wider, same_pieces, student_of
from llmctl.tasks.examples import EVAL_BATCH_SIZE
from llmctl.tasks.finetuning import FinetuningTask, Method, careful_peak_rate
from llmctl.training.batches import SumAndCount, TensorBatch
from llmctl.workspace.artefacts import Workspace

PROJECTIONS = "distil_projections"
"""What makes a student's hidden states as wide as its teacher's, in its network while it learns."""


class DistilTask(FinetuningTask):
    """A teacher, texts, and a student to train on what the one says of the other."""

    config: DistilConfig
    config_type = DistilConfig
    peft_task: ClassVar[str] = "FEATURE_EXTRACTION"
    starts_alone = True
    fields_of_others: ClassVar[tuple[str, ...]] = ()
    """Fields of the objective that are for teachers of other kinds."""

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: DistilConfig,
        *,
        start: str,
        reporter: Reporter,
        teachers: Teachers,
    ) -> None:
        """teachers: what is learned from. Raises ConfigError for a student that is wider,
        InputError where both have to have one vocabulary and have not."""
        super().__init__(data, base, config, start=start, scratch=config.arch is not None)
        self.teachers = teachers
        self.teacher = teacher = teachers.models[0]
        folder = teacher.folder
        for name in self.fields_of_others:
            if getattr(config.objective, name) != type(config.objective).model_fields[name].default:
                raise UsageError(
                    f"objective.{name} is not for --teacher {teacher.name}, which is "
                    f"{teacher.described}; leave it out"
                )
        if config.data.unlabelled is not None and not self.further_inputs(config):
            raise UsageError(
                f"data.unlabelled is for a classifier's student, and --teacher {teacher.name} is "
                f"{teacher.described}; leave it out, and give all text with --data"
            )
        for model in teachers.models:
            check_no_wider(base, model.folder, model.name, f"the student ({self.start})")
        if self.by_token or config.looks_inside:
            what = "tokens are compared" if self.by_token else "hidden and attention compare them"
            if not same_pieces(base, folder):
                raise InputError(
                    f"the student ({self.start}) has another vocabulary than --teacher "
                    f"{teacher.name}, and {what} place by place; take a student with the teacher's "
                    "(--layers N, or --arch and --preset)"
                    + ("" if self.by_token else ", or leave hidden and attention out")
                )
        self.inside = InsideLoss(config.objective, base.config, folder.config)
        self._pad = pad_token(base.tokenizer)
        self._teacher_network: nn.Module | None = None
        self._train: list[EncodedExample] = []
        self._held_out: list[EncodedExample] = []
        self._longest = base.longest_text
        if config.looks_inside:
            self._longest = min(self._longest, folder.longest_text)
        self._read(reporter)
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        if not self._train:
            raise InputError("every text fell to validation; give more texts")
        lengths = np.asarray([len(example.ids) for example in self._train])
        size, seed = config.training.batch_size, config.seed
        self._epoch = lru_cache(maxsize=2)(partial(bucketed, lengths, size, seed))

    by_token: ClassVar[bool] = False
    """Whether tokens are what is compared, so that both must have the same pieces."""

    @classmethod
    def check_start(cls, config: DistilConfig, start: str) -> None:
        for name in ("layers", "arch"):
            if (value := getattr(config, name)) is not None:
                raise UsageError(
                    f"--{name} {value} and --from {start} both say which network the student is; "
                    "leave one of them out"
                )

    @classmethod
    def open_teachers(cls, workspace: Workspace, config: DistilConfig) -> Teachers:
        """Those that are named: see ``Teachers.open``."""
        return Teachers.open(workspace, config)

    @classmethod
    def with_teachers(cls, teachers: Teachers) -> Any:
        """What teaches as a model of its kind does. Raises InputError for one that can't be learned
        from, or not beside another."""
        from llmctl.tasks.distil.causal import CausalDistilTask
        from llmctl.tasks.distil.classes import ClassDistilTask
        from llmctl.tasks.distil.masked import MaskedDistilTask
        from llmctl.tasks.distil.vectors import VectorDistilTask

        ways = {
            "classify": ClassDistilTask, "setfit": ClassDistilTask, "cloze": ClassDistilTask,
            "embed": VectorDistilTask, "masked_lm": MaskedDistilTask,
            "causal_lm": CausalDistilTask,
        }  # fmt: skip
        for teacher in teachers.models:
            if teacher.kind not in ways:
                raise InputError(
                    f"--teacher {teacher.name} is {teacher.described}; a student learns from a "
                    "classifier, an embedder, a masked language model or a decoder"
                )
            if len(teachers.models) > 1 and ways[teacher.kind] is not ClassDistilTask:
                raise InputError(
                    f"--teacher {teacher.name} is {teacher.described}; several teachers answer "
                    "with labels: give classifiers, or runs of --task setfit or cloze"
                )
        return ways[teachers.models[0].kind]

    @classmethod
    def new_student(cls, config: DistilConfig, teachers: Teachers) -> tuple[Pretrained, str]:
        teacher = teachers.models[0]
        student = student_of(config, teacher.folder, teacher.name)
        if config.layers is not None:
            return student, f"{config.layers} layers of {teacher.name}"
        return student, f"a {config.arch} with random weights"

    @abstractmethod
    def _read(self, reporter: Reporter) -> None:
        """Fill ``_train`` and ``_held_out``. Raises InputError where there is nothing to read."""

    @abstractmethod
    def _student(self) -> nn.Module:
        """The student as it starts."""

    @property
    @abstractmethod
    def losses(self) -> tuple[str, ...]:
        """The names of the losses that each text counts once in."""

    @abstractmethod
    def _write(self, folder: Path, model: nn.Module) -> None:
        """Write the student as a model folder."""

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given."""
        return careful_peak_rate(base, method, scratch=scratch)

    @property
    def facts(self) -> dict[str, Any]:
        return {"teacher_kind": self.teacher.kind}

    @property
    def introduction(self) -> str:
        ours, models = self.base.config, self.teachers.models
        shapes = [f"{m.folder.config.num_layers} × {m.folder.config.hidden_size}" for m in models]
        theirs = "teacher" if len(models) == 1 else f"{len(models)} teachers"
        return (
            f"{self.train_examples:,} texts to train on, {self.held_out_examples:,} held out; the "
            f"student ({self.start}) has {ours.num_layers} layers × {ours.hidden_size}, its "
            f"{theirs} {', '.join(shapes)}"
        )

    @property
    def new_parts(self) -> tuple[str, ...]:
        return (PROJECTIONS,) if self.inside.projects else ()

    def network(self) -> nn.Module:
        model = self._student()
        projections = self.inside.projections()
        if projections is not None:
            setattr(model, PROJECTIONS, projections)
        return model

    def write(self, folder: Path, model: nn.Module) -> None:
        if hasattr(model, PROJECTIONS):
            delattr(model, PROJECTIONS)
        self._write(folder, model)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}

    def compiles_on(self, device: torch.device) -> bool:
        # Rows are as long as a batch's texts: each shape would be compiled.
        return False

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random texts of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._collated([self._train[i] for i in self._epoch(epoch)[place]], number)

    def validation_batches(self) -> list[TensorBatch]:
        ordered = sorted(self._held_out, key=lambda example: len(example.ids))
        return [
            self._collated(ordered[i : i + EVAL_BATCH_SIZE], None)
            for i in range(0, len(ordered), EVAL_BATCH_SIZE)
        ]

    def _collated(self, examples: Sequence[EncodedExample], number: int | None) -> TensorBatch:
        """Some texts as a batch. number: its place in training; None: it is for validation."""
        counts = tuple((name, len(examples)) for name in (*self.losses, *self.inside.names))
        return DistilBatch(**padded(examples, self._pad, self._longest), counts=counts)

    def teacher_network(self, device: torch.device) -> Any:
        """The teacher on a device, as it answers."""
        if self._teacher_network is None:
            network = self._open_teacher_network().to(device).eval()
            self._teacher_network = network.requires_grad_(False)
        return self._teacher_network

    def _open_teacher_network(self) -> nn.Module:
        """The teacher's network, for what is compared while the student learns."""
        return self.teacher.folder.backbone()

    def inside_losses(
        self, model: Any, ours: Inside, batch: DistilBatch, theirs: Inside | None = None
    ) -> dict[str, SumAndCount]:
        """The losses of what is seen inside. theirs: of the teacher; None: it reads now."""
        if not self.inside.names:
            return {}
        body: Backbone = model.body
        if theirs is None:
            teacher = self.teacher_network(batch.input_ids_BT.device)
            with torch.no_grad(), self.inside.watching(teacher, teacher=True) as theirs:
                read(teacher, batch)
        found = self.inside(ours, theirs, batch.mask_BT, model, causal=body.kind == "decoder")
        weights = {
            "hidden_loss": self.config.objective.hidden,
            "attention_loss": self.config.objective.attention,
        }
        return {
            name: SumAndCount(total, len(batch), weight=weights[name])
            for name, total in found.items()
        }
