"""``llmctl export``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option

EXAMPLE = "Example: llmctl export alpaca-nanochat-mine --format onnx"


@guarded
def command(
    start: str = argument(
        "A run, or a model's folder or file.",
        default=...,
        metavar="RUN",
        autocompletion=artefact_names.RUNS,
    ),
    format: str = option(
        "What is written: gguf (llama.cpp, LM Studio), ollama (a GGUF with its Modelfile), onnx "
        "(onnxruntime) or hf (transformers).",
        default=...,
    ),
    out: Path | None = option(
        "The file or folder to write.", show_default="RUN.gguf, RUN-onnx, … here"
    ),
    quantisation: str | None = option(
        "For gguf and ollama, how matrices are kept: f32, f16, q8_0 (8 bits) or q4_0 (4.5 bits).",
        show_default="f16",
    ),
    push: str | None = option(
        "Then upload it to this repository of the Hugging Face Hub (OWNER/NAME), which is made, "
        "private, where there is none; the token is that of HF_TOKEN or `hf auth login`."
    ),
    workspace: Path = options.WORKSPACE,
    force: bool = options.FORCE,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Write a model for other programs, checked as it is written."""
    asked = locals()
    from llmctl.cli.console import TerminalReporter, print_json
    from llmctl.cli.console import out as terminal
    from llmctl.formats.hub import upload
    from llmctl.reporting.units import size
    from llmctl.stages.export import ExportConfig, export

    config = options.configured(ExportConfig, "export", asked)
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        made = export(place, start, config, out=out, force=force, reporter=reporter)
        for note in made.notes:
            reporter.note(note)
        pushed = upload(made.path, push) if push is not None else None
    if json:
        document = {"out": str(made.path), "bytes": made.size, "up_to_date": made.up_to_date}
        print_json({**document, "pushed": pushed} if pushed else document)
        return
    state = "up to date" if made.up_to_date else size(made.size)
    terminal().print(f"{made.path}: {state}")
    if pushed:
        terminal().print(pushed)
