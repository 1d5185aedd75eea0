"""The README's reference, generated from the app: ``python -m llmctl.cli.reference README.md``.

Typer brings its own copy of click, which documentation tools for click don't see; so the pages
are made here from the commands themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from llmctl.cli.app import COMMANDS, app
from llmctl.config import Config, config_of

BEGIN, END = "<!-- reference: generated -->", "<!-- /reference -->"


def reference() -> str:
    """Every command with its options, and every key of ``--set``, as Markdown."""
    group: Any = typer.main.get_command(app)
    parts = [_command(name, group.commands[name]) for name in COMMANDS]
    return "\n\n".join([*parts, *_keys()])


def insert(text: str) -> str:
    """A README with the reference between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def _command(name: str, command: Any) -> str:
    lines = [f"#### `llmctl {name}`", "", command.help.strip(), "", command.epilog, ""]
    lines += ["| option | what |", "| --- | --- |"]
    for parameter in command.params:
        names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        help_text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        lines.append(f"| {names} | {help_text} |")
    return "\n".join(lines)


def _keys() -> list[str]:
    from llmctl.stages.evaluate import EvaluateConfig
    from llmctl.stages.finetune import FinetuneConfig
    from llmctl.stages.pretrain import PretrainConfig
    from llmctl.stages.tokenize import TokenizeConfig

    stages: dict[str, type[Config]] = {
        "tokenize": TokenizeConfig,
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
        "eval": EvaluateConfig,
    }
    tables = []
    for stage, kind in stages.items():
        lines = [
            f"#### `--set` and recipe keys of `{stage}`",
            "",
            "| key | default |",
            "| --- | --- |",
        ]
        lines += [f"| `{key}` | `{value}` |" for key, value in _defaults(kind(), "")]
        tables.append("\n".join(lines))
    return tables


def _defaults(config: Config, prefix: str) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if config_of(field.annotation) is not None:
            rows += _defaults(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(insert(path.read_text(encoding="utf-8")), encoding="utf-8")
