"""Names that the shell completes: what the workspace holds, looked up without loading PyTorch.

Paths are left to the shell: where nothing in the workspace fits, it goes on with files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDERS = {"tokenizer": "tokenizers", "shards": "shards", "run": "runs", "report": "reports"}
"""The folders as llmctl.workspace.manifests has them, which takes too long to import for a
keystroke; a test compares the two."""
MANIFEST = "manifest.json"


def completes(*kinds: str) -> Callable[[Any, str], list[str]]:
    """What completes an option that takes the name of an artefact of one of these kinds, given
    typer's context and the word begun."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        given = ctx.params.get("workspace") or os.environ.get("LLMCTL_WORKSPACE")
        root = Path(given or "workspace")
        names = (name for kind in kinds for name in _names(root / FOLDERS[kind]))
        return sorted({name for name in names if name.startswith(incomplete)})

    return complete


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if os.path.isfile(os.path.join(e.path, MANIFEST))]
    except OSError:  # no such folder, or none that may be read: nothing to offer
        return []


RUNS = completes("run")
COMPLETE_SHARDS = completes("shards")
TOKENIZERS = completes("tokenizer")
ANYTHING = completes("run", "shards", "report", "tokenizer")
