"""``llmctl serve``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import option
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl serve --from alpaca-gpt-docs --port 8000"


@guarded
def command(
    start: list[str] = option(
        "A run, or a model folder, also NAME=FOLDER; may be repeated. Models that write, embedders "
        "and classifiers are served.",
        "--from",
        default=...,
        autocompletion=artefact_names.RUNS,
    ),
    adapter: list[str] = option(
        "NAME=FOLDER, a LoRA adapter of the first model, which then answers as MODEL:NAME; may be "
        "repeated.",
        default=[],
    ),
    draft: str | None = options.DRAFT,
    prompt_lookup: int | None = options.PROMPT_LOOKUP,
    draft_tokens: int | None = options.DRAFT_TOKENS,
    host: str | None = option("Address to listen at.", show_default="127.0.0.1"),
    port: int | None = option("Port to listen at; 0: one that is free.", show_default="8000"),
    api_key: str | None = option(
        "What clients have to show (Authorization: Bearer …).", envvar="LLMCTL_API_KEY"
    ),
    max_sequences: int | None = option(
        "Texts that are written at once; more wait.", show_default="32"
    ),
    kv_tokens: int | None = option(
        "Tokens whose keys and values are kept at most.", show_default="by the model's context"
    ),
    prefix_cache: str | None = option(
        "Bytes of keys and values that are kept of texts for others that begin so too, of each "
        "model, e.g. 256MB; 0: none.",
        metavar="SIZE",
        show_default="1GB",
    ),
    device: str | None = options.DEVICE,
    dtype: str | None = option(
        "Number format of the weights: fp32, bf16, int8 or int4, the smallest; the last two are "
        "the fastest on a processor.",
        show_default="fp32",
    ),
    kernels: str | None = options.KERNELS,
    generation_config: str | None = options.GENERATION_CONFIG,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    quiet: bool = options.QUIET,
) -> None:
    """Serve models over HTTP, as OpenAI's clients and vLLM's expect it, with a page to chat at."""
    asked = locals()
    options.load_pytorch(large_pages=True)
    from llmctl.cli.console import TerminalReporter
    from llmctl.serving.config import ServeConfig

    try:
        from llmctl.serving.server import open_serving, serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llmctl"):
            raise
        raise UsageError(
            f"llmctl serve needs {error.name}, which is not installed: pip install 'llmctl[serve]'"
        ) from None

    config = options.configured(ServeConfig, "serve", asked)
    place = options.open_workspace(workspace)
    reporter = TerminalReporter(quiet=quiet)
    serving = open_serving(place, start, config, adapters=adapter, draft=draft, reporter=reporter)
    serve(serving, reporter=reporter)
