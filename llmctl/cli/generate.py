"""``llmctl generate``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli import artefact_names, forms, options
from llmctl.cli.guard import guarded
from llmctl.cli.launch import data_parallel, is_rank_zero
from llmctl.cli.options import option
from llmctl.errors import UsageError
from llmctl.reporting.visible import visible

if TYPE_CHECKING:
    from llmctl.data.text.decoding import ReadOptions
    from llmctl.tasks.generation import Generated, Prompt

EXAMPLE = 'Example: llmctl generate --from gpt-docs --prompt "def main(" --top-p 0.9'


@guarded
def command(
    start: str = option(
        "A run of a language model, or a model folder.",
        "--from",
        default=...,
        autocompletion=artefact_names.RUNS,
    ),
    prompt: list[str] = option(
        "A text to go on from; may be repeated, and may be empty.", default=[]
    ),
    suffix: str | None = option(
        "A text that comes behind: the model fills in the middle, if it has learned to "
        "(objective.fim).",
    ),
    prompt_file: Path | None = option(
        "Prompts: a line each, or the field prompt of a JSONL file or table, and its field suffix "
        "where there is one; - for standard input."
    ),
    template: str | None = option(
        "What writes a prompt for each row of --data: a TOML file, or written out.",
        metavar="FILE|TEXT",
    ),
    data: Path | None = option("With --template: the table whose rows are asked."),
    shots: int = option("With --template: solved examples before each question.", default=0, min=0),
    examples: Path | None = option("With --shots: the table that solved examples are drawn from."),
    max_new_tokens: int | None = option("Tokens that are added at most.", show_default="100"),
    min_new_tokens: int | None = option(
        "Tokens before which a text may not end.", show_default="0"
    ),
    temperature: float | None = option(
        "Sample, sharper below 1 and flatter above; 0: the likeliest always."
    ),
    top_k: int | None = option("Sample among so many of the likeliest tokens."),
    top_p: float | None = option(
        "Sample among the likeliest tokens that have this probability together."
    ),
    min_p: float | None = option(
        "Sample among tokens at least this share as likely as the likeliest."
    ),
    typical_p: float | None = option(
        "Sample among tokens of typical surprise, up to this probability."
    ),
    repetition_penalty: float | None = option("Above 1, tokens that the text has come less often."),
    frequency_penalty: float | None = option(
        "What is taken from a token's logit for each time it was written."
    ),
    no_repeat_ngram_size: int | None = option("No so many tokens in a row come twice."),
    bad_words: list[str] = option("A word that is not written; may be repeated.", default=[]),
    stop: list[str] = option("A text at which writing ends; may be repeated.", default=[]),
    schema: str | None = forms.SCHEMA,
    regex: str | None = forms.REGEX,
    choice: list[str] = forms.CHOICE,
    grammar: Path | None = forms.GRAMMAR,
    num_beams: int | None = option("Beam search over so many texts.", show_default="1"),
    length_penalty: float | None = option(
        "Beam search: above 0 it favours long texts.", show_default="1"
    ),
    early_stopping: str | None = option(
        "Beam search ends with enough texts (true), when none seems able to beat them (false), or "
        "none can (never).",
        show_default="false",
    ),
    num_samples: int | None = option(
        "Texts for each prompt; of beam search the best.", show_default="1"
    ),
    penalty_alpha: float | None = option(
        "Contrastive search among --top-k tokens: the weight of being unlike."
    ),
    draft: str | None = options.DRAFT,
    prompt_lookup: int | None = options.PROMPT_LOOKUP,
    draft_tokens: int | None = options.DRAFT_TOKENS,
    source: Path | None = option(
        "For a model finetuned with --task seq2seq: a file to translate or summarise, a source a "
        "line or row; with --output, and goes on where it stopped.",
    ),
    source_column: str | None = options.SOURCE_COLUMN,
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    output: Path | None = option(
        "Write the answers here, a JSON object a line; with --source a text a line, unless the "
        "name ends in .jsonl. A file is replaced when all are there; - is standard output, and to "
        "a pipe or a device they are written.",
    ),
    seed: int | None = options.SEED,
    device: str | None = options.DEVICE,
    dtype: str | None = option(
        "Number format of the weights: fp32, bf16, int8 or int4, the smallest.",
        show_default="fp32",
    ),
    kernels: str | None = options.KERNELS,
    generation_config: str | None = options.GENERATION_CONFIG,
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Write on from prompts. Always the likeliest token, unless an option asks for sampling, or the
    model's own generation_config.json does."""
    table = locals()
    options.load_pytorch(large_pages=True)
    from llmctl.cli.console import TerminalReporter, print_json
    from llmctl.stages.generate import (
        Templated,
        as_record,
        open_generation,
        templated,
        write_records,
    )
    from llmctl.stages.generate_source import write_from_file
    from llmctl.tasks.generation import GenerateConfig
    from llmctl.workspace.outputs import output_at

    config = options.configured(GenerateConfig, "generate", table)
    _check(table)
    form = forms.form(table)
    target = output_at(output) if output else None
    place = options.open_workspace(workspace)
    reads_stdin = not (prompt or prompt_file or template or source) or str(prompt_file) == "-"
    with data_parallel(nproc, reads_stdin=reads_stdin), TerminalReporter(quiet=quiet) as reporter:
        reading = options.read_options(encoding, encoding_errors, header, reporter.note)
        how_many = len(prompt) or None
        generation = open_generation(
            place, start, config, draft=draft, prompts=how_many, form=form, reporter=reporter
        )
        if source and target:
            how: dict[str, Any] = {"source_column": source_column, "reading": reading}
            count = write_from_file(generation, source, target, reporter=reporter, **how)
            reporter.note(f"{count:,} texts in {output}")
            if json:
                print_json({"model": start, "output": str(output), "texts": count})
            return
        if template and data:
            asked = Templated(template, data, examples, shots, reading)
            prompts: Iterable[Prompt] = templated(generation, asked)
        else:
            prompts = _prompts(prompt, suffix, prompt_file, reading)
        if json or target:
            records = []
            for answer in generation.answers(prompts):
                records.append(as_record(answer, generation.tokenizer))
                reporter.progress("writing", len(records), None)
            reporter.clear()
            if target and is_rank_zero():
                write_records(target, records)
                reporter.note(f"{len(records)} answers in {output}")
            if json:
                print_json({"model": start, "answers": records})
            return
        if len(prompt) == 1 and config.num_samples == 1:
            shown = "" if generation.from_sources else prompt[0]
            _stream(shown, suffix or "", lambda tell: generation.answers(prompts, tell))
            return
        for number, answer in enumerate(generation.answers(prompts)):
            _print(answer, first=number == 0, alone=generation.from_sources)


