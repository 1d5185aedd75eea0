"""Options that several commands share, and what every command does around its stage."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar, cast

import typer

from llmctl.cli import artefact_names
from llmctl.cli.launch import first_on_machine, speaks
from llmctl.cli.streams import (
    INTERRUPTED,
    OUTPUT,
    command_begins,
    drop_output,
    interrupted,
    tell,
)
from llmctl.cli.threads import settle_threads
from llmctl.errors import (
    NO_ACCESS,
    NO_MEMORY_SIGNS,
    NO_SPACE,
    TOO_MANY_FILES,
    LlmctlError,
    UsageError,
    one_line,
)
from llmctl.reporting.visible import NEW_LINE, visible

if TYPE_CHECKING:
    from llmctl.data.text.decoding import ReadOptions
    from llmctl.workspace.artefacts import Workspace

NO_MEMORY = "out of memory; use a smaller batch or model, or a machine with more"
OUT_OF_MEMORY = (
    *NO_MEMORY_SIGNS, "out of memory", "cannot allocate memory", "failed to map segment",
)  # fmt: skip
"""Besides, what is said of a GPU's, by the system, and by its loader."""

SILENT_SECONDS = 3.0
"""For the process that tells to come to the same error."""
LAST_RESORT_SECONDS = 8.0
"""For a process to end after SIGTERM: less than the ten that whoever sends it waits."""

COMPUTES = {"threads", "workers"}
"""Options by which a command is known for one that computes."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace", "-w", envvar="LLMCTL_WORKSPACE", help="The folder of all artefacts.",
        show_default=True,
    ),
]  # fmt: skip
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="Name of what is made; by default from its inputs.",
        # An accent typed as a sign of its own is the same name.
        callback=lambda name: name if name is None else unicodedata.normalize("NFC", name),
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Make it again, replacing what is there.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="A TOML file; the table of this command's name is read."),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Set any field, e.g. training.max_steps=1000."),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the resolved configuration and the plan only: tables on a "
        "terminal, JSON elsewhere.",
    ),
]
NprocOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes on this machine that work together; for several machines use torchrun.",
        show_default="1",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of each process that compute. Fewer leave cores to others, and are faster "
        "where others keep those cores; results differ in the last bits.",
        show_default="a core's each",
    ),
]
MaxRestartsOption = Annotated[
    int,
    typer.Option(
        min=0, help="With --nproc: times to go on from the last checkpoint when a process is lost."
    ),
]
ShardsOption = Annotated[
    str | None,
    typer.Option(
        "--shards",
        autocompletion=artefact_names.SHARDS,
        help="Shards to train on.",
        show_default="the newest",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Wall clock from start to finished model, e.g. 10m: shape, batch, steps and schedule "
        "are chosen for it, as far as they aren't given.",
    ),
]
KeepCheckpointsOption = Annotated[
    str | None,
    typer.Option(
        "--keep-checkpoints",
        metavar="N|last|all",
        help="The newest N stay on disk while training lasts and go once the model stands; last "
        "keeps one, to train for longer exactly from there, all keeps every one.",
        show_default="2",
    ),
]
ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Trace steps 6 to 10: a table of where their time goes, and a trace for Perfetto.",
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every random draw.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="Device that computes: auto, cpu, cuda or mps.", show_default="auto"
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        help="Encoding of text files, by any name that Python knows: gb18030 reads GBK and all "
        "Chinese, cp1252 what Windows writes in Western Europe. UTF-16 and UTF-32 are known by "
        "their byte-order mark.",
        show_default="utf-8",
    ),
]
EncodingErrorsOption = Annotated[
    str | None,
    typer.Option(
        "--encoding-errors",
        help="What a byte that is not in the encoding does: strict, it is refused, or replace.",
        show_default="strict",
    ),
]
HeaderOption = Annotated[
    str | None,
    typer.Option(
        "--header",
        help="Whether a CSV's or TSV's first row names its columns: yes, no or auto (by what "
        "stands in it; a guess that is not certain is said, and this overrules it).",
        show_default="auto",
    ),
]
TextColumnOption = Annotated[
    str | None,
    typer.Option("--text-column", help="The text's column; several (a,b) are joined."),
]
TextPairColumnOption = Annotated[
    str | None, typer.Option("--text-pair-column", help="The second text's column.")
]
SourceColumnOption = Annotated[
    str | None, typer.Option("--source-column", help="The source's column in a table of pairs.")
]
TargetColumnOption = Annotated[
    str | None, typer.Option("--target-column", help="The target's column in a table of pairs.")
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", help="The label's column.")
]


def read_options(
    encoding: str | None, errors: str | None, header: str | None, note: Callable[[str], None]
) -> ReadOptions:
    """How files are read, where no configuration has it. Raises ConfigError for what can't be."""
    from llmctl.config import build
    from llmctl.data.text.decoding import ReadConfig

    given = {"encoding": encoding, "encoding_errors": errors, "header": header}
    config = build(ReadConfig, {key: value for key, value in given.items() if value is not None})
    return config.read_options(note)


def needed(option: str, value: T | None) -> T:
    """The value of an option that a recipe may give too. Raises UsageError if neither does."""
    if value is None:
        key = option.removeprefix("--")
        raise UsageError(f"{option} is missing: give it, or {key} in the recipe's table")
    return value


