"""What stages are given: a model by name or folder, a file of labelled texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.config import ColumnName, Config
from llmctl.data.tables.labelled import Columns, Example, read_examples, resolve_columns
from llmctl.data.tables.labels import doubts, without_label
from llmctl.data.text import hashing
from llmctl.data.text.decoding import DEFAULT, ReadConfig, ReadOptions
from llmctl.data.text.sources import no_file
from llmctl.errors import InputError, did_you_mean
from llmctl.formats import FORMATS
from llmctl.formats.base import Format, Pretrained
from llmctl.reporting.reporter import Reporter
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import sha256_file
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord


class LabelledColumns(ReadConfig):
    """Which columns of a table hold what."""

    text_column: ColumnName | None = None
    """The text's column; several, to be joined, are written a,b. Unset: an obvious one, named
    on stderr."""
    text_pair_column: ColumnName | None = None
    """The second text's column, where the task is about two."""
    label_column: ColumnName | None = None
    """The label's column. Unset: an obvious one, named on stderr."""


def open_model(workspace: Workspace, name: str) -> tuple[Pretrained, InputRecord]:
    """The network of a run's name or of a folder; a run's files are checked by their digests.

    Raises InputError if there is none, it is not whole, or the model has no network.
    """
    model, _, record = open_any_model(workspace, name)
    _ = model.spec
    return model, record


def open_any_model(
    workspace: Workspace, name: str
) -> tuple[Pretrained, Artefact | None, InputRecord]:
    """A model, an n-gram model too, as ``open_model`` opens it, with its run if it is of one."""
    path, run = find_model(workspace, name)
    model = open_folder(path)
    if run is not None:
        return model, run, run.as_input("model")
    record = InputRecord(role="model", name=str(model.path.resolve()), digest=model.digest())
    return model, None, record


def open_folder(path: Path) -> Pretrained:
    """The model of a folder, of whatever format. Raises InputError if there is none."""
    format = _format_of(path)
    if format is None:
        raise InputError(f"{path} has no config.json; give a model's folder or a run's name")
    return format.open(path)


def _format_of(path: Path) -> Format | None:
    return next((format for format in FORMATS.values() if format.recognises(path)), None)


def find_model(workspace: Workspace, name: str) -> tuple[Path, Artefact | None]:
    """The model folder that a run's name or a path stands for, and the run; its files are checked.

    Raises InputError if there is none or it is not whole.
    """
    runs = workspace.names("run")
    if name not in runs:
        # A model folder, or the folder of a run.
        for path in (Path(name), Path(name) / "model"):
            if _format_of(path) is not None:
                return path, None
        raise InputError(
            f"no run or model folder {name!r}{did_you_mean(name, runs)}; `llmctl status` lists "
            f"the runs of workspace {workspace.root}"
        )
    run = workspace.get("run", name)
    if not run.finished and run.manifest.files:
        raise InputError(
            f"run {name} is being trained for longer; run its command again to finish it, or take "
            f"the model that it had before: {run.folder / 'model'}"
        )
    if not run.finished:
        raise InputError(
            f"run {name} is not finished; run its command again to finish it "
            f"(`llmctl status {name}` shows it)"
        )
    run.verify("model/")
    return run.folder / "model", run


def choose_shards(
    workspace: Workspace,
    name: str | None,
    reporter: Reporter,
    *,
    suits: Callable[[Tokenizer], bool],
    wanted: str,
) -> Artefact:
    """The shards of a name, or the newest whose tokenizer suits; their digests are checked.

    wanted: what they are to suit and what that needs, for messages. Raises InputError if there are
    none.
    """
    if name is not None:
        shards = workspace.get("shards", name)
    else:

        def pass_over(name: str, error: InputError) -> None:
            reporter.note(f"shards {name} are passed over: {error}")

        matching = workspace.list("shards", pass_over)
        candidates = [shards for shards in matching if _suits(shards, suits)]
        if not candidates:
            raise InputError(
                f"workspace {workspace.root} has no shards that suit {wanted}; make some: "
                "llmctl tokenize FILE …"
            )
        shards = candidates[-1]
        if len(candidates) > 1:
            reporter.note(f"shards: {shards.manifest.name} (the newest)")
    shards.verify()
    return shards


def _suits(shards: Artefact, suits: Callable[[Tokenizer], bool]) -> bool:
    try:
        return suits(tokenizers.load(shards.folder / "tokenizer"))
    except InputError:  # damaged; named outright, they get the error
        return False


