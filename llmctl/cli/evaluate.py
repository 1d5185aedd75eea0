"""``llmctl eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.launch import data_parallel
from llmctl.cli.options import argument, flag, option
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError
from llmctl.tasks.suites import SUITES

EXAMPLE = "Example: llmctl eval --from reviews --data test.csv"


@guarded
def command(
    directory: Path | None = argument("With --suite: the folder of its data.", metavar="[DIR]"),
    start: str = option(
        "A run, or a model folder.", "--from", default=..., autocompletion=artefact_names.RUNS
    ),
    data: Path | None = option(
        "Labelled texts for a classifier; pairs for a model that writes from sources; scored "
        "pairs, or queries and what belongs to them, for an embedder; text, a task's questions or, "
        "with --template, labelled rows for a language model. By default the validation part of "
        "the run's shards.",
    ),
    compare: list[str] = option(
        "Another model for the same table: a classifier or a language model; may be repeated.",
        default=[],
        autocompletion=artefact_names.RUNS,
    ),
    task: str | None = option(
        "What a language model is asked: perplexity, lambada, multiple-choice (HellaSwag, PIQA, "
        "ARC, or query, choices and gold), blimp, preference (pairs of answers) or reward.",
        show_default="by the data's columns",
    ),
    suite: str | None = option(
        "A published set of tests, whose folder is DIR: "
        + "; ".join(f"{name}, {suite.asks}" for name, suite in SUITES.items())
        + "."
    ),
    protocol: str | None = option(
        "With --suite glue: how tasks are learned, turc (a grid of rates and batch sizes) or "
        "babylm (fixed ones).",
        show_default="turc",
    ),
    seeds: int | None = option(
        "With --suite glue: trainings of each task, of which the median is taken.",
        min=1,
        show_default="5",
    ),
    harness: str | None = option(
        "Tasks of lm-evaluation-harness, as arc_easy,hellaswag (needs the extra eval).",
        metavar="TASKS",
    ),
    harness_include: Path | None = option(
        "A folder with YAML files of further tasks for the harness; where it has all that are "
        "asked for, nothing is fetched."
    ),
    num_fewshot: int | None = option(
        "With --harness: solved examples before each question.", show_default="as the task says"
    ),
    apply_chat_template: bool = flag(
        "With --harness: write questions as turns of a chat.", "--apply-chat-template"
    ),
    contamination: bool = flag(
        "Tell beside the figures how much of the data stood in what the model was trained on.",
        "--contamination",
    ),
    terms: Path | None = option(
        "With --suite bias of a classifier: pairs of terms that are swapped, term<TAB>counterpart "
        "a line; by default a short list of llmctl's own, English or Chinese."
    ),
    limit: int | None = option(
        "With --suite or --harness: so many examples of each set, for a quick look."
    ),
    scoring: str | None = option(
        "With --suite or --harness: how texts are scored, causal (from left to right), masked "
        "(each token hidden in turn) or within-word (with the rest of its word).",
        show_default="as the model was trained",
    ),
    reward: str | None = option(
        "With --task reward: what an answer is worth, number, regex, json-schema or FILE.py:NAME; "
        "several are written a,b.",
        show_default="as in finetuning",
    ),
    template: str | None = options.ASKING_TEMPLATE,
    templates: Path | None = options.TEMPLATES,
    dev: Path | None = options.DEV,
    labels: str | None = options.LABEL_WORDS,
    shots: str | None = option(
        "Solved examples in a prompt; several numbers (0,1,4) give a row each.", show_default="0"
    ),
    examples: Path | None = option("Labelled rows that the solved examples are drawn from."),
    score: str | None = options.SCORE,
    stride: int | None = option(
        "Tokens by which the window of a perplexity moves on.", show_default="half of it"
    ),
    target: Path | None = option(
        "References, line by line, where --data is plain text with sources."
    ),
    source_column: str | None = options.SOURCE_COLUMN,
    target_column: str | None = options.TARGET_COLUMN,
    num_beams: int | None = option(
        "Beams by which a model writes from sources; 1: the likeliest token always.",
        show_default="4",
    ),
    max_new_tokens: int | None = option(
        "Tokens that a model writes from a source at most: more than the references have, as what "
        "is cut off scores less.",
        min=1,
        show_default="128",
    ),
    text_column: str | None = options.TEXT_COLUMN,
    text_pair_column: str | None = options.TEXT_PAIR_COLUMN,
    label_column: str | None = options.LABEL_COLUMN,
    negative_column: str | None = options.NEGATIVE_COLUMN,
    score_column: str | None = options.SCORE_COLUMN,
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    document: str | None = option(
        "What a document is in plain text: auto, file, paragraph, line.", show_default="auto"
    ),
    baselines: bool | None = option(
        "Measure baselines beside it.", "--baselines/--no-baselines", show_default="yes"
    ),
    max_tokens: int | None = option(
        "Tokens scored of running text.", show_default="all, or 2000 for a pseudo-perplexity"
    ),
    dtype: str | None = option(
        "A language model's weights: fp32, bf16, int8, int4; perplexity stands beside fp32's.",
        show_default="fp32",
    ),
    device: str | None = options.DEVICE,
    seed: int | None = options.SEED,
    name: str | None = options.NAME,
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    force: bool = options.FORCE,
    dry_run: bool = options.DRY_RUN,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Measure a model on held-out data, with baselines and intervals; keeps a report."""
    # A flag that isn't given says nothing.
    flags = {
        "apply_chat_template": apply_chat_template or None,
        "contamination": contamination or None,
    }
    asked = {**locals(), **flags}
    if reward is not None:
        asked = {**asked, "set_": [f"rewards.reward={reward}", *set_]}
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.inference.templates import as_given
    from llmctl.reporting.report import render_report
    from llmctl.stages import train
    from llmctl.stages.evaluate import prepare_evaluation
    from llmctl.tasks.evaluation import EvaluateConfig, Files
    from llmctl.tasks.kept_reports import REPORT, parts_of

    config = options.configured(EvaluateConfig, "eval", asked)
    if directory is not None and (config.suite is None or data is not None):
        raise UsageError(f"{directory}: a folder goes with --suite, and data with --data; give one")
    place = options.open_workspace(workspace)
    files = Files(
        data or directory,
        as_given(template),
        examples,
        target,
        templates,
        dev,
        harness_include,
        terms,
    )
    with data_parallel(nproc, reads_stdin=False), TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)

        def finetune(base: str, path: Path, how: Any, run: str) -> Any:
            return train.finetune(place, base, path, how, name=run, reporter=reporter)[0]

        evaluation = prepare_evaluation(
            place,
            start,
            files,
            config,
            compare=compare,
            name=name,
            force=force,
            reporter=reporter,
            finetune=finetune,
        )
        if dry_run:
            print_dry_run(evaluation.plan(), config, json=json)
            return
        report, artefact, up_to_date = evaluation.run()
        reporter.note(f"report {artefact.folder}{': up to date' if up_to_date else ''}")
    if json:
        print_json({"name": artefact.manifest.name, **report.document()})
    else:
        out().print(render_report(parts_of(report, artefact.folder / REPORT)))
