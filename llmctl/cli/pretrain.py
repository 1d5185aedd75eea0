"""``llmctl pretrain``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, launch, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import option
from llmctl.tasks import tasks_of

EXAMPLE = "Example: llmctl pretrain --arch gpt --preset mini --set training.max_steps=2000"


@guarded
def command(
    arch: str | None = option(
        "The architecture: bert, electra, gpt (GPT-2), llama, qwen2, qwen3, mistral, smollm3, "
        "gemma3, nanochat, which learns fastest, or ngram, the baseline without a network.",
        show_default="bert",
    ),
    preset: str | None = option(
        "The model's size: nano (for tests), mini (for a laptop), small, medium, …; GPT-2's own "
        "are gpt small (12 layers × 768) and medium (24 × 1024).",
        show_default="mini",
    ),
    task: str | None = option(
        "What to learn, where the architecture leaves a choice: "
        + "; ".join(f"{name}, to {task.purpose}" for name, task in tasks_of("pretrain").items())
        + ".",
        show_default="the architecture's first",
    ),
    order: int | None = option(
        "With --arch ngram: tokens in the longest n-gram.", show_default="5"
    ),
    start: str | None = option(
        "Go on from a run's or a folder's model with new shards, made with its tokenizer, rather "
        "than from random weights.",
        "--from",
        autocompletion=artefact_names.RUNS,
    ),
    budget: str | None = options.BUDGET,
    shards: str | None = options.SHARDS,
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
    """Train a model on shards. Stopped or killed, the same command goes on where it was."""
    asked, start_time = dict(locals()), launch.start_time()
    launch.launch_processes(nproc, max_restarts)
    from llmctl.cli import training

    training.run(
        "pretrain",
        asked,
        "arch",
        "task",
        "preset",
        "shards",
        "start",
        start_time=start_time,
        timed=True,
    )
