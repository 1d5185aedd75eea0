"""What a sweep trains: the table of a recipe, with what is laid over it; and the command by which
each run goes on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.config import as_assignments, merge
from llmctl.reporting.reporter import Reporter
from llmctl.stages.sweep.plan import Training
from llmctl.workspace.artefacts import Artefact, Workspace


@dataclass
class Trainings:
    """Trainings of a stage, by the values that are laid over all others."""

    stage: str
    workspace: Workspace
    recipe: Path
    layers: Sequence[Mapping[str, Any]]
    """The recipe's table, what options say, what ``--set`` says."""
    reporter: Reporter
    shards: dict[tuple[str | None, ...], Artefact] = field(default_factory=dict)
    """By what was asked, so that the newest are the same for all of a sweep."""

    def prepare(self, values: Mapping[str, Any]) -> Training:
        """What the stage's command would train."""
        from llmctl.stages import train
        from llmctl.tasks.base import taken

        workspace, reporter = self.workspace, self.reporter
        recipe, *above = self.layers
        asked = train.request_of(self.stage, workspace, {}, {}, recipe, *above, values)
        request = asked.pinned(workspace, reporter, self.shards)
        train.check(workspace, request, reporter)
        _, rest = taken(asked.keys, {}, [*above, values])

        def find(name: str) -> Artefact | None:
            return train.find(workspace, request, name, reporter)

        def make(name: str, anew: bool) -> Artefact:
            artefact, _ = train.train(
                workspace,
                request,
                name=name,
                force=anew,
                reporter=reporter,
                command=self._command(request.words, name, rest),
            )
            return artefact

        return Training(request.config, find, make)

    def pinned(self) -> list[str]:
        """Options that name what was chosen, as the newest may be others by the next time."""
        chosen = {shards.manifest.name for (*_, name), shards in self.shards.items() if not name}
        return ["--shards", *chosen] if len(chosen) == 1 else []

    def _command(
        self, options: Mapping[str, str | None], name: str, layers: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """The command that makes one of the runs by itself."""
        words = ["llmctl", self.stage, "--recipe", str(self.recipe)]
        for option, value in {**options, "--name": name}.items():
            words += [option, value] if value is not None else []
        laid: dict[str, Any] = {}
        for layer in layers:
            merge(laid, layer)
        for assignment in as_assignments(laid):
            words += ["--set", assignment]
        return [*words, "--workspace", str(self.workspace.root)]