def _check(asked: Mapping[str, Any]) -> None:
    """Raises UsageError for options, by name, that don't go together."""
    ways = ("prompt", "prompt_file", "template", "source")
    chosen = [f"--{way.replace('_', '-')}" for way in ways if asked[way]]
    if len(chosen) > 1:
        raise UsageError(f"give {' or '.join(chosen)}, not both")
    if asked["template"] and asked["data"] is None:
        raise UsageError("--template needs --data FILE, whose rows it is filled in from")
    for name in ("data", "examples", "shots"):
        if asked[name] and not asked["template"]:
            raise UsageError(f"--{name} goes with --template FILE, which makes prompts of it")
    if asked["source"] and asked["output"] is None:
        raise UsageError("--source needs --output FILE, which the texts are written into")
    if asked["suffix"] is not None and not asked["prompt"]:
        raise UsageError(
            "--suffix goes with --prompt, the text before it, which may be empty; of a file of "
            "prompts each row may have a suffix of its own"
        )
    if asked["source_column"] and not asked["source"]:
        raise UsageError("--source-column goes with --source FILE, a table")
    if not chosen and sys.stdin.isatty():
        raise UsageError('give a prompt: llmctl generate --from RUN --prompt "Once upon a time"')
    if asked["output"] and asked["json"] and str(asked["output"]) == "-":
        raise UsageError("--output - and --json both write to standard output; leave one out")


def _prompts(
    texts: list[str], suffix: str | None, path: Path | None, reading: ReadOptions
) -> list[Prompt] | Iterator[Prompt]:
    from llmctl.stages.generate import read_prompts
    from llmctl.tasks.generation import Prompt

    given = {f"--prompt {number}": text for number, text in enumerate(texts, 1)}
    for name, text in {**given, "--suffix": suffix or ""}.items():
        # The shell hands over any bytes; what is not UTF-8 comes as lone surrogates.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(f"{name} is not UTF-8; convert it, or give it with --prompt-file")
    if texts:
        return [Prompt(text, name, suffix) for name, text in given.items()]
    return read_prompts(path or Path("-"), reading)


def _write(text: str) -> None:
    # Into a file or a pipe goes exactly what was written.
    sys.stdout.write(visible(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _stream(
    prompt: str, suffix: str, answers: Callable[[Callable[[str], None]], Iterator[Generated]]
) -> None:
    """The prompt, what follows it as it comes, and what comes behind."""
    unwritten = prompt

    def tell(text: str) -> None:
        nonlocal unwritten  # until the prompt is known to be good
        _write(unwritten + text)
        unwritten = ""

    for _ in answers(tell):
        tell(f"{suffix}\n")


def _print(answer: Generated, *, first: bool, alone: bool) -> None:
    """Each text behind its prompt, or alone, with an empty line between texts."""
    for number, completion in enumerate(answer.completions):
        if not (first and number == 0):
            _write("\n")
        before = "" if alone else answer.prompt.text
        _write(f"{before}{completion.text}{answer.prompt.suffix or ''}\n")
