"""A model by the name of a run or by its folder, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from llmctl.errors import InputError, did_you_mean
from llmctl.formats import FORMATS
from llmctl.formats.base import Format, Pretrained
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import InputRecord


@runtime_checkable
class OpensWithTokenizer(Protocol):
    """A format of models without a tokenizer of their own."""

    def open_with(self, path: Path, tokenizer: Path) -> Pretrained:
        """The model of a path, with a tokenizer that is given. Raises InputError as ``open``."""
        ...


def open_model(workspace: Workspace, name: str) -> tuple[Pretrained, Artefact | None]:
    """The network of a run's name or of a folder, with its run if it is of one; a run's files are
    checked by their digests.

    Raises InputError if there is none, it is not whole, or the model has no network.
    """
    model, run = open_any_model(workspace, name)
    _ = model.spec
    return model, run


def open_any_model(workspace: Workspace, name: str) -> tuple[Pretrained, Artefact | None]:
    """A model, an n-gram model too, as ``open_model`` opens it, with its run if it is of one."""
    path, run = find_model(workspace, name)
    return open_folder(path), run


def input_record(model: Pretrained, run: Artefact | None) -> InputRecord:
    """A model as an input of what is made with it. Of a mere folder it reads all the weights."""
    if run is not None:
        return run.as_input("model")
    return InputRecord(role="model", name=str(model.path.resolve()), digest=model.digest())


def open_folder(path: Path) -> Pretrained:
    """The model of a folder, of whatever format. Raises InputError if there is none."""
    format = format_of(path)
    if format is None:
        raise InputError(
            f"{path} has no config.json and is no GGUF file; give a model's folder or file, or a "
            "run's name"
        )
    return format.open(path)


def format_of(path: Path) -> Format | None:
    """The format that a path's model is kept in; None where there is no model."""
    return next((format for format in FORMATS.values() if format.recognises(path)), None)


def find_model(workspace: Workspace, name: str) -> tuple[Path, Artefact | None]:
    """The model folder that a run's name or a path stands for, and the run; its files are checked.

    Raises InputError if there is none or it is not whole.
    """
    runs = workspace.names("run")
    if name not in runs:
        # A model folder, or the folder of a run.
        for path in (Path(name), Path(name) / "model"):
            if format_of(path) is not None:
                return path, None
        raise InputError(
            f"no run or model folder {name!r}{did_you_mean(name, runs)}; `llmctl status` lists "
            f"the runs of workspace {workspace.root}"
        )
    run = workspace.get("run", name)
    if not run.finished and run.manifest.files:
        raise InputError(
            f"run {name} is being trained for longer; run its command again to finish it, or take "
            f"the model that it had before: {run.folder / 'model'}"
        )
    if not run.finished:
        raise InputError(
            f"run {name} is not finished; run its command again to finish it "
            f"(`llmctl status {name}` shows it)"
        )
    run.verify("model/")
    return run.folder / "model", run
