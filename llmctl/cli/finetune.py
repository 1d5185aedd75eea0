"""``llmctl finetune``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, launch, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import flag, option
from llmctl.tasks import DEFAULT_TASK, tasks_of

EXAMPLE = "Example: llmctl finetune --from bert-docs --task classify --data reviews.csv"


@guarded
def command(
    start: str | None = option(
        "A pretrained run, a model folder, or scratch: the same network with random weights.",
        "--from",
        autocompletion=artefact_names.RUNS,
        show_default="the recipe's from",
    ),
    data: Path | None = option(
        "What to learn from: labelled texts (CSV, TSV, JSONL, Parquet); instructions and "
        "conversations in Alpaca's, messages' or ShareGPT's layout (JSON, JSONL, Parquet); "
        "pairs of source and target (a table, or plain text with --target); a table of texts that "
        "belong together; answers chosen and rejected, or with a label; or prompts to be answered.",
        show_default="the recipe's data",
    ),
    task: str | None = option(
        "What to learn: "
        + "; ".join(f"{name}, to {task.purpose}" for name, task in tasks_of("finetune").items())
        + ".",
        show_default=DEFAULT_TASK,
    ),
    method: str | None = option(
        "What trains: full, everything; last-layers; lora, ia3 or bitfit, little that becomes part "
        "of the model; prompt, prefix or ptuning, virtual tokens before each text. What is learned "
        "lies in the run's folder adapter too, as PEFT has it.",
        show_default="full",
    ),
    like: str | None = option(
        "With --from scratch: the run whose network it is.",
        autocompletion=artefact_names.RUNS,
        show_default="the newest pretrained run",
    ),
    text_column: str | None = options.TEXT_COLUMN,
    text_pair_column: str | None = options.TEXT_PAIR_COLUMN,
    label_column: str | None = options.LABEL_COLUMN,
    target: Path | None = option("With plain text as --data: the targets, line by line."),
    source_column: str | None = options.SOURCE_COLUMN,
    target_column: str | None = options.TARGET_COLUMN,
    negative_column: str | None = options.NEGATIVE_COLUMN,
    score_column: str | None = options.SCORE_COLUMN,
    pooling: str | None = option(
        "With --task embed: what a text's vector is, mean, cls, max or last of its tokens'.",
        show_default="as the model has it, else mean",
    ),
    template: str | None = option(
        "With --task cloze: a template with a mask, a TOML file or written out: "
        "'Topic: {mask}. {text}'.",
        metavar="FILE|TEXT",
    ),
    labels: str | None = options.LABEL_WORDS,
    style: str | None = option(
        "With --task seq2seq: decoder, a Transformer decoder attached to the GPT, or prefix, both "
        "texts in one sequence.",
        show_default="decoder",
    ),
    teacher: list[str] = option(
        "With --task distil: the model to learn from, a run or a model folder; given again, models "
        "that answer with labels teach together.",
        default=[],
        autocompletion=artefact_names.RUNS,
    ),
    layers: int | None = option(
        "With --task distil, without --from: the student is so many of its teacher's layers.",
        min=1,
    ),
    arch: str | None = option(
        "With --task distil, without --from: the student has random weights, of this architecture."
    ),
    preset: str | None = option("With --arch: which of its sizes.", show_default="mini"),
    hidden: float | None = option(
        "With --task distil: weight of the hidden states, which are to be like the teacher's."
    ),
    attention: float | None = option(
        "With --task distil: weight of the relations between tokens in attention."
    ),
    on_policy: float | None = option(
        "With --task distil: share of steps in which a decoder's student writes itself."
    ),
    unlabelled: str | None = option(
        "With --task distil: a file of further texts for a classifier's student, without labels."
    ),
    reward: str | None = option(
        "With --task grpo: what an answer is worth, number (its last number is the row's), regex, "
        "json-schema, or a function as FILE.py:NAME; several are written a,b.",
        show_default="number",
    ),
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    freeze_encoder: bool = flag("With --task seq2seq: keep the GPT as it is.", "--freeze-encoder"),
    freeze_layers: int | None = option(
        "Keep the embeddings and this many of the lowest blocks as they are."
    ),
    class_weights: str | None = option(
        "How classes weigh: none, all alike, or balanced, rare ones more."
    ),
    multi_label: bool = flag(
        "With --task classify: a text has any number of labels, in a list or behind one another "
        "(a|b).",
        "--multi-label",
    ),
    ordinal: bool = flag(
        "With --task classify: the labels are in an order, by their numbers or by --set order=a,b.",
        "--ordinal",
    ),
    keep_checkpoints: str | None = options.KEEP_CHECKPOINTS,
    seed: int | None = options.SEED,
    name: str | None = options.NAME,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    force: bool = options.FORCE,
    dry_run: bool = options.DRY_RUN,
    profile: bool = options.PROFILE,
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    max_restarts: int = options.MAX_RESTARTS,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Train a pretrained model on labelled texts, on instructions to answer in a chat, on pairs to
    translate or summarise, on preferences, or by rewards. The same command goes on after a
    stop."""
    asked, start_time = dict(locals()), launch.start_time()
    if not dry_run:
        launch.launch_processes(nproc, max_restarts)
    from llmctl.cli import training

    training.run(
        "finetune", asked, "start", "data", "task", "like", start_time=start_time, timed=False
    )
