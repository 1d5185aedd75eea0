"""``llmctl eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import artefact_names, options
from llmctl.cli.launch import divided
from llmctl.cli.options import guarded
from llmctl.cli.threads import note_others

EXAMPLE = "Example: llmctl eval --from reviews --data test.csv"


@guarded
def command(
    start: Annotated[
        str,
        typer.Option(
            "--from", autocompletion=artefact_names.RUNS, help="A run, or a model folder."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled texts for a classifier; pairs for a model that writes from sources; "
            "text, a task's questions or, with --template, labelled rows for a language model. By "
            "default the validation part of the run's shards."
        ),
    ] = None,
    compare: Annotated[
        list[str],
        typer.Option(
            autocompletion=artefact_names.RUNS,
            help="Another model for the same table: a classifier or a language model; may be "
            "repeated.",
        ),
    ] = [],  # noqa: B006
    task: Annotated[
        str | None,
        typer.Option(
            help="What a language model is asked: perplexity, lambada, multiple-choice "
            "(HellaSwag, PIQA, ARC, or query, choices and gold) or blimp.",
            show_default="by the data's columns",
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file that writes a prompt for each row of the data, to classify without "
            "finetuning."
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            help="Solved examples in a prompt; several numbers (0,1,4) give a row each.",
            show_default="0",
        ),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Labelled rows that the solved examples are drawn from.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="What chooses an answer: plain (its likelihood), tokens or bytes (that for each), "
            "or pmi (against its prior).",
            show_default="plain",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens by which the window of a perplexity moves on.", show_default="half of it"
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="References, line by line, where --data is plain text with sources."),
    ] = None,
    source_column: options.SourceColumnOption = None,
    target_column: options.TargetColumnOption = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            help="Beams by which a model writes from sources; 1: the likeliest token always.",
            show_default="4",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that a model writes from a source at most: more than the references "
            "have, as what is cut off scores less.",
            show_default="128",
        ),
    ] = None,
    text_column: options.TextColumnOption = None,
    text_pair_column: options.TextPairColumnOption = None,
    label_column: options.LabelColumnOption = None,
    encoding: options.EncodingOption = None,
    encoding_errors: options.EncodingErrorsOption = None,
    header: options.HeaderOption = None,
    document: Annotated[
        str | None,
        typer.Option(
            help="What a document is in plain text: auto, file, paragraph, line.",
            show_default="auto",
        ),
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines", help="Measure baselines beside it.", show_default="yes"
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens scored of running text.",
            show_default="all, or 2000 for a pseudo-perplexity",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="A language model's weights: fp32, bf16 or int8; a perplexity stands beside "
            "that of fp32.",
            show_default="fp32",
        ),
    ] = None,
    device: options.DeviceOption = None,
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    threads: options.ThreadsOption = None,
    nproc: options.NprocOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure a model on held-out data, with baselines and intervals; keeps a report."""
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.cli.evaluation_tables import print_kept, print_report
    from llmctl.config import build, parse_assignments, read_recipe
    from llmctl.stages.evaluate import REPORT, EvaluateConfig, Files, evaluate_model, plan

    given: dict[str, Any] = {
        "task": task,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "source_column": source_column,
        "target_column": target_column,
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "encoding": encoding,
        "encoding_errors": encoding_errors,
        "header": header,
        "document": document,
        "stride": stride,
        "shots": shots,
        "score": score,
        "baselines": baselines,
        "max_tokens": max_tokens,
        "dtype": dtype,
        "device": device,
        "seed": seed,
    }
    config = build(
        EvaluateConfig,
        read_recipe(recipe, "eval") if recipe else {},
        {key: value for key, value in given.items() if value is not None},
        parse_assignments(set_),
    )
    place, files = options.open_workspace(workspace), Files(data, template, examples, target)
    how: dict[str, Any] = {"compare": compare, "name": name, "force": force}
    with divided(nproc, reads_stdin=False), TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        if dry_run:
            print_dry_run(
                plan(place, start, files, config, reporter=reporter, **how), config, json=json
            )
            return
        report, artefact, there = evaluate_model(
            place, start, files, config, reporter=reporter, **how
        )
        reporter.note(f"report {artefact.folder}{': up to date' if there else ''}")
    if json:
        print_json({"name": artefact.manifest.name, **report})
    else:
        if there:
            print_kept(out(), report, artefact.folder / REPORT)
        else:
            print_report(out(), report)
