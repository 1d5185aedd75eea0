"""What ``pretrain`` and ``finetune`` are asked for, by their options and recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from llmctl import tokenizers
from llmctl.data.shards.choosing import choose_shards
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.open import input_record, open_model
from llmctl.models import ARCHITECTURES
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import DEFAULT_TASK, TASKS, WITHOUT_NETWORK, finetuning_task, task_of, tasks_of
from llmctl.tasks.base import (
    Request,
    Sources,
    key_of_field,
    needed,
    options_layer,
    taken,
)
from llmctl.tasks.finetuning import SCRATCH, FinetuneConfig, check_method
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.pretraining import task_field
from llmctl.training.adapters import METHODS
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord
from llmctl.workspace.names import slug

DEFAULT_ARCH = "bert"


@dataclass(frozen=True)
class PretrainRequest(Request):
    """A pretraining that is asked for."""

    stage = "pretrain"
    keys = ("arch", "task", "preset", "shards", "from")
    config: Any
    preset: str | None = None
    shards: str | Artefact | None = None
    """None: the newest that suit."""
    start: str | None = None
    """The run or folder whose weights it starts from; None: random ones."""
    base: OpenedModel | None = None
    """That, opened."""

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        named: Mapping[str, Any],
        options: Mapping[str, Any],
        *layers: Mapping[str, Any],
    ) -> Self:
        chosen, (recipe, *above) = taken(cls.keys, named, layers)
        start, preset, arch, name = (chosen.get(k) for k in ("from", "preset", "arch", "task"))
        base = None
        if start is not None:
            _refuse_shapes(start, chosen, [recipe, options, *above])
            base = _open_base(workspace, start, name)
            arch = base.folder.spec.name
        arch = arch or DEFAULT_ARCH
        task = task_of(arch, name)
        if preset is not None and arch in WITHOUT_NETWORK:
            raise UsageError(_not_for("preset", arch))
        layer = options_layer(task.config_type(arch), options, lambda name: _not_for(name, arch))
        if layer.get("budget") is not None:
            # Over the recipe's length, as any option is; --set still has the last word.
            length = {"time_limit": None, "max_steps": None}
            layer["training"] = {**layer.get("training", {}), **length}
        more: dict[str, Any] = task_field(arch, name)
        more |= {} if base is None else {"base": base.folder}
        config = task.resolve(arch, preset, recipe, layer, *above, **more)
        return cls(config, preset, chosen.get("shards"), start, base)

    @property
    def task(self) -> Any:
        return task_of(self.config.arch, self._task_name)

    @property
    def _task_name(self) -> str | None:
        # What counts has one task and no such field.
        return getattr(self.config, "task", None)

    def open(self, workspace: Workspace, reporter: Reporter) -> Sources:
        shards = self._shards(workspace, reporter)
        inputs, beginning = [shards.as_input("shards")], str(self.config.arch)
        if self.base is not None:
            if not _made_with(shards, self.base):
                raise InputError(
                    f"shards {shards.manifest.name} were made with another tokenizer than that of "
                    f"--from {self.start}, to which their ids mean other pieces; tokenize the text "
                    f"with it: llmctl tokenize FILE … --tokenizer {self.base.folder.path}"
                )
            inputs.append(self.base.record)
            beginning = slug(Path(self.base.record.name).name, "model")
        if self._task_name is not None:
            beginning += f"-{slug(self._task_name, 'task')}"
        more = {} if self.base is None else {"base": self.base.folder}
        return Sources(
            Identity.of(self.stage, self.config, inputs),
            f"{beginning}-{shards.manifest.name}",
            lambda config, reporter: self.task(shards, config, **more),
            None if self.base is None else self.base.run,
        )

    def _shards(self, workspace: Workspace, reporter: Reporter) -> Artefact:
        if isinstance(self.shards, Artefact):
            return self.shards
        suits = partial(self.task.suits, config=self.config)
        wanted = self.task.wanted(self.config)
        if self.base is not None:
            digest = self.base.folder.tokenizer.pieces_digest()
            suits = lambda tokenizer: tokenizer.pieces_digest() == digest  # type: ignore[assignment]  # noqa: E731
            wanted = f"--from {self.start} (made with --tokenizer {self.base.folder.path})"
        return choose_shards(workspace, self.shards, reporter, suits=suits, wanted=wanted)

    def pinned(
        self,
        workspace: Workspace,
        reporter: Reporter,
        known: dict[tuple[str | None, ...], Artefact],
    ) -> Self:
        asked = (self.config.arch, self._task_name, self.start, self.words["--shards"])
        if asked not in known:
            known[asked] = self._shards(workspace, reporter)
        return replace(self, shards=known[asked])

    @property
    def words(self) -> dict[str, str | None]:
        arch = None if self.start is not None else self.config.arch
        shards = self.shards
        name = shards.manifest.name if isinstance(shards, Artefact) else shards
        return {
            "--from": self.start, "--arch": arch, "--task": self._task_name,
            "--preset": self.preset, "--shards": name,
        }  # fmt: skip


def _not_for(name: str, arch: str) -> str:
    """What to say of an option that an architecture has no field for."""
    option = f"--{name.replace('_', '-')}"
    if arch in WITHOUT_NETWORK:
        return f"{option} is not for --arch {arch}, which counts; leave it out"
    owners = [a for a in WITHOUT_NETWORK if key_of_field(task_of(a).config_type(a), name)]
    return f"{option} is for --arch {', '.join(owners)}, and this is {arch}; leave it out"


def _refuse_shapes(
    start: str, chosen: Mapping[str, str], layers: Sequence[Mapping[str, Any]]
) -> None:
    """Raises UsageError for what the model that is gone on with has already."""
    given = [f"--{key}" for key in ("arch", "preset") if key in chosen]
    given += [f"model.{key}" for layer in layers for key in layer.get("model", {})]
    if given:
        raise UsageError(
            f"{', '.join(given)}: --from {start} says which network it is; leave it out"
        )
    if any(layer.get("budget") is not None for layer in layers):
        raise UsageError(
            f"--budget chooses a shape, and --from {start} has one; leave it out, and give the "
            "length with --set training.time_limit=10m"
        )


def _open_base(workspace: Workspace, start: str, task: str | None) -> OpenedModel:
    """The model that pretraining goes on with. Raises InputError if it is no language model, nor
    what the task makes."""
    base = OpenedModel.open(workspace, start)
    if base.folder.virtual is not None:
        raise InputError(
            f"--from {start} has virtual tokens before its texts, which go with what they were "
            "learned for; go on with the model that they stand before"
        )
    if task in tasks_of("pretrain") and base.kind == TASKS[str(task)].makes:
        return base
    spec = base.folder.architecture
    whole = spec is not None and spec.kind == "encoder-decoder" and base.kind == "seq2seq"
    if (base.kind not in tasks_of("pretrain") and not whole) or base.kind in WITHOUT_NETWORK:
        raise InputError(
            f"--from {start} is {base.described}; pretraining goes on with a language model, a "
            "masked one or an encoder-decoder"
        )
    return base


def _made_with(shards: Artefact, base: OpenedModel) -> bool:
    """Whether shards have the ids of a model's own tokenizer."""
    own = tokenizers.load(shards.folder / "tokenizer")
    return own.pieces_digest() == base.folder.tokenizer.pieces_digest()


