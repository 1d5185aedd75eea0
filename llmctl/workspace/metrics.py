"""The metrics log of a run, ``metrics.jsonl``: a line for each logged step, of numbers.

The log of a long training has hundreds of thousands of lines. It is read a line at a time; what
shows how a run goes takes of its training steps no more than a curve can show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmctl.errors import InputError, read_errors_naming
from llmctl.parsing import Malformed, parse_json

Metrics = dict[str, Any]

WHOLE_BYTES = 1 << 20
"""A log up to this long is read whole."""
STRETCHES, STRETCH_BYTES = 128, 1 << 12
"""So many stretches of this length, at equal distances, are read of a longer log."""
TAIL_BYTES = 1 << 16
"""Bytes at the end of a longer log that are read."""
BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20
"""Bytes; no record has as many."""
MAX_COUNTED = 1 << 63
"""Nothing that is counted comes to this."""

VALIDATION = b'"kind": "validation"'
"""How a line says that it is of a validation, as ``RunRecorder`` writes it."""


@dataclass(frozen=True)
class Glance:
    """How a run goes."""

    train: list[Metrics]
    """The records of training, in their order; evenly chosen ones of a long log, with its last."""
    validations: list[Metrics]
    """All looks at the validation data."""


def read_metrics(path: Path) -> list[Metrics]:
    """The records of a log; a last line cut short by a crash is left out.

    Raises InputError naming the first line that is no record.
    """
    return [record for _, record in metric_lines(path)]


def metric_lines(path: Path) -> Iterator[tuple[bytes, Metrics]]:
    """The lines of a log, each with its record, as ``read_metrics`` gives them; one at a time."""
    if not path.exists():
        return
    with _opened(path) as stream:
        damaged: InputError | None = None
        number = 0
        while line := stream.readline(MAX_RECORD_BYTES):
            number += 1
            if damaged is not None:
                raise damaged
            if line.strip():
                try:
                    record = _record(line)
                except Malformed as error:
                    damaged = _refused(f"{path}:{number}", error)
                else:
                    yield line, record


def glance(path: Path) -> Glance:
    """What shows how a run goes, in a memory and a time that don't grow with its steps.

    Raises InputError naming a line that is no record, if it is among those looked at.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return Glance([], [])
    if size <= WHOLE_BYTES:
        records = read_metrics(path)
        return Glance(_of("train", records), _of("validation", records))
    with _opened(path) as stream:
        body = size - TAIL_BYTES
        sampled = [
            record
            for number in range(STRETCHES)
            for record in _within(stream, path, body * number // STRETCHES, STRETCH_BYTES)
        ]
        tail = _within(stream, path, body, TAIL_BYTES, is_end=True)
        looks = [_parsed(line, path) for line in _lines_with(stream, VALIDATION)]
    return Glance(_of("train", [*sampled, *tail]), _of("validation", looks))


def _of(kind: str, records: list[Metrics]) -> list[Metrics]:
    return [record for record in records if record.get("kind") == kind]


def _opened(path: Path) -> IO[bytes]:
    """A log as a file. Raises InputError for what can't be read, or not to its end."""
    if not os.path.isfile(path):
        raise InputError(f"{path} is a folder or a device, where a log was expected; move it away")
    with read_errors_naming(path):
        return path.open("rb")


def _within(
    stream: IO[bytes], path: Path, begin: int, length: int, *, is_end: bool = False
) -> list[Metrics]:
    """The records of the whole lines in a stretch of a log. is_end: the last may be none."""
    stream.seek(begin)
    lines = stream.read(length).split(b"\n")
    # The first line has begun before, unless it is the log's first; the last goes on behind.
    whole = [line for line in lines[1 if begin else 0 : -1] if line.strip()]
    records = [_parsed(line, path) for line in whole[:-1]]
    try:
        return [*records, *(_parsed(line, path) for line in whole[-1:])]
    except InputError:
        if not is_end:
            raise
        return records


def _lines_with(stream: IO[bytes], mark: bytes) -> Iterator[bytes]:
    """The whole lines of a log that have some bytes in them."""
    stream.seek(0)
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        whole, newline, rest_of = (rest + block).rpartition(b"\n")
        rest = rest_of[-MAX_RECORD_BYTES:]
        at = whole.find(mark) if newline else -1
        while at >= 0:
            end = whole.find(b"\n", at)
            end = len(whole) if end < 0 else end
            yield whole[whole.rfind(b"\n", 0, at) + 1 : end]
            at = whole.find(mark, end)


def _parsed(line: bytes, path: Path) -> Metrics:
    try:
        return _record(line)
    except Malformed as error:
        shown = line[:40].decode(errors="replace")
        raise _refused(f"{path}: the line {shown!r}", error) from None


def _refused(where: str, error: Malformed) -> InputError:
    return InputError(f"{where} {error}; remove that line, or begin again with --force")


def _record(line: bytes) -> Metrics:
    """A line's record: a kind, and numbers. Raises Malformed with what the line does wrong."""
    try:
        record = parse_json(line)
    except Malformed:
        record = None
    if not isinstance(record, dict):
        raise Malformed("is no JSON object")
    for name, value in record.items():
        if name == "kind":
            sound = isinstance(value, str)
        else:
            sound = value is None or isinstance(value, float) or _is_count(value)
        if not sound:
            raise Malformed(f"has a {name[:40]!r} that is no number")
    for name in ("step", "tokens"):
        if not _is_count(record.get(name, 0)):
            raise Malformed(f"has a {name!r} that is no whole number")
    if "kind" in record and "step" not in record:
        raise Malformed("names no step")
    return record


def _is_count(value: object) -> bool:
    return type(value) is int and -MAX_COUNTED < value < MAX_COUNTED
