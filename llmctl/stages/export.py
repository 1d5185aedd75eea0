"""Export: a model to a file or a folder that other programs open, and to the Hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmctl.config import Config
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.gguf import Gguf
from llmctl.formats.gguf.file import GgufFile
from llmctl.formats.gguf.reading import OWN
from llmctl.formats.gguf.writing import CALLED, MADE_FROM, QUANTISATION
from llmctl.formats.ollama import Ollama
from llmctl.formats.ollama.modelfile import MODELFILE, sampling_parameters
from llmctl.formats.onnx.writing import write_onnx
from llmctl.formats.open import input_record, open_any_model
from llmctl.formats.rewriting import check_is_whole, fields_beside, write_rewritten
from llmctl.formats.sampling_defaults import generation_config_folder, sampling_defaults
from llmctl.parsing import read_json_object
from llmctl.reporting.reporter import Reporter
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import (
    errors_naming,
    folder_size,
    fsync_path,
    hidden_sibling,
    published_folder,
    sha256_file,
    sha256_json,
    write_json,
)
from llmctl.workspace.names import slug

EXPORT_RECORD = "llmctl_export.json"
"""In a folder, what it was made from; a GGUF's head says it."""
EXPORT_VERSION = 2
"""Raised when the same model would be written otherwise."""


class ExportConfig(Config):
    """How a model is exported."""

    format: Literal["gguf", "onnx", "hf", "ollama"]
    """What is written: gguf (llama.cpp, LM Studio), ollama (a GGUF with its Modelfile), onnx
    (onnxruntime), hf (transformers)."""
    quantisation: Literal["f32", "f16", "q8_0", "q4_0"] = Field("f16")
    """How a GGUF's matrices are kept: f32, f16, q8_0 (8 bits) or q4_0 (4 bits and a half)."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    size: int
    up_to_date: bool
    notes: tuple[str, ...] = ()


def export(
    workspace: Workspace,
    start: str,
    config: ExportConfig,
    *,
    out: Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Write a model of a run or a folder for other programs; what is there already of the same
    stays.

    Raises InputError for a model that the format can't hold, UsageError where something else lies
    in the place.
    """
    if config.quantisation != "f16" and config.format not in ("gguf", "ollama"):
        raise UsageError(
            f"--quantisation {config.quantisation} is for gguf and ollama; leave it out with "
            f"--format {config.format}"
        )
    model, run = open_any_model(workspace, start)
    if model.architecture is None:
        raise InputError(f"{start} is {model.described}, which no other program opens")
    check_is_whole(model)
    name = run.manifest.name if run else slug(model.path.resolve().stem, "model")
    target = out or Path(f"{name}{ENDINGS[config.format]}")
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.parent}; make it, or name another")
    digest = input_record(model, run).digest
    made_from = sha256_json([EXPORT_VERSION, digest, config.model_dump(mode="json")])
    if os.path.lexists(target) and not force:
        if _made_before(target, made_from):
            return Exported(target, _size(target), True)
        raise UsageError(
            f"{target} is there already, and isn't this export; name another place with --out, or "
            "replace it with --force"
        )
    if reporter is not None:
        reporter.note(f"writing {target}")
    notes = _write(model, target, config, name, made_from)
    return Exported(target, _size(target), False, tuple(notes))


ENDINGS = {"gguf": ".gguf", "onnx": "-onnx", "hf": "-hf", "ollama": "-ollama"}
"""What the name of an output ends with where none is given, by format."""


def _write(
    model: Pretrained, target: Path, config: ExportConfig, name: str, made_from: str
) -> list[str]:
    """Write an export under its name, whole or not at all. Returns what there is to say of it."""
    extra = {
        **fields_beside(model),
        QUANTISATION: config.quantisation,
        CALLED: name,
        MADE_FROM: made_from,
    }
    if config.format == "gguf":
        with _published_file(target) as hidden:
            Gguf().save(hidden, model.network(), model.tokenizer, extra)
        return []
    notes: list[str] = []
    with published_folder(target) as folder:
        WRITERS[config.format](model, folder, extra, notes)
        files = {
            str(path.relative_to(folder)): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        write_json(folder / EXPORT_RECORD, {MADE_FROM: made_from, "model": name, "files": files})
    return notes


def _write_onnx(model: Pretrained, folder: Path, extra: dict[str, Any], notes: list[str]) -> None:
    worst = write_onnx(model, folder)
    notes.append(f"onnxruntime gives the model's own outputs, to {worst:.0e} of the largest")


def _write_ollama(model: Pretrained, folder: Path, extra: dict[str, Any], notes: list[str]) -> None:
    Ollama().save(folder, model.network(), model.tokenizer, extra)
    said, _ = sampling_defaults(generation_config_folder(model))
    with (folder / MODELFILE).open("a", encoding="utf-8") as file:
        file.write(sampling_parameters(said))


def _write_hf(model: Pretrained, folder: Path, extra: dict[str, Any], notes: list[str]) -> None:
    write_rewritten(model, folder)


WRITERS: dict[str, Callable[[Pretrained, Path, dict[str, Any], list[str]], None]] = {
    "onnx": _write_onnx,
    "ollama": _write_ollama,
    "hf": _write_hf,
}
"""What writes each of the formats that are folders."""


@contextlib.contextmanager
def _published_file(target: Path) -> Iterator[Path]:
    """A hidden file beside ``target``, which takes its place when the block ends well."""
    hidden = hidden_sibling(target)
    with errors_naming(target, hidden):
        try:
            yield hidden
            fsync_path(hidden)
            hidden.replace(target)
            fsync_path(target.parent)
        finally:
            hidden.unlink(missing_ok=True)


def _made_before(target: Path, made_from: str) -> bool:
    """Whether there is an export of the same model, whole."""
    try:
        if target.is_file():
            return GgufFile(target).head.get(f"{OWN}{MADE_FROM}") == made_from
        record = read_json_object(target / EXPORT_RECORD)
    except InputError:
        return False
    files = record.get("files", {})
    return record.get(MADE_FROM) == made_from and all(
        (target / name).is_file() and sha256_file(target / name) == digest
        for name, digest in files.items()
    )


def _size(target: Path) -> int:
    return folder_size(target) if target.is_dir() else target.stat().st_size