def checkpoints(value: str | None) -> dict[str, dict[str, Any]]:
    """What ``--keep-checkpoints`` says, as a layer of a configuration."""
    if value is None:
        return {}
    return {"training": {"keep_checkpoints": int(value) if value.isdecimal() else value}}


def path(text: str | None) -> Path | None:
    """The path that a recipe names."""
    return None if text is None else Path(text)


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


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors become one sentence on stderr and an exit code (0 done, 1 our bug,
    2 usage, 3 input, 4 busy, 5 disk or memory, 6 diverged, 130 and 143 signals)."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _terminate)
        command_begins()
        if not speaks():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            if COMPUTES & kwargs.keys():
                settle_threads(
                    cast(int | None, kwargs.get("threads")), cast(int | None, kwargs.get("nproc"))
                )
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except LlmctlError as error:
            if error.exit_code == 128 + signal.SIGINT:
                _stop(str(error))
            _fail(str(error), error.exit_code, told_by_all=error.of_one_process)
        except _Terminated as stop:
            _fail("stopped by SIGTERM; nothing half-written was left", cast(int, stop.code))
        except KeyboardInterrupt:
            _stop(INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has enough: leave quietly, as other tools do.
            drop_output()
            sys.exit(141)
        except MemoryError:
            _fail(NO_MEMORY, 5, told_by_all=True)
        except OSError as error:
            if error.errno in NO_SPACE:
                if error.filename:
                    where = os.fsdecode(error.filename)
                    if where == OUTPUT:
                        drop_output()
                else:  # all that we write ourselves has a name
                    import tempfile

                    where = f"{tempfile.gettempdir()} or /dev/shm, as it is not the workspace"
                _fail(
                    f"the disk is full ({where}): {os.strerror(error.errno)}; free some space and "
                    "run the command again, it goes on where it was",
                    5,
                    told_by_all=True,
                )
            if error.errno == errno.ENOMEM:
                _fail(NO_MEMORY, 5, told_by_all=True)
            if error.errno in NO_ACCESS and error.filename:
                _fail(
                    f"{os.fsdecode(error.filename)} can't be read or written: {error.strerror}; "
                    "check the path and its permissions",
                    3,
                )
            if error.errno in TOO_MANY_FILES:
                _fail(
                    f"too many files are open ({os.strerror(error.errno)}); allow more (ulimit -n "
                    "4096), or use fewer processes",
                    5,
                    told_by_all=True,
                )
            if error.errno == errno.EIO:
                where = os.fsdecode(error.filename or "a file")
                _fail(f"{where}: {error.strerror}; the disk may be failing", 5, told_by_all=True)
            _bug(error)
        except UnicodeEncodeError as error:
            if error.reason == "surrogates not allowed":
                _fail(
                    "a name or a text on the command line is not UTF-8: "
                    f"{error.object[error.start : error.start + 20]!a}; rename the file, or "
                    "give the text in a file",
                    2,
                )
            _bug(error)
        except Exception as error:
            if any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
                _fail(
                    f"out of memory: {str(error).splitlines()[0]}; {_less_memory(command)}",
                    5,
                    told_by_all=True,
                )
            _bug(error)

    return run


LESS_MEMORY = {
    **dict.fromkeys(("pretrain", "finetune", "sweep", "plan"), "lower training.batch_size"),
    **dict.fromkeys(("generate", "evaluate"), "lower --set batch_size, or take a smaller model"),
    "tokenize": "use fewer --workers",
}
"""What takes less memory, by the module of a command."""


def _less_memory(command: Callable[..., object]) -> str:
    module = command.__module__.rpartition(".")[2]
    return LESS_MEMORY.get(module, "take a smaller model, or a machine with more")


class _Terminated(SystemExit):
    """SIGTERM came."""


def _terminate(number: int, frame: FrameType | None) -> None:
    code = 128 + number
    # Where a signal comes while a library cleans up, what is raised here is dropped.
    last_resort = threading.Timer(LAST_RESORT_SECONDS, os._exit, (code,))
    last_resort.daemon = True
    last_resort.start()
    raise _Terminated(code)


def _fail(message: str, code: int, *, told_by_all: bool = False) -> NoReturn:
    """told_by_all: by whichever of several processes meets it, not by the first alone."""
    if debugging():
        traceback.print_exc()
    if told_by_all or first_on_machine():
        tell(f"error: {one_line(message)}")
    else:  # an end without a word would have the one that tells of it stopped first
        time.sleep(SILENT_SECONDS)
    sys.exit(code)


def _stop(message: str) -> NoReturn:
    """End by Ctrl-C, which is no error."""
    if speaks():
        tell(visible(message, keep=NEW_LINE))
    else:
        time.sleep(SILENT_SECONDS)
    sys.exit(128 + signal.SIGINT)


def _bug(error: Exception) -> NoReturn:
    if interrupted():  # which a library has made something else of
        _stop(INTERRUPTED)
    if debugging():
        traceback.print_exc()
    said = one_line(f"{type(error).__name__}: {error}")
    tell(
        f"error: this is a bug in llmctl ({said}); run the command again as `llmctl --debug …` and "
        "report what it prints"
    )
    sys.exit(1)


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    return bool(os.environ.get("LLMCTL_DEBUG"))