@dataclass(frozen=True)
class FinetuneRequest(Request):
    """A finetuning that is asked for."""

    stage = "finetune"
    keys = ("from", "like", "data.file", "task")
    config: FinetuneConfig
    start: str | None
    """A run's name, a model folder, or ``scratch``: the network of ``like`` with random weights.
    None: the task has one of its own."""
    data: Path
    like: str | None = None
    """None: the newest pretrained run that suits."""

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        named: Mapping[str, Any],
        options: Mapping[str, Any],
        *layers: Mapping[str, Any],
    ) -> Self:
        chosen, (recipe, *above) = taken(cls.keys, named, layers)
        if named.get("from") is not None and named.get("like") is None:
            chosen.pop("like", None)
        task = finetuning_task(chosen.get("task", DEFAULT_TASK))
        if task.starts_alone and not chosen.keys() & {"from", "like"}:
            start, [data] = None, needed(chosen, data="data.file")
        else:
            start, data = needed(chosen, **{"from": "from", "data": "data.file"})

        def refusal(name: str) -> str:
            owners = [
                n
                for n, t in tasks_of("finetune").items()
                if key_of_field(t.task().config_type, name)
            ]
            return (
                f"--{name.replace('_', '-')} goes with --task {' or '.join(owners)}; leave it out"
            )

        layer = options_layer(task.config_type, options, refusal)
        config = task.resolve(recipe, layer, *above)
        if start is not None:
            task.check_start(config, start)
        return cls(config, start, Path(data), chosen.get("like"))

    @property
    def task(self) -> Any:
        return finetuning_task(self.config.task).variant(self.config)

    def open(self, workspace: Workspace, reporter: Reporter) -> Sources:
        scratch, config = self.start == SCRATCH, self.config
        if scratch and config.method != "full":
            raise UsageError(
                f"--method {config.method} keeps most weights as they are, and those of --from "
                "scratch are random; leave --method out"
            )
        task, teachers = self.task, self.task.open_teachers(workspace, config)
        taught: dict[str, Any] = {}
        if teachers is not None:
            task, taught = task.with_teachers(teachers), {"teachers": teachers}
        base, record, start = self._base(workspace, task, teachers, reporter)
        if (kinds := task.kinds(config)) and base.kind not in kinds:
            raise InputError(f"--from {start} is {base.described} {task.lacks}")
        if base.spec.kind not in task.backbones:
            raise InputError(
                f"--task {config.task} is not for --from {start}, whose network is an "
                f"{base.spec.kind}: a {base.spec.name}; give one of the kind "
                f"{' or '.join(task.backbones)}"
            )
        check_method(config, base)
        base = replace(base, before=METHODS[config.method].virtual_tokens(config))
        inputs = [] if record is None else [record]
        if teachers is not None:
            inputs += teachers.records
        inputs += [data_record(self.data), *task.further_inputs(config)]
        named = record or inputs[0]
        suffix = SCRATCH if scratch else Path(named.name).name
        suffix += "" if teachers is None else "-student"
        parent = named.artefact if not scratch else None
        return Sources(
            Identity.of(self.stage, config, inputs, scratch=scratch),
            f"{slug(self.data.name.partition('.')[0], 'data')}-{suffix}",
            lambda config, reporter: task(
                self.data, base, config, start=start, reporter=reporter, **taught
            ),
            workspace.get(*parent) if parent else None,
        )

    def _base(
        self, workspace: Workspace, task: Any, teachers: Any, reporter: Reporter
    ) -> tuple[Pretrained, InputRecord | None, str]:
        """The network to train, its record where it is a run's or a folder's, and what it is
        called."""
        if self.start is None:
            assert teachers is not None
            base, called = task.new_student(self.config, teachers)
            return base, None, called
        model, run = open_model(workspace, self._network(workspace, reporter))
        return model, input_record(model, run), self.start

    def pinned(
        self,
        workspace: Workspace,
        reporter: Reporter,
        known: dict[tuple[str | None, ...], Artefact],
    ) -> Self:
        if self.start == SCRATCH and self.like is None:
            raise UsageError(
                "--from scratch wants --like in a sweep: the newest pretrained run may be another "
                "when it goes on"
            )
        return self

    @property
    def words(self) -> dict[str, str | None]:
        return {
            "--from": self.start, "--data": str(self.data), "--like": self.like,
            "--task": self.config.task,
        }  # fmt: skip

    def _network(self, workspace: Workspace, reporter: Reporter) -> str:
        """The run or folder that has the network."""
        assert self.start is not None
        if self.start != SCRATCH:
            if self.like is not None:
                raise UsageError(
                    f"--like {self.like} goes with --from scratch; leave it out, as --from "
                    f"{self.start} says which network it is"
                )
            return self.start
        if self.like is not None:
            return self.like

        def pass_over(name: str, error: InputError) -> None:
            reporter.note(f"run {name} is passed over: {error}")

        runs = [run for run in workspace.list("run", pass_over) if self._could_learn(run)]
        if not runs:
            raise InputError(
                "--from scratch needs a pretrained run to take the network and the tokenizer from; "
                "pretrain one, or give a model folder with --like"
            )
        reporter.note(f"the network of {runs[-1].manifest.name}, with random weights")
        return runs[-1].manifest.name

    def _could_learn(self, run: Artefact) -> bool:
        """Whether it is a finished pretraining of a network that can learn the task."""
        config = run.manifest.config
        spec = ARCHITECTURES.get(config.get("arch", ""))
        kinds = self.task.kinds(self.config)
        done = run.finished and run.manifest.stage == PretrainRequest.stage
        return (
            done and spec is not None and (not kinds or (config.get("task") or spec.task) in kinds)
        )


REQUESTS: dict[str, type[Request]] = {
    request.stage: request for request in (PretrainRequest, FinetuneRequest)
}
"""By the command."""
