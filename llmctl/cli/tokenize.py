"""``llmctl tokenize``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError

if TYPE_CHECKING:
    from llmctl.stages.tokenize.parts import Part

EXAMPLE = "Example: llmctl tokenize corpus/*.txt --tokenizer wordpiece --vocab-size 16000"

ADDRESS = re.compile(r"auto|local|(ray://)?[\w.-]+:[0-9]+")
"""What may follow ``--ray``; whatever else does is a file."""


class Command(TyperCommand):
    """Takes ``--ray`` with or without an address: options of Typer always have a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--ray" in args:
            after = args.index("--ray") + 1
            if not (after < len(args) and ADDRESS.fullmatch(args[after])):
                args = [*args[:after], "auto", *args[after:]]
        return super().parse_args(ctx, args)


@guarded
def command(
    sources: list[str] = argument(
        "Files (.txt .md .jsonl .csv .parquet .arrow, .gz .zst), folders, globs, - for standard "
        "input, python:docs or python:code.",
        default=...,
    ),
    tokenizer: str | None = option(
        "A kind to learn (wordpiece, bpe, unigram, sentencepiece-bpe, characters) or an existing "
        "one: a name in the workspace, a folder, a tokenizer.json, GPT-2's vocab.json, a .model, a "
        ".tiktoken, a vocab.txt.",
        autocompletion=artefact_names.TOKENIZERS,
        show_default="wordpiece",
    ),
    vocab_size: int | None = option("Pieces to learn.", show_default="by corpus size"),
    cased: bool | None = option("Keep capitals and accents.", "--cased"),
    sentinels: int | None = option(
        "Sentinels (<extra_id_0>, …) beside the pieces, for --arch t5; T5 has 100.",
        show_default="0",
    ),
    fim: bool | None = option(
        "Add the tokens of fill-in-the-middle, for --set objective.fim=0.5.", "--fim"
    ),
    text_column: str | None = options.TEXT_COLUMN,
    document: str | None = option("What a document is in plain text: auto, file, paragraph, line."),
    validation: float | None = option("Share held out to validate on.", show_default="0.02"),
    split: str | None = option(
        "What is held out. hash: documents by their hash; tail: the corpus's last characters.",
        show_default="hash",
    ),
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    workers: int | None = option("Processes; 0: one a core."),
    part: str | None = option(
        "Make the I-th of N parts, each by a process on any machine with the workspace, in any "
        "order, e.g. --part $SLURM_ARRAY_TASK_ID/8; the last to end puts them together.",
        metavar="I/N",
    ),
    ray: str | None = option(
        "Make all parts on a Ray cluster: the one at an address (host:port, ray://…), by default "
        "the running one, or else this machine. Needs the extra scale.",
        metavar="[ADDRESS]",
    ),
    name: str | None = options.NAME,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    force: bool = options.FORCE,
    dry_run: bool = options.DRY_RUN,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Learn a tokenizer from text, or take one, and write the text as shards of tokens."""
    asked = locals()
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.stages.tokenize.parts import tokenize_part
    from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize

    config = options.configured(TokenizeConfig, "tokenize", asked)
    chosen = _chosen_part(part, ray, name)
    if dry_run:
        plan: dict[str, Any] = {"config": config.model_dump(mode="json"), "sources": sources}
        if chosen is not None:
            plan["part"] = str(chosen)
        print_dry_run(plan, config, json=json)
        return
    place, missing = options.open_workspace(workspace), list[int]()
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter, "fewer --workers leave them more")
        how: dict[str, Any] = {"name": name, "force": force, "reporter": reporter}
        if chosen is not None:
            done = tokenize_part(place, sources, config, chosen, **how)
            artefact, up_to_date, missing = done.shards, done.up_to_date, done.missing
        elif ray is not None:
            from llmctl.stages.tokenize.ray_data import tokenize_on_ray

            artefact, up_to_date = tokenize_on_ray(place, sources, config, ray, **how)
        else:
            artefact, up_to_date = tokenize(place, sources, config, **how)
        if up_to_date:
            what = f"shards {artefact.manifest.name}" if artefact else f"part {chosen} of {name}"
            reporter.note(f"{what}: up to date")
    if json:
        shards = {
            "name": artefact.manifest.name if artefact else name,
            "folder": str(artefact.folder) if artefact else None,
        }
        parts = {"part": chosen.number, "parts": chosen.of, "missing": missing} if chosen else {}
        print_json({**shards, **parts, **(artefact.manifest.summary if artefact else {})})
    elif artefact is None:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        out().print(f"part {chosen} of shards {name}: done; {len(missing)} missing ({shown})")
    else:
        out().print(f"shards {artefact.manifest.name}: {_figures(artefact.manifest.summary)}")


def _figures(summary: dict[str, Any]) -> str:
    words = summary["tokens"] / max(summary["tokens_per_word"], 1e-9)
    # Where words are short, most are Chinese characters.
    per = "word" if summary["characters"] > 2.5 * words else "word (a Chinese character is one)"
    duplicates = f", {summary['duplicates']:,} duplicates dropped" if summary["duplicates"] else ""
    return (
        f"{summary['documents']:,} documents"
        f" ({summary['validation_documents']:,} for validation{duplicates}), "
        f"{summary['tokens']:,} tokens, {summary['tokens_per_word']:.2f} tokens per {per}, "
        f"{summary['unknown_share']:.3%} unknown, {summary['megabytes_per_second']:.1f} MB/s"
    )


def _chosen_part(part: str | None, ray: str | None, name: str | None) -> Part | None:
    from llmctl.stages.tokenize.parts import parse_part

    if ray is not None and not ADDRESS.fullmatch(ray):
        raise UsageError(
            f"--ray {ray} is not an address: write host:port, ray://host:port or local"
        )
    if part is None:
        return None
    if ray is not None:
        raise UsageError("--part and --ray: a Ray cluster makes all parts; leave one out")
    chosen = parse_part(part)
    if name is None:
        raise UsageError(f"--part {part}: give --name too, by which the parts find each other")
    return chosen
