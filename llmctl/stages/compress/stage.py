"""Compress: a run to a smaller one, with the table of what that costs and gains."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.compression import COMPRESSION_METHODS
from llmctl.compression.config import CompressConfig
from llmctl.compression.importance import CalibrationRows
from llmctl.compression.smaller import make_smaller, write_smaller
from llmctl.compression.texts import windows_of_file, windows_of_shards
from llmctl.data.text.documents import Corpus
from llmctl.data.text.input_files import check_data, data_record
from llmctl.errors import InputError, LossError, UsageError
from llmctl.evaluation.report import MODEL
from llmctl.formats.open import open_folder
from llmctl.formats.rewriting import write_rewritten
from llmctl.parsing import read_json_object
from llmctl.reporting.reporter import Reporter
from llmctl.stages.compress.measure import (
    QUALITIES,
    Measure,
    fastest_type,
    loss_of,
    rows_of,
    without_training,
)
from llmctl.tasks.calibration import ON_TEXT, check_has_rows, example_rows, text_rows
from llmctl.tasks.evaluation import shards_of
from llmctl.tasks.model_card import write_card
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, Manifest, new_manifest
from llmctl.workspace.names import slug

COMPRESSION_FILE = "compression.json"
"""The table, in a run's folder."""
OWN_SHARDS = "shards"
"""What ``--data`` takes for those that the run was trained on."""
BEFORE_ROW = "start"
SIMPLER_ROW = "beside"
"""Rows of the model before, and of the simpler method."""


