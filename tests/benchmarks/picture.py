"""Draws ``llmctl status`` of a workspace as the README's picture.

python tests/benchmarks/picture.py WORKSPACE writes data/pictures/status.svg.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from llmctl.reporting.status import render_overview
from llmctl.stages.status import overview
from llmctl.workspace.artefacts import Workspace

WIDTH = 118


def main(workspace: Path) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render_overview(overview(Workspace(workspace))))
    target = Path(__file__).parents[2] / "data" / "pictures" / "status.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(target), title="llmctl status")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
