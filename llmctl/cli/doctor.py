"""``llmctl doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

from llmctl.cli import options
from llmctl.cli.guard import guarded
from llmctl.errors import InputError

EXAMPLE = "Example: llmctl doctor, or llmctl doctor --json > machine.json to report a fault"


@guarded
def command(
    workspace: Path = options.WORKSPACE,
    json: bool = options.JSON,
) -> None:
    """Look whether this machine has what llmctl needs and how fast it is: versions, processor,
    threads, memory, disk and locks of the workspace. Ends with 3 where something is broken."""
    from llmctl.cli.console import out, print_json
    from llmctl.stages.doctor import examine

    examination = examine(workspace)
    if json:
        print_json(examination)
    else:
        from llmctl.reporting.doctor import render_doctor

        out().print(render_doctor(examination))
    if examination["broken"]:
        sys.exit(InputError.exit_code)
