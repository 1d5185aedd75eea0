"""The reference, generated from the app: ``python -m llmctl.cli.reference llmctl/cli/README.md``.

Typer brings its own copy of click, which documentation tools for click don't see; so the pages
are made here from the commands themselves.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from llmctl.cli.app import COMMANDS, app
from llmctl.config import Config, config_of, words_of

BEGIN, REFERENCE_END = "<!-- reference: generated -->", "<!-- /reference -->"

SHARED = "Those of every training, above, and:"


def reference() -> str:
    """Every command with its options, and every key of ``--set``, as Markdown."""
    group: Any = typer.main.get_command(app)
    parts = [_command(name, group.commands[name]) for name in COMMANDS]
    return "\n\n".join([*parts, *_keys()])


def insert(text: str) -> str:
    """A page with the reference between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(REFERENCE_END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{REFERENCE_END}{after}"


def _command(name: str, command: Any) -> str:
    lines = [f"#### `llmctl {name}`", "", command.help.strip(), "", command.epilog, ""]
    lines += ["| option | what |", "| --- | --- |"]
    for parameter in command.params:
        names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        lines.append(f"| {names} | {_cell(getattr(parameter, 'help', None))} |")
    return "\n".join(lines)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`").replace("|", "\\|")


def _keys() -> list[str]:
    from llmctl.models import ARCHITECTURES
    from llmctl.serving.config import ServeConfig
    from llmctl.stages.chat import ChatConfig
    from llmctl.stages.tokenize.stage import TokenizeConfig
    from llmctl.tasks import WITHOUT_NETWORK, finetuning, pretraining, pretraining_tasks, tasks_of
    from llmctl.tasks.evaluation import EvaluateConfig
    from llmctl.tasks.generation import GenerateConfig

    archs = [*ARCHITECTURES, *WITHOUT_NETWORK]
    stages: dict[str, Config] = {
        "tokenize": TokenizeConfig(),
        **{
            f"pretrain --arch {arch}"
            + (f" --task {task}" if task != tasks[0] else ""): pretraining.resolve(
                arch, None, task=task
            )
            for arch in archs
            for tasks in [pretraining_tasks(arch)]
            for task in tasks
        },
        **{
            f"pretrain --task {task}": pretraining.resolve(archs[0], None, task=task)
            for task, entry in tasks_of("pretrain").items()
            if entry.backbones
        },
        **{f"finetune --task {task}": finetuning.resolve(task) for task in tasks_of("finetune")},
        "eval": EvaluateConfig(),
        "generate": GenerateConfig(),
        "chat": ChatConfig(),
        "serve": ServeConfig(),
    }
    fields = {stage: _fields(config, "") for stage, config in stages.items()}
    trainings = [
        rows
        for stage, rows in fields.items()
        if "--" in stage and not stage.endswith(WITHOUT_NETWORK)
    ]
    shared = [row for row in trainings[0] if all(row in rows for rows in trainings)]
    tables = [_table("every training", shared, "")]
    for stage, rows in fields.items():
        own = [row for row in rows if row not in shared]
        tables.append(_table(f"`{stage}`", own, SHARED if rows in trainings else ""))
    return tables


Row = tuple[str, object, str]
"""A key, its default and what it is."""


def _table(of: str, rows: list[Row], besides: str) -> str:
    lines = [f"#### `--set` and recipe keys of {of}", ""]
    if besides:
        lines += [besides, ""]
    lines += ["| key | default | what |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| `{key}` | `{value}` | {what} |" for key, value, what in rows])


def _fields(config: Config, prefix: str) -> list[Row]:
    rows: list[Row] = []
    texts = _texts(type(config))
    # As declared: a default such as 0, "by the width", is filled in when a configuration is made.
    complete = not any(field.is_required() for field in type(config).model_fields.values())
    declared = complete and config == type(config)()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if config_of(field.annotation) is not None:
            rows += _fields(value, f"{prefix}{name}.")
        else:
            shown = field.get_default() if declared else value
            words = words_of(field.annotation)
            values = f"One of: {', '.join(words)}. " if words else ""
            rows.append(
                (prefix + name, shown, values + _cell(field.description or texts.get(name)))
            )
    return rows


def _texts(config: type[Config]) -> dict[str, str]:
    """What the source says below each field of a class and of those that it builds on."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not issubclass(base, Config):
            continue
        try:
            source = inspect.getsource(base)
        except OSError:  # made at run time of others, which have one
            continue
        (tree,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(tree, ast.ClassDef)
        for line, below in pairwise(tree.body):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = inspect.cleandoc(text)
    return texts


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(insert(path.read_text(encoding="utf-8")), encoding="utf-8")
