"""Import: a model from elsewhere to a run.

A folder in Hugging Face's layout is copied as it is, with the files that say something of the
model or its tokenizer; of any other format the model is written anew in that layout, its tensors
in fp32. Every tensor is read once, so that a damaged one is met here and not in an hour.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmctl.config import Config
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.formats.base import Format, Pretrained
from llmctl.formats.gguf.parts import SPLIT_NAME
from llmctl.formats.hub import HUB_FILE, REPOSITORY, download
from llmctl.formats.nanogpt import ENDING
from llmctl.formats.open import OpensWithTokenizer, format_of, open_folder
from llmctl.formats.rewriting import write_rewritten
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.model_card import write_card
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, new_manifest
from llmctl.workspace.names import slug

COPIED = ("huggingface", "sentence-transformers")
"""Formats whose folders are kept as they are."""
BESIDE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
"""Endings of the files that go with a model's weights: description, tokenizer, card, licence."""
NAMED = ("LICENSE", "NOTICE")


class ImportConfig(Config):
    """What is asked of an import beside its source: nothing."""


def import_model(
    workspace: Workspace,
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """A run with the model of a folder, a file or the Hub, and whether it was there already.

    tokenizer: a name in the workspace or a path, for a model that has none of its own. Raises
    InputError where there is no such model, or it can't be opened whole, UsageError for a tokenizer
    beside the model's own, and for a revision of what isn't on the Hub.
    """
    reporter = reporter or Reporter()
    path = _found(source, revision)
    format = format_of(path)
    if format is None:
        raise InputError(f"{path} holds no model that is known here; give a model's folder or file")
    model = _opened(workspace, format, path, tokenizer)
    if model.architecture is None:
        raise InputError(f"{path} is {model.described}; only networks are imported")
    record = InputRecord(role="source", name=_shown(source, path), digest=model.digest())
    config = ImportConfig()
    identity = Identity.of("import", config, [record])
    default = slug(_stem(Path(source).name), "model")
    run_name, found = workspace.match(
        "run", name, default, identity, force=force, note=reporter.note
    )
    if found is not None:
        found.verify()
        return found, True
    manifest = new_manifest(
        "run", run_name, stage="import", config=config.model_dump(mode="json"), identity=identity
    )
    parameters = sum(math.prod(model.tensors[tensor].shape) for tensor in model.tensors)
    with workspace.publish(manifest) as (folder, summary):
        if format.name in COPIED:
            for file in _files_of(model):
                target = folder / "model" / file.relative_to(model.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        else:
            write_rewritten(model, folder / "model")
        again = open_folder(folder / "model")
        if (again.config, again.purpose) != (model.config, model.purpose):
            raise InputError(f"{path} can't be kept in Hugging Face's layout as it is")
        kind = model.purpose.kind
        summary.update(
            arch=model.spec.name,
            task=kind,
            described=model.described if kind else "a body without a head",
            format=format.name,
            parameters=parameters,
        )
    run = workspace.get("run", run_name)
    write_card(workspace, run, reporter.note)
    return run, False


def _opened(workspace: Workspace, format: Format, path: Path, tokenizer: str | None) -> Pretrained:
    """The model of a path, with the tokenizer that is named where it has none of its own."""
    if tokenizer is None:
        return format.open(path)
    if not isinstance(format, OpensWithTokenizer):
        raise UsageError(
            f"--tokenizer is for a checkpoint without one, as nanoGPT's: {path} has its own; leave "
            "it out"
        )
    if tokenizer in workspace.names("tokenizer"):
        artefact = workspace.get("tokenizer", tokenizer)
        artefact.verify()
        return format.open_with(path, artefact.folder)
    if not os.path.exists(tokenizer):  # unlike Path's, false for what can't be a name
        raise InputError(
            f"--tokenizer {tokenizer!r} is neither a tokenizer of the workspace nor a file"
            f"{did_you_mean(tokenizer, workspace.names('tokenizer'))}; give a meta.pkl, a "
            "tokenizer.json or a folder with one"
        )
    return format.open_with(path, Path(tokenizer))


def _found(source: str, revision: str | None) -> Path:
    """A source that is here, or brought here."""
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UsageError(
                f"--revision {revision} is of a repository on the Hub, and {source} is here; leave "
                "it out"
            )
        return path
    if REPOSITORY.fullmatch(source) or HUB_FILE.fullmatch(source):
        return download(source, revision)
    raise InputError(
        f"{source}: no such folder or file; give one, or OWNER/NAME of the Hugging Face Hub"
    )


def _stem(name: str) -> str:
    """What a model is called after its file's name."""
    if part := SPLIT_NAME.fullmatch(name):
        return part[1]
    return name.removesuffix(".gguf").removesuffix(ENDING)


def _shown(source: str, path: Path) -> str:
    return str(path.resolve()) if Path(source).exists() else source


def _files_of(model: Pretrained) -> Iterator[Path]:
    """What is copied of a folder: what the model is opened from, and what is said beside it."""
    opened = {file for file in model.files if file.is_relative_to(model.path)}
    folders = {file.parent for file in opened} | {model.path}
    beside = {
        file
        for folder in folders
        for file in folder.iterdir()
        if file.is_file() and (file.suffix in BESIDE or file.name in NAMED)
    }
    yield from sorted(opened | beside)