class Compression:
    """A compression that can be made: what it is made from is found and checked."""

    def __init__(
        self,
        workspace: Workspace,
        start: str,
        config: CompressConfig,
        *,
        data: str | None = None,
        held_out: Path | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """data: the text to calibrate on, or ``shards``. held_out: the file to measure on.

        Raises UsageError or InputError for what can't be compressed, read or measured.
        """
        self.workspace, self.config = workspace, config
        self.reporter = reporter or Reporter()
        self.start = OpenedModel.open(workspace, start)
        self.method = COMPRESSION_METHODS[config.method]
        self._check_model()
        self.student = self._open_student()
        if held_out is not None:
            check_data(held_out, "eval")
        self.measure = Measure(workspace, self.start, held_out, config)
        trained = (self.student or self.start).run
        inputs = [] if trained is None else trained.manifest.inputs
        # What it was trained on is what later measurements compare their texts with.
        self.inputs = [self.start.record, *(one for one in inputs if one.role == "data")]
        if self.student is not None:
            self.inputs.append(self.student.record.model_copy(update={"role": "student"}))
        self._check_rows_are_read()
        self.windows: Tensor | None = None
        self.rows: CalibrationRows | None = None
        if config.importance == "gradient":
            self.rows = self._rows(data)
        elif self.method.reads:
            self.windows = self._calibration(data)
        elif data is not None:
            raise UsageError(f"--method {config.method} reads no text; leave out --data")
        self.inputs += [
            record.model_copy(update={"role": "eval"}) for record in self.measure.inputs
        ]
        self.identity = Identity.of("compress", config.replace(max_loss=None), self.inputs)

    def _check_model(self) -> None:
        name, folder = self.start.name, self.start.folder
        if folder.architecture is None:
            raise InputError(
                f"{name} is {folder.described}: it has no network, and so no weights, heads or "
                "layers to compress; give a network"
            )
        if folder.virtual is not None:
            raise InputError(
                f"{name} has virtual tokens before its texts, which no compressed folder has a "
                "place for; compress the model that it was finetuned from"
            )
        if folder.decoder is not None or folder.spec.kind == "encoder-decoder":
            raise InputError(
                f"{name} has an encoder and a decoder, and only models of one network are "
                "compressed; give a decoder or an encoder"
            )

    def _check_rows_are_read(self) -> None:
        """Raises UsageError where rows are described that nothing reads."""
        by_gradient, name = self.config.importance == "gradient", self.config.method
        on_text = self.method.reads and (not by_gradient or self.start.kind in ON_TEXT)
        read = {"windows": self.method.reads, "window": on_text}
        for field, is_read in read.items():
            value = getattr(self.config, field)
            if not is_read and value != CompressConfig.model_fields[field].get_default():
                what = "examples are read whole" if self.method.reads else "it reads no text"
                raise UsageError(f"--{field} {value}: with --method {name} {what}; leave it out")

    def _open_student(self) -> OpenedModel | None:
        """The smaller model, where it is there already. Raises InputError where it does something
        else."""
        if self.config.student is None:
            return None
        student = OpenedModel.open(self.workspace, self.config.student)
        if student.folder.architecture is None or student.kind != self.start.kind:
            raise InputError(
                f"--student {student.name} is {student.described}, and {self.start.name} is "
                f"{self.start.described}; name one that learned from it"
            )
        return student

    def _rows(self, data: str | None) -> CalibrationRows:
        """The rows whose loss tells what matters, whose source becomes an input."""
        start, config = self.start, self.config
        check_has_rows(start)
        if start.kind in ON_TEXT:
            return text_rows(start, self._calibration(data), config.seed)
        if data in (None, OWN_SHARDS):
            raise UsageError(
                f"--importance gradient is by the loss that {start.name} was trained with, on "
                "labelled examples like those of its training: give a file of them, --data FILE"
            )
        path = self._calibrating(str(data))
        columns = {"text_column": config.text_column, "label_column": config.label_column}
        return example_rows(start, path, config.windows, columns, self.reporter)

    def _calibration(self, data: str | None) -> Tensor:
        """The rows to calibrate on, whose source becomes an input."""
        folder, config, run = self.start.folder, self.config, self.start.run
        length = min(config.window, folder.max_length)
        if data in (None, OWN_SHARDS):
            if run is None:
                raise UsageError(
                    f"--method {config.method} reads text, and {self.start.name} is a folder whose "
                    "shards are not known; give the text, --data FILE"
                )
            shards = shards_of(self.workspace, run.manifest)
            shards.verify("train")
            self.inputs.append(shards.as_input("calibration"))
            return windows_of_shards(shards.folder, folder.tokenizer, config.windows, length)
        path = self._calibrating(str(data))
        corpus = Corpus([str(path)], text_column=config.text_column)
        for note in corpus.notes:
            self.reporter.note(note)
        return windows_of_file(corpus, folder.tokenizer, config.windows, length)

    def _calibrating(self, data: str) -> Path:
        """The file to calibrate on, which becomes an input."""
        path = Path(data)
        self.inputs.append(data_record(path).model_copy(update={"role": "calibration"}))
        return path

    def run(self, name: str | None = None, *, force: bool = False) -> tuple[Artefact, bool]:
        """The run of the smaller model, and whether it was there already.

        Raises LossError, and leaves nothing, where it lost more quality than ``max_loss``.
        """
        default = f"{slug(Path(self.start.name).name, 'model')}-{self.config.method}"
        run_name, found = self.workspace.match(
            "run", name, default, self.identity, force=force, note=self.reporter.note
        )
        if found is not None:
            found.verify()
            self._check_loss(float(read_table(found)["loss"]))
            return found, True
        manifest = new_manifest(
            "run",
            run_name,
            stage="compress",
            config={"compress": self.config.model_dump(mode="json"), **self._trained()},
            identity=self.identity,
            seed=self.config.seed,
        )
        with self.workspace.publish(manifest) as (folder, summary):
            summary.update(self._make(folder, manifest))
        made = self.workspace.get("run", run_name)
        write_card(self.workspace, made, self.reporter.note)
        return made, False

    def _trained(self) -> Mapping[str, Any]:
        """What later commands ask of a finetuned run's configuration: how its data was read."""
        run = self.start.run
        kept = {} if run is None else run.manifest.config
        return {key: kept[key] for key in ("task", "data") if key in kept}

    def _make(self, folder: Path, manifest: Manifest) -> dict[str, Any]:
        """Fill the run's folder; returns its summary."""
        models = {MODEL: self._compressed(self.config, folder, manifest.name)}
        hidden = folder / ".beside"
        if self.method.beside is not None:
            simpler = self.config.replace(method=self.method.beside, max_loss=None)
            models[SIMPLER_ROW] = self._compressed(simpler, hidden, self.method.beside)
        models[BEFORE_ROW] = self.start
        own = Artefact(folder, manifest)
        as_run = self.start.run is not None and self.start.kind == "causal_lm"
        compared = {
            row: without_training(model, own) if as_run else model for row, model in models.items()
        }
        report = self.measure.report(compared, self.reporter)
        loss = loss_of(report, BEFORE_ROW)
        self._check_loss(loss)
        bits = self.config.bits if self.method.family == "quantise" else None
        forms = {
            row: (model, fastest_type(model.kind, None if row == BEFORE_ROW else bits))
            for row, model in models.items()
        }
        rows = rows_of(forms, report, BEFORE_ROW, self.reporter)
        shutil.rmtree(hidden, ignore_errors=True)
        model = open_folder(folder / "model")
        table = {
            "name": manifest.name,
            "method": self.config.method,
            "data": report.data,
            "quality": QUALITIES[report.task].name,
            "lower_is_better": QUALITIES[report.task].falls,
            "loss": loss,
            "rows": rows,
            "notes": report.notes,
        }
        write_json(folder / COMPRESSION_FILE, table)
        return {
            "arch": model.spec.name,
            "task": model.kind,
            "method": self.config.method,
            "parameters": sum(math.prod(model.tensors[name].shape) for name in model.tensors),
            "bytes": rows[0]["bytes_on_disk"],
            "quality": QUALITIES[report.task].name,
            "value": rows[0]["quality"],
            "loss": loss,
        }

    def _compressed(self, config: CompressConfig, folder: Path, name: str) -> OpenedModel:
        """Compress the start into a folder."""
        windows = self.windows if COMPRESSION_METHODS[config.method].reads else None

        def progress(done: int, total: int) -> None:
            self.reporter.progress(f"{config.method}, layers", done, total)

        if self.student is not None:
            write_rewritten(self.student.folder, folder / "model")
        else:
            smaller = make_smaller(self.start.folder, config, windows, progress, self.rows)
            write_smaller(smaller, self.start.folder, config, folder / "model")
        opened = open_folder(folder / "model")

        def record() -> InputRecord:
            return InputRecord(role="model", name=name, digest=opened.digest())

        return OpenedModel(name, opened, self.start.run, record)

    def _check_loss(self, loss: float) -> None:
        most = self.config.max_loss
        if most is not None and loss > most:
            raise LossError(
                f"--max-loss {most:g}: {self.config.method} loses {loss:.4f} on held-out data, so "
                "nothing was written; take more bits, a smaller group, a larger share, or another "
                "method"
            )


def read_table(run: Artefact) -> dict[str, Any]:
    """The table of a run. Raises InputError where it has none."""
    path = run.folder / COMPRESSION_FILE
    table = read_json_object(path)
    if not isinstance(table.get("rows"), list) or "loss" not in table:
        raise InputError(f"{path} is not a whole table; make it again with --force")
    return table
