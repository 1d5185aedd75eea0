"""Options as the parameters of commands: those that several share, and what is made of them."""

from __future__ import annotations

import gc
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from llmctl.cli import artefact_names

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.data.text.decoding import ReadOptions
    from llmctl.workspace.artefacts import Workspace

    C = TypeVar("C", bound=Config)

T = TypeVar("T")


def option(help: str, *names: str, default: Any = None, **more: Any) -> Any:
    """An option as the default of a command's parameter. names: where they aren't the parameter's.
    more: what typer takes besides; ``show_default`` tells what is done where none is given."""
    return typer.Option(default, *names, help=help, **more)


def flag(help: str, *names: str) -> Any:
    """An option without a value."""
    return typer.Option(False, *names, help=help)


def argument(help: str, *, default: Any = None, **more: Any) -> Any:
    """A word of the command line that no option stands before; ``...`` as default: it must be."""
    return typer.Argument(default, help=help, **more)


WORKSPACE = option(
    "The folder of all artefacts.",
    "--workspace",
    "-w",
    default=Path("workspace"),
    envvar="LLMCTL_WORKSPACE",
    show_default=True,
)
NAME = option(
    "Name of what is made; by default from its inputs.",
    # An accent typed as a sign of its own is the same name.
    callback=lambda name: name if name is None else unicodedata.normalize("NFC", name),
)
FORCE = flag("Make it again, replacing what is there.", "--force")
JSON = flag("Print one JSON document on stdout.", "--json")
QUIET = flag("No progress, no notes.", "--quiet", "-q")
RECIPE = option("A TOML file; the table of this command's name is read.")
SET = option(
    "Set any field, e.g. training.max_steps=1000.", "--set", default=[], metavar="KEY=VALUE"
)
DRY_RUN = flag(
    "Print the resolved configuration and the plan only: tables on a terminal, JSON elsewhere.",
    "--dry-run",
)
NPROC = option(
    "Processes on this machine that work together; for several machines use torchrun.",
    min=1,
    show_default="1",
)
THREADS = option(
    "Threads of each process that compute. Fewer leave cores to others, and are faster where "
    "others keep those cores; results differ in the last bits.",
    min=1,
    show_default="a core's each",
)
GENERATION_CONFIG = option(
    "Whose generation_config.json says how texts are chosen, where nothing else does: auto, the "
    "model's own; none; or a folder's.",
    show_default="auto",
    metavar="auto|none|FOLDER",
)
MAX_RESTARTS = option(
    "With --nproc: times to go on from the last checkpoint when a process is lost.",
    default=0,
    min=0,
)
SHARDS = option(
    "Shards to train on.",
    autocompletion=artefact_names.COMPLETE_SHARDS,
    show_default="the newest",
)
BUDGET = option(
    "Wall clock from start to finished model, e.g. 10m: shape, batch, steps and schedule are "
    "chosen for it, as far as they aren't given.",
)
KEEP_CHECKPOINTS = option(
    "The newest N stay on disk while training lasts and go once the model stands; last keeps one, "
    "to train for longer exactly from there, all keeps every one.",
    metavar="N|last|all",
    show_default="2",
)
PROFILE = flag(
    "Trace steps 6 to 10: a table of where their time goes, and a trace for Perfetto.", "--profile"
)
SEED = option("Seed of every random draw.")
KERNELS = option(
    "Whose products int8 and int4 weights are multiplied by: torch; native: our own, twice as "
    "fast and more, which this machine's C compiler makes when they are first asked for; auto: "
    "native on a processor with AVX-512 VNNI, if there is a compiler.",
    show_default="auto",
)
DEVICE = option("Device that computes: auto, cpu, cuda or mps.", show_default="auto")
ENCODING = option(
    "Encoding of text files, by any name that Python knows: gb18030 reads GBK and all Chinese, "
    "cp1252 what Windows writes in Western Europe. UTF-16 and UTF-32 are known by their byte-order "
    "mark.",
    show_default="utf-8",
)
ENCODING_ERRORS = option(
    "What a byte that is not in the encoding does: strict, it is refused, or replace.",
    show_default="strict",
)
HEADER = option(
    "Whether a CSV's or TSV's first row names its columns: yes, no or auto (by what stands in it; "
    "a guess that is not certain is said, and this overrules it).",
    show_default="auto",
)
TEXT_COLUMN = option("The text's column; several (a,b) are joined.")
TEXT_PAIR_COLUMN = option("The second text's column.")
SOURCE_COLUMN = option("The source's column in a table of pairs.")
TARGET_COLUMN = option("The target's column in a table of pairs.")
NEGATIVE_COLUMN = option(
    "Columns of texts that don't belong to the text, though they look so (a,b), for embedders.",
    show_default="those called negative, neg_1, …",
)
SCORE_COLUMN = option(
    "The column of a number that says how alike two texts are, for embedders.",
    show_default="score, similarity, …",
)
LABEL_COLUMN = option("The label's column.")
ASKING_TEMPLATE = option(
    "What asks: a TOML file, or written out, as 'Topic: {mask}. {text}' for a masked model and "
    "'{text} Topic:' for one that goes on with texts.",
    metavar="FILE|TEXT",
)
TEMPLATES = option(
    "Templates to choose from, one on each line, or [[template]] in TOML: the best on --dev is "
    "taken."
)
DEV = option("With --templates: labelled rows by which one is chosen.")
LABEL_WORDS = option(
    "With a template: how labels are written, 1=world,2=sports, or their words alone.",
    show_default="as its verbalizer says",
)
SCORE = option(
    "What chooses an answer: plain (its likelihood), tokens or bytes (that for each), or pmi "
    "(against its prior: contextual calibration).",
    show_default="plain",
)

