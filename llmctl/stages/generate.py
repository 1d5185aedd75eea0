"""Generate: prompts to what a language model writes behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.config import build
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions, text_lines
from llmctl.data.text.files import STDIN, format_of, named
from llmctl.data.text.sources import no_file
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.sampling_defaults import DRAWING, taken_defaults
from llmctl.inference.constraints import GrammarKind
from llmctl.inference.decoding import GenerationConfig
from llmctl.inference.prompts import Shots, find_columns, read_rows, write_prompts
from llmctl.inference.templates import read_template
from llmctl.parsing import Malformed, parse_json
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.generation import GenerateConfig, Generated, Prompt, TextGenerator, generator_of
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import to_json
from llmctl.workspace.outputs import Output

PROMPT_FIELD, SUFFIX_FIELD = "prompt", "suffix"


@dataclass(frozen=True)
class Templated:
    """A template and the tables that its prompts are made of."""

    template: Path | str
    data: Path
    examples: Path | None
    shots: int
    reading: ReadOptions = DEFAULT


def open_generation(
    workspace: Workspace,
    start: str,
    config: GenerateConfig,
    *,
    draft: str | None = None,
    prompts: int | None = None,
    form: tuple[GrammarKind, Any] | None = None,
    reporter: Reporter | None = None,
) -> TextGenerator:
    """The model of a run's name or of a folder, ready to write. draft: a smaller model that writes
    ahead. prompts: how many there will be, if that is known. form: what the texts are kept to. What
    the folder's generation_config.json says of how texts are chosen counts where the configuration
    was not given otherwise, and is told.

    Raises InputError if one of them is not there or writes no text, UsageError if their
    vocabularies differ.
    """
    model = OpenedModel.open(workspace, start)
    config = _as_the_folder_says(model.folder, config, reporter or Reporter())
    ahead = None if draft is None else OpenedModel.open(workspace, draft)
    return generator_of(model)(
        model, config, draft=ahead, prompts=prompts, form=form, reporter=reporter
    )


def _as_the_folder_says(
    model: Pretrained, config: GenerateConfig, reporter: Reporter
) -> GenerateConfig:
    """The configuration with a folder's own values of what was not given."""
    searches = config.num_beams > 1 or config.penalty_alpha is not None
    taken = taken_defaults(
        model,
        config.generation_config,
        fields=GenerationConfig,
        given=config.model_fields_set,
        passed_over=DRAWING if searches else (),
        user="a search" if searches else "generate",
        reporter=reporter,
    )
    return build(GenerateConfig, config.model_dump(exclude_unset=True), taken)


def templated(generation: TextGenerator, table: Templated) -> Iterator[Prompt]:
    """A prompt for each row of a table."""
    template = read_template(table.template)
    if template.is_cloze:
        raise UsageError(
            f"--template {table.template} has a mask, and what is written stands behind a prompt; "
            "leave {{ mask }} out, or ask with llmctl predict"
        )
    how: dict[str, Any] = {"reading": table.reading}
    asks_label = "label" in template.input_fields
    columns = find_columns(table.data, template, need_label=asks_label, **how)
    rows = read_rows(table.data, template, columns, **how)
    solved = []
    if table.shots:
        if table.examples is None:
            raise UsageError(
                f"--shots {table.shots} needs --examples FILE, a table of solved examples"
            )
        columns = find_columns(table.examples, template, need_label=template.tells_label, **how)
        solved = list(read_rows(table.examples, template, columns, **how))
    shots = Shots(template, solved, generation.config.seed)

    def fits(row: object, prompt: str) -> bool:
        most = generation.max_positions
        needed = len(generation.tokenizer.encode(prompt)) + 1 + generation.config.max_new_tokens
        return most is None or needed <= most

    for prompt in write_prompts(template, rows, shots, table.shots, fits):
        if prompt.dropped:
            generation.note_once(
                f"{prompt.row.source}: {prompt.dropped} of {table.shots} examples do not fit "
                "into the context; the first are left out"
            )
        yield Prompt(prompt.text, prompt.row.source)


def read_prompts(path: Path, reading: ReadOptions = DEFAULT) -> Iterator[Prompt]:
    """The prompts of a file: a line each, or of a table (JSONL, CSV, …) the ``prompt`` of each row,
    and its ``suffix`` where it has one. Of standard input (``-``) a line each, or JSON objects with
    a ``prompt`` if the first line is one.

    Raises InputError if there are none, or a row has no prompt.
    """
    if path.is_dir():
        raise no_file("--prompt-file", path)
    any_prompt = False
    if path == STDIN:
        prompts = _of_stream(reading)
    elif format_of(path) == ".txt":
        prompts = _of_lines(path, reading)
    else:
        rows = RowReader(path, known=frozenset([PROMPT_FIELD, SUFFIX_FIELD]), reading=reading)
        prompts = (_prompt_of(row.values, row.source) for row in rows)
    for prompt in prompts:
        any_prompt = True
        yield prompt
    if not any_prompt:
        what = named(path) if path == STDIN else f"--prompt-file {path}"
        raise InputError(f"{what} has no prompts; write one a line")


def _of_lines(path: Path, reading: ReadOptions) -> Iterator[Prompt]:
    for number, (line, _) in enumerate(text_lines(path, reading), 1):
        yield Prompt(line.removesuffix("\n"), f"{named(path)}:{number}")


def _of_stream(reading: ReadOptions) -> Iterator[Prompt]:
    as_json = None
    for line in _of_lines(STDIN, reading):
        value = _object_in(line.text) if as_json is not False else None
        if as_json is None:
            as_json = value is not None and PROMPT_FIELD in value
        if not as_json:
            yield line
        elif line.text.strip():
            if value is None:
                raise InputError(f"{line.source} is not a JSON object, as the first line is")
            yield _prompt_of(value, line.source)


def _object_in(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except Malformed:
        return None
    return value if isinstance(value, dict) else None


def _prompt_of(values: Mapping[str, Any], source: str) -> Prompt:
    value = values.get(PROMPT_FIELD)
    if not isinstance(value, str):
        raise InputError(
            f"{source} has no text {PROMPT_FIELD!r}; every row of a prompt file needs one"
        )
    suffix = values.get(SUFFIX_FIELD)
    if suffix is not None and not isinstance(suffix, str):
        raise InputError(f"{source}: {SUFFIX_FIELD!r} is no text; every row's is one, or null")
    return Prompt(value, source, suffix)


def as_record(answer: Generated, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer as JSON has it."""
    return {
        "prompt": answer.prompt.text,
        **({} if answer.prompt.suffix is None else {"suffix": answer.prompt.suffix}),
        "source": answer.prompt.source,
        "completions": [
            {
                "text": completion.text,
                "finish": completion.finish,
                "tokens": [tokenizer.id_to_token(number) for number in completion.ids],
                "ids": list(completion.ids),
                "log_probs": list(completion.log_probs),
                **({} if completion.score is None else {"score": completion.score}),
                **(
                    {"drafted": completion.drafted, "accepted": completion.accepted}
                    if completion.drafted
                    else {}
                ),
            }
            for completion in answer.completions
        ],
    }


def write_records(output: Output, records: Sequence[dict[str, Any]]) -> None:
    """Write a JSON object a line, into a file all or nothing."""
    lines = (to_json(record) + "\n" for record in records)
    output.write("".join(lines))
