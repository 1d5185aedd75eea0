"""Tokenize in parts: processes on any machines that share the workspace make what one would.

The first to come makes the plan: it learns the tokenizer and records the digest of every file. Then
each encodes the documents that end in its stretch of the corpus's bytes, and the one that finds all
parts done puts them together: it drops what is repeated between parts and splits, as one process
does while it reads. Nobody waits for a part that may not have been started.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from llmctl.data.shards.part_files import EncodedDocuments, PartWriter, read_part
from llmctl.data.text.documents import CorpusPart
from llmctl.data.text.hashing import SeenHashes
from llmctl.errors import InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize.plan import PartJob, acquire_plan, corpus_part
from llmctl.stages.tokenize.shards import (
    ByHash,
    ByTail,
    FromText,
    TokenizerSummary,
    note_split,
    write_shards,
)
from llmctl.stages.tokenize.stage import (
    TokenizeConfig,
)
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import new_manifest, verify_files
from llmctl.workspace.parts import (
    PartRecord,
    PartsPlan,
    write_record,
)

MOST_PARTS = 99_999
DOCUMENTS = "documents.arrow"


@dataclass(frozen=True)
class Part:
    """One of so many, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """``3/8``. Raises UsageError for anything else than i/n with i from 1 to n."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None:
        raise UsageError(
            f"--part {text!r} is not i/n: write 3/8 for the third of eight parts, in a job array "
            "for example $SLURM_ARRAY_TASK_ID/8"
        )
    part = Part(int(match[1]), int(match[2]))
    if not 1 <= part.of <= MOST_PARTS:
        raise UsageError(f"--part {text}: there can be 1 to {MOST_PARTS:,} parts")
    if not 1 <= part.number <= part.of:
        raise UsageError(
            f"--part {text}: parts are counted from 1 to {part.of}; number the job array so "
            f"(for Slurm --array=1-{part.of})"
        )
    return part


@dataclass(frozen=True)
class PartOutcome:
    """How far the parts are once a process has done its own."""

    shards: Artefact | None
    """None while other parts are missing."""
    up_to_date: bool
    """Whether there was nothing to do."""
    missing: list[int] = field(default_factory=list)
    """Parts that are not finished."""


def tokenize_part(
    workspace: Workspace,
    sources: Sequence[str],
    config: TokenizeConfig,
    part: Part,
    *,
    name: str,
    force: bool = False,
    reporter: Reporter | None = None,
) -> PartOutcome:
    """Make one part of the shards ``name``, and the shards if all parts are there."""
    job = PartJob(workspace, sources, config, name, force, reporter or Reporter())
    plan = acquire_plan(job, part.of, part.number)
    if isinstance(plan, Artefact):
        return PartOutcome(plan, up_to_date=True)
    written = write_part(job, plan, part.number)
    shards, missing = merge_parts(job, plan)
    return PartOutcome(shards, up_to_date=not written and shards is None, missing=missing)


def write_part(job: PartJob, plan: PartsPlan, number: int) -> bool:
    """Encode a part; False if it is there already. Raises BusyError if another process is at it."""
    with ExitStack() as mine:
        with job.parts.exclusive_lock(job.waiting):
            if job.parts.plan() != plan or job.parts.has(number):
                # Somebody else has done it, and perhaps put the parts together since.
                return False
            mine.enter_context(job.parts.lock(number, plan.parts))
        _encode_part(job, plan, number)
    return True


def _encode_part(job: PartJob, plan: PartsPlan, number: int) -> None:
    start_time = time.perf_counter()
    tokenizer = job.parts.tokenizer
    verify_files(tokenizer, plan.tokenizer_files, remedy="begin anew with --force on every part")
    part = corpus_part(job, plan, number)
    order = _order(job, plan, part, number)
    source = FromText(order, tokenizer, job.config.workers, part.total_bytes)
    documents = tokens = text_bytes = 0
    with job.parts.publish(number) as folder, ExitStack() as cleanup:
        writer = PartWriter(folder / DOCUMENTS, plan.vocab_size)
        cleanup.callback(writer.abandon)
        for batch in source.batches():
            writer.add(batch)
            documents += len(batch.split_keys)
            tokens += len(batch.encoded.tokens)
            text_bytes += int(batch.text_bytes.sum())
            speed = text_bytes / 1e6 / (time.perf_counter() - start_time)
            done = batch.position - max(part.begin, 0)
            job.reporter.progress(source.task, done, part.total_bytes, f"{speed:.1f} MB/s")
        writer.close()
        record = PartRecord(
            documents=documents,
            tokens=tokens,
            text_bytes=text_bytes,
            duplicates=source.duplicates,
            first_file=part.files[0] if part.files else None,
            before=part.before,
            last_file=part.files[-1] if part.files else None,
            until=part.until,
            seconds=time.perf_counter() - start_time,
        )
        write_record(folder, record)


def _order(
    job: PartJob, plan: PartsPlan, part: CorpusPart | tuple[()], number: int
) -> ByHash | ByTail:
    share = job.config.validation
    if plan.characters is None:
        return ByHash(part, share)
    return ByTail(part, share, sum(plan.characters), sum(plan.characters[: number - 1]))


def merge_parts(job: PartJob, plan: PartsPlan) -> tuple[Artefact | None, list[int]]:
    """The shards, if all parts are there, else None and the numbers of those that are missing."""
    with job.parts.exclusive_lock(job.waiting):
        if job.parts.plan() != plan:
            return _already_merged(job, plan), []
        missing = job.parts.missing(plan)
        if missing:
            return None, missing
        start_time = time.perf_counter()
        records = [job.parts.verified(number) for number in range(1, plan.parts + 1)]
        _check_seams(job, plan, records)
        if not any(record.documents for record in records):
            raise job.corpus.no_text()
        manifest = new_manifest(
            "shards",
            job.name,
            stage="tokenize",
            config=job.config.model_dump(mode="json"),
            identity=Identity.of("tokenize", job.config, plan.inputs),
            inputs=plan.made_from,
        ).model_copy(update={"created": plan.created})
        vocabulary = TokenizerSummary(plan.vocab_size, plan.tokenizer_kind, plan.tokenizer_digest)
        with job.workspace.publish(manifest) as (target, summary):
            shutil.copytree(job.parts.tokenizer, target / "tokenizer")
            source = _FromParts(job, plan, records)
            summary.update(
                write_shards(source, target, vocabulary, job.config.validation, job.reporter)
            )
            # As long as it takes where all parts are made at once.
            seconds = max(record.seconds for record in records) + time.perf_counter() - start_time
            summary.update(
                seconds=round(seconds, 3),
                megabytes_per_second=source.text_bytes / 1e6 / seconds,
            )
        job.parts.remove()
    if plan.characters is None:
        note_split(summary, job.config.validation, job.reporter)
    return job.workspace.get("shards", job.name), []


def _already_merged(job: PartJob, plan: PartsPlan) -> Artefact:
    """The shards that another process has put together."""
    if job.name in job.workspace.names("shards"):
        shards = job.workspace.get("shards", job.name)
        if Identity.of("tokenize", job.config, plan.inputs).made(shards.manifest):
            return shards
    raise UsageError(
        f"the parts of shards {job.name} were begun anew with other options or files by another "
        "process; run this part again with the same"
    )


def _check_seams(job: PartJob, plan: PartsPlan, records: Sequence[PartRecord]) -> None:
    """Where two parts share a file, one begins where the other ends."""
    numbered = [(n, record) for n, record in enumerate(records, 1) if record.first_file is not None]
    for (number, record), (after, other) in pairwise(numbered):
        if record.last_file == other.first_file and record.until != other.before:
            raise InputError(
                f"parts {number} and {after} of shards {job.name} disagree where "
                f"{plan.files[other.first_file or 0].name} is cut: read by other versions of a "
                "library; begin anew with --force on every part and the same versions"
            )


class _FromParts:
    """The documents of all parts, in order, without those that an earlier part has."""

    task = "putting parts together"

    def __init__(self, job: PartJob, plan: PartsPlan, records: Sequence[PartRecord]) -> None:
        self._parts, self._records = job.parts, records
        self._each_once = plan.characters is None
        self.limit = _order(job, plan, (), 1).limit
        self.total = sum(record.tokens for record in records)
        self.duplicates = self.text_bytes = 0

    def batches(self) -> Iterator[EncodedDocuments]:
        seen = SeenHashes()
        self.duplicates = sum(record.duplicates for record in self._records)
        self.text_bytes = 0
        done = 0
        for number, record in enumerate(self._records, 1):
            for batch in read_part(self._parts.part(number) / DOCUMENTS):
                if self._each_once:
                    new = seen.add(batch.split_keys)
                    self.duplicates += len(new) - int(np.count_nonzero(new))
                    batch = batch.select(new)
                self.text_bytes += int(batch.text_bytes.sum())
                if len(batch.split_keys):
                    yield replace(batch, position=done + batch.position)
            done += record.tokens
