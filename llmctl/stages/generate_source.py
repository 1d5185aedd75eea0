"""Generate from a file of sources: each line or row is translated or summarised, in order.

What is written so far stands beside the output, in a hidden file whose name tells what it was made
from; a stopped command goes on there. It begins again with the first prompt of a block of those
that were sorted by length together, so the result has the same bits as if it had never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmctl.data.decoding import DEFAULT, ReadOptions
from llmctl.data.source_target import read_pairs
from llmctl.errors import InputError
from llmctl.stages.columns import pair_columns
from llmctl.stages.generate import Answer, Generation, Prompt, as_record
from llmctl.stages.reporter import Reporter
from llmctl.training.distributed import current
from llmctl.workspace.files import sha256_file, sha256_json, to_json

AS_RECORDS = (".jsonl", ".json")
"""Outputs that get an object a line, instead of the text."""


def write_from_file(
    generation: Generation,
    sources: Path,
    output: Path,
    *,
    source_column: str | None = None,
    reading: ReadOptions = DEFAULT,
    reporter: Reporter | None = None,
) -> int:
    """Write a text for each source into ``output``, in their order; returns how many there are.

    sources: plain text, a source a line, or a table. output: a text a line, or with the ending
    .jsonl objects with source, text, tokens and log-probabilities. source_column: by default that
    of the finetuning, where the file has it. A source of blanks gets an
    empty text. Raises InputError if there are no sources.
    """
    reporter = reporter or Reporter()
    if reading.header == "auto":  # one that had to be named once is there in files of the kind
        reading = replace(reading, header=generation.model.read_config.header)
    columns = pair_columns(
        generation.model,
        sources,
        source_column=source_column,
        need_target=False,
        reading=reading,
        note=reporter.note,
    )
    column = columns.source if columns else None
    total = sum(1 for _ in read_sources(sources, column, reading))
    if not total:
        raise InputError(f"--source {sources} has no sources; write one a line")
    made_from = {
        "sources": sha256_file(sources),
        "column": column,
        "suffix": output.suffix,
        "reading": [reading.encoding, reading.errors, reading.header],
        **generation.identity,
    }
    partial = output.with_name(f".{output.name}.{sha256_json(made_from)[:16]}.partial")
    block = generation.block_size
    world = current()
    done = _whole_blocks(partial, block) if world.is_main and partial.exists() else 0
    done = int(world.total([done])[0])
    if done:
        reporter.note(f"{output}: going on behind {done:,} of {total:,} sources")
    prompts = islice(read_sources(sources, column, reading), done, None)
    # Of several processes one writes; it has the others' texts.
    with (partial if world.is_main else Path(os.devnull)).open("a", encoding="utf-8") as file:
        lines = []
        for answer in generation.answers(prompts, first=done):
            lines.append(_line(answer, generation, as_records=output.suffix in AS_RECORDS))
            done += 1
            reporter.progress("writing", done, total)
            if done % block == 0 or done == total:
                file.writelines(lines)
                file.flush()
                lines.clear()
        if world.is_main:
            os.fsync(file.fileno())
    if world.is_main:
        partial.replace(output)
    world.wait()
    return total


def _line(answer: Answer, generation: Generation, *, as_records: bool) -> str:
    blank = not answer.prompt.text.strip()
    if as_records:
        record: dict[str, Any] = as_record(answer, generation.tokenizer)
        best = record["completions"][0]["text"]
        line = {"source": record.pop("prompt"), "text": "" if blank else best.strip()}
        return to_json({**line, "at": record.pop("source"), **record}) + "\n"
    text = "" if blank else answer.completions[0].text
    return " ".join(text.split()) + "\n"


def _whole_blocks(partial: Path, block: int) -> int:
    """Cut a stopped command's texts to whole blocks; returns how many there are."""
    with partial.open("r+b") as file:
        ends = [0]
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        whole = (len(ends) - 1) // block * block
        file.truncate(ends[whole])
    return whole


def read_sources(
    path: Path, column: str | None = None, reading: ReadOptions = DEFAULT
) -> Iterator[Prompt]:
    """The sources of a file, each with its place. Raises InputError if there is no such file."""
    for pair in read_pairs(path, source_column=column, need_target=False, reading=reading):
        yield Prompt(pair.source, pair.where)