DRAFT = option(
    "A smaller model with the same vocabulary that writes ahead (speculative decoding).",
    autocompletion=artefact_names.RUNS,
)
PROMPT_LOOKUP = option(
    "Write ahead what followed where the text's last tokens stood before, so many of them or "
    "fewer, e.g. 3: for answers that repeat the prompt.",
    metavar="N",
)
DRAFT_TOKENS = option("Tokens that are written ahead.", show_default="4")


def configured(kind: type[C], stage: str, asked: Mapping[str, Any]) -> C:
    """A command's configuration: the recipe's table, over it the options that are called like its
    fields, over these ``--set``. asked: the command's parameters."""
    from llmctl.config import build, parse_assignments, read_recipe

    fields = kind.model_fields.keys() & asked.keys()
    return build(
        kind,
        read_recipe(asked["recipe"], stage) if asked.get("recipe") else {},
        {name: asked[name] for name in fields if asked[name] not in (None, [])},
        parse_assignments(asked.get("set_", ())),
    )


def read_options(
    encoding: str | None, errors: str | None, header: str | None, note: Callable[[str], None]
) -> ReadOptions:
    """How files are read, where no configuration has it. Raises ConfigError for what can't be."""
    from llmctl.config import build
    from llmctl.data.text.decoding import ReadConfig

    asked = {"encoding": encoding, "encoding_errors": errors, "header": header}
    config = build(ReadConfig, {key: value for key, value in asked.items() if value is not None})
    return config.read_options(note)


def open_workspace(path: Path) -> Workspace:
    """The workspace of ``--workspace``."""
    from llmctl.workspace.artefacts import Workspace

    return Workspace(path)


LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""PyTorch puts large tensors into large pages, where the system gives them. A model that writes
reads all its weights for each token: 6 to 10 % faster at GPT-2's size, in runs with it and without
in turn."""


def ask_for_large_pages() -> None:
    """To be called before PyTorch is imported."""
    for name, value in LARGE_PAGES.items():
        os.environ.setdefault(name, value)


def load_pytorch(*, large_pages: bool = False) -> None:
    """Import PyTorch, for a command that needs it, without looking for garbage among what stays:
    that takes a sixth less time, and so does every later look for garbage, which passes it by.

    large_pages: see ``LARGE_PAGES``.
    """
    if large_pages:
        ask_for_large_pages()
    if "torch" in sys.modules:
        return
    from llmctl.parsing import gc_paused

    with gc_paused():
        import torch  # noqa: F401

        gc.freeze()
