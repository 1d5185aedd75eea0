"""Which shards a training reads: those named, or the newest that suit it."""

from __future__ import annotations

from collections.abc import Callable

from llmctl import tokenizers
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Artefact, Workspace


def choose_shards(
    workspace: Workspace,
    name: str | None,
    reporter: Reporter,
    *,
    suits: Callable[[Tokenizer], bool],
    wanted: str,
) -> Artefact:
    """The shards of a name, or the newest whose tokenizer suits; their digests are checked.

    wanted: what they are to suit and what that needs, for messages. Raises InputError if there are
    none.
    """
    if name is not None:
        shards = workspace.get("shards", name)
    else:

        def pass_over(name: str, error: InputError) -> None:
            reporter.note(f"shards {name} are passed over: {error}")

        matching = workspace.list("shards", pass_over)
        candidates = [shards for shards in matching if _suits(shards, suits)]
        if not candidates:
            raise InputError(
                f"workspace {workspace.root} has no shards that suit {wanted}; make some: "
                "llmctl tokenize FILE …"
            )
        shards = candidates[-1]
        if len(candidates) > 1:
            reporter.note(f"shards: {shards.manifest.name} (the newest)")
    shards.verify()
    return shards


def _suits(shards: Artefact, suits: Callable[[Tokenizer], bool]) -> bool:
    try:
        return suits(tokenizers.load(shards.folder / "tokenizer"))
    except InputError:  # damaged; named outright, they get the error
        return False