def find_pretraining(
    workspace: Workspace,
    config: Any,
    shards: Artefact,
    name: str | None,
    *,
    force: bool = False,
    reporter: Reporter,
) -> tuple[str, Artefact | None]:
    """The name of a pretraining's run, and the run where it is begun or done already.

    config: of any architecture, the n-grams' too, as it was given: the vocabulary's size follows
    from the shards. Raises NameTaken if something else has the name, unless ``force``.
    """
    return workspace.match(
        "run",
        name,
        default_name(config, shards),
        pretraining_identity(config, shards),
        force=force,
        note=reporter.note,
    )


def default_name(config: Any, shards: Artefact) -> str:
    """The name of a pretraining's run where none is given."""
    return f"{config.arch}-{shards.manifest.name}"


def pretraining_identity(config: Config, shards: Artefact) -> Identity:
    """What a pretraining is asked for, by its configuration as it was given."""
    return Identity.of("pretrain", config, [shards.as_input("shards")])


def newest_pretrained(runs: Sequence[Artefact]) -> Artefact | None:
    """The newest finished pretraining of a network among some runs, oldest first."""
    done = [
        run
        for run in runs
        if run.finished
        and run.manifest.stage == "pretrain"
        and run.manifest.config.get("arch") != "ngram"
    ]
    return done[-1] if done else None


def data_record(data: Path, option: str = "data") -> InputRecord:
    """The file of an option as an input. Raises InputError if it isn't a file."""
    check_data(data, option)
    return InputRecord(role=option, name=str(data.resolve()), digest=sha256_file(data))


def check_data(data: Path, option: str = "data") -> None:
    """Raises InputError unless an option's value is a file."""
    if data.is_dir():
        raise no_file(f"--{option}", data)
    if not data.exists():
        raise InputError(f"--{option} {data}: no such file")
    if not data.is_file():
        raise InputError(f"--{option} {data} is a pipe or a device, and is read twice; give a file")


def resolve_labelled(data: Path, columns: LabelledColumns, reading: ReadOptions) -> Columns:
    """The columns of a file of labelled texts: those named, and the obvious ones.

    Raises InputError for a column that isn't there, UsageError where several would do.
    """
    return resolve_columns(
        data,
        text_column=columns.text_column,
        text_pair_column=columns.text_pair_column,
        label_column=columns.label_column,
        need_label=True,
        reading=reading,
    )


def read_labelled(
    data: Path, columns: Columns, reporter: Reporter, reading: ReadOptions = DEFAULT
) -> list[Example]:
    """The labelled examples of a file. Raises InputError if there are none."""
    examples = list(read_examples(data, columns, reading=reading))
    blank = [example for example in examples if not example.text]
    if blank:
        reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
    examples = with_label([example for example in examples if example.text], (), reporter)
    if not examples:
        raise InputError(f"{data} has no labelled texts")
    for doubt in doubts(Counter(example.label or "" for example in examples)):
        reporter.note(doubt)
    return examples


def with_label(
    examples: Sequence[Example], known: Collection[str], reporter: Reporter
) -> list[Example]:
    """Examples without those whose label says that they have none; how many is told.

    known: classes of the model that they are for, if there is one.
    """
    none = without_label({*known, *(example.label or "" for example in examples)})
    left_out = [example for example in examples if example.label == none and none not in known]
    if left_out:
        reporter.note(
            f"left out {len(left_out):,} of {len(examples):,} rows labelled {none}, which means no "
            f"label beside the others (the first: {left_out[0].source})"
        )
        return [example for example in examples if example.label != none]
    return list(examples)


def cut_in_use(cut: int, total: int, folder: Pretrained) -> str:
    """A sentence that says how many texts were longer than a classifier reads."""
    limit, most = folder.max_length, folder.config.max_positions
    more = (
        f"finetune with --set data.max_length=…, up to {most}, for more"
        if limit < most
        else "more the network does not take"
    )
    return (
        f"{cut:,} of {total:,} texts were longer than the {limit} tokens of the finetuning and "
        f"were cut; {more}"
    )


def is_held_out(example: Example, share: float) -> bool:
    """Whether an example falls to validation: by its text's hash, whatever the order."""
    return hashing.is_held_out(f"{example.text}\x1f{example.text_pair or ''}", share)
