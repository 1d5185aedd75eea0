"""Generate from a file of sources: each line or row is translated or summarised, in order.

What is written so far stands beside the output, in a hidden file whose name tells what it was made
from; a stopped command goes on there. It begins again with the first prompt of a block of those
that were sorted by length together, so the result has the same bits as if it had never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from llmctl.data.tables.parallel_text import read_pairs
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.errors import InputError, LlmctlError, UsageError, error_of, record_of
from llmctl.formats.columns import pair_columns
from llmctl.reporting.reporter import Reporter
from llmctl.stages.generate import as_record
from llmctl.tasks.generation import Generated, Prompt, TextGenerator
from llmctl.training.distributed.processes import get_world
from llmctl.workspace.files import sha256_file, sha256_json, to_json
from llmctl.workspace.outputs import Output

AS_RECORDS = (".jsonl", ".json")
"""Outputs that get an object a line, instead of the text."""


def write_from_file(
    generation: TextGenerator,
    sources: Path,
    output: Output,
    *,
    source_column: str | None = None,
    reading: ReadOptions = DEFAULT,
    reporter: Reporter | None = None,
) -> int:
    """Write a text for each source into ``output``, in their order; returns how many there are.

    sources: plain text, a source a line, or a table. output: a text a line, or with the ending
    .jsonl objects with source, text, tokens and log-probabilities. source_column: by default that
    of the finetuning, where the file has it. A source of blanks gets an
    empty text. Raises InputError if there are no sources, UsageError for a model that writes from
    none.
    """
    reporter = reporter or Reporter()
    if not generation.from_sources:
        raise UsageError(
            f"--source is for models finetuned with --task seq2seq, and {generation.model.name} is "
            "none; give its prompts with --prompt-file"
        )
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

    def made_from() -> str:
        value = {
            "sources": sha256_file(sources),
            "column": column,
            "suffix": output.path.suffix,
            "reading": [reading.encoding, reading.errors, reading.header],
            **generation.identity(),
        }
        return sha256_json(value)[:16]

    with _opened(output, made_from) as file:
        block = generation.block_size
        world = get_world()
        done = _whole_blocks(file, block) if world.is_main and output.file else 0
        done = int(world.all_reduce_sum([done])[0])
        if done:
            reporter.note(f"{output.path}: going on behind {done:,} of {total:,} sources")
        prompts = islice(read_sources(sources, column, reading), done, None)
        lines = []
        for answer in generation.answers(prompts, first=done):
            lines.append(_line(answer, generation, output.path.suffix in AS_RECORDS))
            done += 1
            reporter.progress("writing", done, total)
            if done % block == 0 or done == total:
                file.write("".join(lines).encode())
                file.flush()
                lines.clear()
    world.barrier()
    return total


@contextmanager
def _opened(output: Output, made_from: Callable[[], str]) -> Iterator[BinaryIO]:
    """What the texts are written into; of several processes one writes, and has the others' texts.
    Raises on all processes what it meets at the start."""
    world, opened = get_world(), ExitStack()
    failure: Exception | None = None
    file: BinaryIO | None = None
    if world.is_main:
        try:
            way = output.stream() if output.file is None else output.partial(made_from())
            file = opened.enter_context(way)
        except (LlmctlError, OSError) as error:
            failure = error
    told = world.all_gather_json(failure and record_of(failure))[0]
    if failure is not None:
        raise failure
    if told is not None:
        raise error_of(told)
    with opened, open(os.devnull, "wb") as nowhere:
        yield file or nowhere


def _line(answer: Generated, generation: TextGenerator, as_records: bool) -> str:
    blank = not answer.prompt.text.strip()
    if as_records:
        record: dict[str, Any] = as_record(answer, generation.tokenizer)
        best = record["completions"][0]["text"]
        line = {"source": record.pop("prompt"), "text": "" if blank else best.strip()}
        return to_json({**line, "at": record.pop("source"), **record}) + "\n"
    text = "" if blank else answer.completions[0].text
    return " ".join(text.split()) + "\n"


def _whole_blocks(file: BinaryIO, block: int) -> int:
    """Cut a stopped command's texts to whole blocks; returns how many there are."""
    file.seek(0)
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
