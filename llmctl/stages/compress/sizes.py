"""Size against quality, over several compressions of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.errors import UsageError
from llmctl.stages.compress.stage import COMPRESSION_FILE, read_table
from llmctl.workspace.artefacts import Workspace

SIZES_VERSION = 1
"""The version of the document that ``llmctl status --compare … --plot --json`` prints."""


def sizes(workspace: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """The size on disk and the quality of each run, from the tables that compressions ended with;
    a run that others were made from has its figures in theirs.

    Raises UsageError for a run in no table, and for qualities that don't compare.
    """
    runs = [workspace.get("run", name) for name in names]
    tables = [read_table(run) for run in runs if (run.folder / COMPRESSION_FILE).exists()]
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        first, *_, start = table["rows"]
        found[start["name"]] = found.get(start["name"], start)
        found[table["name"]] = first
    measured = {(table["quality"], table["data"]) for table in tables}
    missing = [name for name in names if name not in found]
    if missing or not tables:
        raise UsageError(
            f"--plot shows what llmctl compress made, and what that was made from; "
            f"{(missing or names)[0]} is in no table of these"
        )
    if len(measured) > 1:
        shown = ", ".join(sorted(f"{quality} on {data}" for quality, data in measured))
        raise UsageError(f"--plot: the runs were measured by different things: {shown}")
    points = [
        {
            "name": name,
            "bytes_on_disk": found[name]["bytes_on_disk"],
            "quality": found[name]["quality"],
            "interval": found[name]["interval"],
        }
        for name in dict.fromkeys([*names, *found])
    ]
    return {
        "schema_version": SIZES_VERSION,
        "quality": tables[0]["quality"],
        "lower_is_better": tables[0]["lower_is_better"],
        "data": tables[0]["data"],
        "runs": sorted(points, key=lambda point: int(point["bytes_on_disk"])),
    }
