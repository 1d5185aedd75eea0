"""What a sweep trains: the table of a recipe, with what is laid over it, as a pretraining or a
finetuning; and the command by which each run goes on alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.cli import options
from llmctl.config import as_assignments, merge, take
from llmctl.errors import UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.sweep.plan import Training
from llmctl.workspace.artefacts import Artefact, Workspace

PRETRAIN_KEYS = ("arch", "preset", "shards")
FINETUNING = ("from", "like", "data.file", "task")
"""What these stages are given beside their configurations' fields."""


@dataclass
class Trainings:
    """Trainings of a stage, by the values that are laid over all others."""

    workspace: Workspace
    recipe: Path
    layers: Sequence[Mapping[str, Any]]
    """The recipe's table, what options say, what ``--set`` says."""
    reporter: Reporter
    shards: dict[tuple[str, str | None], Artefact] = field(default_factory=dict)
    """By architecture and name, so that the newest are the same for all of a sweep."""

    def pretraining(self, values: Mapping[str, Any]) -> Training:
        """What ``llmctl pretrain`` would train."""
        from llmctl.stages import pretrain
        from llmctl.tasks.ngram import train as ngram
        from llmctl.tasks.pretraining_runs import find_pretraining
        from llmctl.training.precision import choose_device

        chosen, layers = self._taken(values, PRETRAIN_KEYS)
        arch, preset = chosen.get("arch", "bert"), chosen.get("preset")
        workspace, reporter, names = self.workspace, self.reporter, (arch, chosen.get("shards"))
        train: Callable[..., tuple[Artefact, bool]]
        if arch == "ngram":
            if preset is not None:
                raise UsageError("a preset is not for --arch ngram, which counts; leave it out")
            config: Any = ngram.resolve(*layers)
            train = ngram.train_ngram
            if names not in self.shards:
                self.shards[names] = ngram.shards_of(workspace, names[1], reporter)
        else:
            config = pretrain.resolve(arch, preset, *layers)
            choose_device(config.training.device)
            train = pretrain.pretrain
            if names not in self.shards:
                self.shards[names] = pretrain.shards_of(workspace, arch, names[1], reporter)
        shards = self.shards[names]
        words = {"--arch": arch, "--preset": preset, "--shards": shards.manifest.name}

        def find(name: str) -> Artefact | None:
            _, existing = find_pretraining(workspace, config, shards, name, reporter=reporter)
            return existing

        def make(name: str, overwrite: bool) -> Artefact:
            artefact, _ = train(
                workspace,
                config,
                shards_name=shards.manifest.name,
                name=name,
                force=overwrite,
                reporter=reporter,
                command=self._command("pretrain", words, name, layers),
            )
            return artefact

        return Training(config, find, make)

    def finetuning(self, values: Mapping[str, Any]) -> Training:
        """What ``llmctl finetune`` would train."""
        from llmctl.stages import finetune

        chosen, layers = self._taken(values, FINETUNING)
        start = options.needed("--from", chosen.get("from"))
        data = Path(options.needed("--data", chosen.get("data.file")))
        like = chosen.get("like")
        if start == finetune.SCRATCH and like is None:
            raise UsageError(
                "--from scratch wants --like in a sweep: the newest pretrained run may be another "
                "when it goes on"
            )
        config = finetune.resolve(chosen.get("task"), *layers)
        workspace, reporter = self.workspace, self.reporter
        words = {"--from": start, "--data": str(data), "--like": like, "--task": config.task}
        finetune.check(workspace, start, data, config, like=like, reporter=reporter)

        def find(name: str) -> Artefact | None:
            return finetune.find(
                workspace, start, data, config, like=like, name=name, reporter=reporter
            )

        def make(name: str, overwrite: bool) -> Artefact:
            artefact, _ = finetune.finetune(
                workspace,
                start,
                data,
                config,
                like=like,
                name=name,
                force=overwrite,
                reporter=reporter,
                command=self._command("finetune", words, name, layers),
            )
            return artefact

        return Training(config, find, make)

    def pinned(self) -> list[str]:
        """Options that name what was chosen, as the newest may be others by the next time."""
        chosen = {shards.manifest.name for (_, name), shards in self.shards.items() if name is None}
        return ["--shards", *chosen] if len(chosen) == 1 else []

    def _taken(
        self, values: Mapping[str, Any], keys: Sequence[str]
    ) -> tuple[dict[str, str], list[Mapping[str, Any]]]:
        chosen: dict[str, str] = {}
        layers: list[Mapping[str, Any]] = []
        for layer in (*self.layers, values):
            taken, rest = take(layer, *keys)
            chosen.update(taken)
            layers.append(rest)
        return chosen, layers

    def _command(
        self,
        stage: str,
        options: Mapping[str, str | None],
        name: str,
        layers: Sequence[Mapping[str, Any]],
    ) -> list[str]:
        """The command that makes one of the runs by itself."""
        words = ["llmctl", stage, "--recipe", str(self.recipe)]
        for option, value in {**options, "--name": name}.items():
            words += [option, value] if value is not None else []
        laid: dict[str, Any] = {}
        for layer in layers[1:]:
            merge(laid, layer)
        for assignment in as_assignments(laid):
            words += ["--set", assignment]
        return [*words, "--workspace", str(self.workspace.root)]
