"""``llmctl compress``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option

EXAMPLE = "Example: llmctl compress gpt-docs --method gptq --bits 4 --group 64 --max-loss 0.02"


@guarded
def command(
    run: str = argument(
        "The run or model folder to make smaller.",
        default=...,
        autocompletion=artefact_names.RUNS,
    ),
    method: str = option(
        "What is done: round, gptq or awq keep weights in few bits; magnitude or wanda set some "
        "to zero; channels, heads or layers leave them out, and an ordinary smaller model is left; "
        "distil takes a student, which learned from it.",
        default=...,
    ),
    bits: int | None = option("Bits of a weight: 4 or 8.", show_default="4"),
    group: int | None = option(
        "Inputs of a matrix that share a scale: 32, 64 or 128.", show_default="32"
    ),
    symmetric: bool | None = option(
        "Numbers evenly around 0, without a zero point for each group.",
        "--symmetric/--asymmetric",
        show_default="asymmetric",
    ),
    embeddings: bool | None = option(
        "Quantise the table of token embeddings, too.",
        "--embeddings/--no-embeddings",
        show_default="no-embeddings",
    ),
    head: bool | None = option(
        "Quantise the output layer, or a classifier's layers, too; one that shares the embeddings "
        "is one table with them.",
        "--head/--no-head",
        show_default="no-head",
    ),
    sparsity: float | None = option(
        "With magnitude or wanda: the share of weights that become zero.", show_default="0.5"
    ),
    pattern: str | None = option("With magnitude or wanda: 2:4, two of each four become zero."),
    keep: float | None = option(
        "With channels, heads or layers: the share that is kept.", show_default="0.5"
    ),
    importance: str | None = option(
        "With channels, heads or layers: kept by activations or by gradient: how the loss "
        "changes, on text or, for what was finetuned, on the labelled examples of --data.",
        show_default="activations",
    ),
    student: str | None = option(
        "With distil: the run or folder of a model that learned from this one (llmctl finetune "
        "--task distil).",
        autocompletion=artefact_names.RUNS,
    ),
    data: str | None = option(
        "A file of text to calibrate on, or shards: those that the run was trained on.",
        metavar="FILE|shards",
        show_default="shards",
    ),
    windows: int | None = option("Rows of text to calibrate on.", min=1, show_default="64"),
    window: int | None = option(
        "Tokens of such a row, if the model takes as many.", min=8, show_default="512"
    ),
    eval: Path | None = option(
        "A file of held-out text, or of labelled examples, to measure on.",
        show_default="the validation part of the run's shards",
    ),
    text_column: str | None = options.TEXT_COLUMN,
    label_column: str | None = options.LABEL_COLUMN,
    max_tokens: int | None = option(
        "Tokens that a language model is measured on.", min=1, show_default="10,000"
    ),
    max_loss: float | None = option(
        "What quality may fall by, in the table's unit: beyond it nothing is written, and the exit "
        "code is 6.",
        min=0.0,
    ),
    name: str | None = options.NAME,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    force: bool = options.FORCE,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Make a model smaller, and say in one table what that costs and gains: size, speed, and
    quality on held-out data, beside the start and a simpler method."""
    asked = locals()
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.compression.config import CompressConfig
    from llmctl.reporting.compression import render_compression
    from llmctl.stages.compress.stage import Compression, read_table

    config = options.configured(CompressConfig, "compress", asked)
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        compression = Compression(place, run, config, data=data, held_out=eval, reporter=reporter)
        made, up_to_date = compression.run(name, force=force)
        table = read_table(made)
    if json:
        print_json({**table, "up_to_date": up_to_date})
        return
    out().print(render_compression(table))
    out().print(f"{made.manifest.name}{': up to date' if up_to_date else ''}")
