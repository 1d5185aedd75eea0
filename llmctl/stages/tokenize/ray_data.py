"""The parts of ``tokenize_parts`` as tasks of Ray Data, on one machine or a cluster."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from llmctl import errors
from llmctl.data.text.documents import PYTHON_CORPORA, Corpus
from llmctl.errors import InputError, LlmctlError, ResourceError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize.parts import merge_parts, write_part
from llmctl.stages.tokenize.plan import PartJob, acquire_plan, changed_file
from llmctl.stages.tokenize.stage import (
    TokenizeConfig,
    corpus_inputs,
    existing_tokenizer,
    open_corpus,
)
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.parts import PartsFolder

MIN_PART_BYTES = 16 << 20
"""Bytes; a smaller part is done before its task has started."""
PARTS_A_CORE = 2
"""So that a slow machine, or a part with long texts, keeps the others waiting half as long."""

ANSWER_SECONDS = 10.0
"""How long a cluster's address may take to answer; Ray itself would try for minutes."""


def tokenize_on_ray(
    workspace: Workspace,
    sources: Sequence[str],
    config: TokenizeConfig,
    address: str,
    *,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """Tokenize as ``tokenize`` does, the parts made by Ray's workers; they must see the files and
    the workspace.

    address: host:port, ``ray://…``, ``local``, or ``auto`` for the running cluster or else this
    machine.
    """
    _ray()
    reporter = reporter or Reporter()
    if name is None:
        corpus = open_corpus(sources, config, Reporter())  # the job tells what there is to say
        _refuse_streams(corpus)
        inputs = corpus_inputs(corpus, sources, existing_tokenizer(workspace, config))
        identity = Identity.of("tokenize", config, inputs)
        name, existing = workspace.match(
            "shards", None, corpus.suggested_name, identity, force=force
        )
        if existing is not None:
            return existing, True
    job = PartJob(workspace, sources, config, name, force, reporter)
    _refuse_streams(job.corpus)
    # What Ray prints is no result.
    with redirect_stdout(sys.stderr), _connected(address) as cores:
        cores_each = max(config.workers, 1)
        under_way = job.parts.plan()
        worth = -(-job.corpus.total_bytes // MIN_PART_BYTES)
        parts = max(1, min(PARTS_A_CORE * cores // cores_each, worth))
        plan = acquire_plan(job, under_way.parts if under_way else parts)
        if isinstance(plan, Artefact):
            return plan, True
        missing = job.parts.missing(plan)
        _run(job, plan.created, missing, cores_each)
    shards, _ = merge_parts(job, plan)
    if shards is None:
        raise InputError(
            f"parts of shards {name} were removed while others were made; run the command again"
        )
    return shards, False


def _refuse_streams(corpus: Corpus) -> None:
    for stream in corpus.streams:
        raise UsageError(f"--ray: {stream} is read by one process; put it into a file")


def _run(job: PartJob, plan: str, missing: list[int], cores_each: int) -> None:
    """Make parts as tasks; raises the first error once all have been tried."""
    ray = _ray()
    task = {
        "workspace": str(job.workspace.root.resolve()),
        "name": job.name,
        "sources": [_absolute_path(source) for source in job.sources],
        "config": job.config.replace(workers=cores_each).model_dump_json(),
        "plan": plan,
    }
    failed: list[dict[str, Any]] = []
    if missing:
        rows = ray.data.from_items(
            [{**task, "part": number} for number in missing], override_num_blocks=len(missing)
        )
        done = 0
        try:
            for row in rows.map(make_part, num_cpus=cores_each).iter_rows():
                done += 1
                job.reporter.progress("parts", done, len(missing))
                if row["error"]:
                    failed.append(row)
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"--ray: a task was lost ({_first_line(error)}); run the command again, the parts "
                "that are done stay"
            ) from None
    if failed:
        kind = getattr(errors, failed[0]["kind"], LlmctlError)
        raise kind(failed[0]["error"])


def make_part(task: dict[str, Any]) -> dict[str, Any]:
    """A task: makes one part; an error of the user's comes back as a row."""
    outcome = {"part": task["part"], "kind": "", "error": ""}
    try:
        workspace = Workspace(Path(task["workspace"]))
        plan = PartsFolder(workspace, task["name"]).plan()
        if plan is None or plan.created != task["plan"]:
            raise InputError(
                f"machine {platform.node()} does not see the workspace {task['workspace']}; put "
                "--workspace on a file system that all machines of the cluster share"
            )
        config = TokenizeConfig.model_validate_json(task["config"])
        job = PartJob(workspace, list(task["sources"]), config, task["name"])
        changed = changed_file(job, plan, task["part"])
        if changed is not None:
            raise changed
        write_part(job, plan, task["part"])
    except LlmctlError as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        outcome.update(kind=kind.__name__, error=str(error))
    return outcome


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--ray needs the package ray: pip install 'llmctl[scale]'") from None
    return ray


@contextmanager
def _connected(address: str) -> Iterator[int]:
    """A connection to Ray; yields the number of cores."""
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        try:
            _check_reachable(address)
            ray.init(
                None if address == "auto" else address,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--ray {address}: no cluster can be used there ({_first_line(error)}); start one "
                "with `ray start --head`, or leave the address out"
            ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises OSError if nobody listens at a cluster's address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _absolute_path(source: str) -> str:
    """A source by a name that means the same in another process's folder."""
    if source in PYTHON_CORPORA:
        return source
    return os.path.abspath(os.path.expanduser(source))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
