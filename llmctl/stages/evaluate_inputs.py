"""What is to be evaluated and how: from a model, files and options to a way of measuring.

A classifier is measured on labelled texts, a pretrained encoder by its losses, a language model by
its perplexity, on a task's questions, or, with a template, as a classifier never finetuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmctl.errors import InputError, UsageError
from llmctl.formats.open import data_record
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.benchmarks import folder_record, task_of, task_report
from llmctl.tasks.causal_lm.evaluate import language_report
from llmctl.tasks.classify.evaluate import classifier_report
from llmctl.tasks.classify.prompted import prompt_report
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject, open_subject
from llmctl.tasks.masked_lm.evaluate import masked_report
from llmctl.tasks.seq2seq.evaluate import seq2seq_report
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import sha256_file
from llmctl.workspace.manifests import InputRecord, Manifest


@dataclass(frozen=True)
class Files:
    """What a model is measured on."""

    data: Path | None = None
    """Labelled texts, questions or text; None: the validation part of the run's shards."""
    template: Path | None = None
    """Asks about the rows of ``data`` …"""
    examples: Path | None = None
    """… and these are solved examples for its prompts."""
    target: Path | None = None
    """References, line by line, where ``data`` is plain text with sources."""


COMPARED = "compared with"
"""The role of further models among a report's inputs."""

Measure = Callable[[Given, EvaluateConfig, Reporter], Report]
Chosen = tuple[Given, Measure, InputRecord | None]
"""What is measured on what and how, and the record of ``--data``."""


def choose(
    workspace: Workspace,
    subject: Subject,
    others: dict[str, Subject],
    files: Files,
    config: EvaluateConfig,
) -> tuple[Given, Measure, list[InputRecord]]:
    """What is measured on what, how, and all that the report is made from.

    Raises UsageError where options don't go with the model or with one another, InputError for a
    file that isn't there.
    """
    if subject.kind == "seq2seq":
        of_kind = _choose_seq2seq
    else:
        of_kind = _choose_language if subject.is_language_model else _choose_other
        _refuse(
            {"--target": files.target},
            f"is for models finetuned with --task seq2seq, and {subject.name} is none",
        )
    given, measure, data = of_kind(workspace, subject, others, files, config)
    records = [subject.record]
    if data is not None:
        records.append(data)
    for role, path in (
        ("template", files.template),
        ("examples", files.examples),
        ("target", files.target),
    ):
        if path is not None:
            records.append(_file_record(role, path))
    if given.shards is not None:
        records.append(given.shards.as_input("shards"))
    for other in given.others.values():
        records.append(other.record.model_copy(update={"role": COMPARED}))
    return given, measure, records


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raises UsageError for the first option that is given."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} {reason}")


def _choose_other(
    workspace: Workspace,
    subject: Subject,
    others: dict[str, Subject],
    files: Files,
    config: EvaluateConfig,
) -> Chosen:
    """For a classifier or a pretrained encoder."""
    given_options = {
        "--template": files.template,
        "--examples": files.examples,
        "--task": config.task,
        "--dtype": None if config.dtype == "fp32" else config.dtype,
    }
    _refuse(
        given_options,
        f"is for language models, and {subject.name} is not one; give --from a GPT, a Llama, a "
        "nanochat or an n-gram model",
    )
    if subject.kind == "classify":
        if files.data is None:
            raise UsageError(
                f"{subject.name} is a classifier: give --data FILE with labelled examples"
            )
        for other in others.values():
            if other.kind != "classify":
                raise UsageError(f"--compare {other.name} is a pretrained model; give a classifier")
        record = data_record(files.data)
        return Given(subject, others, files.data), classifier_report, record
    if others:
        raise UsageError(
            f"--compare is for classifiers and language models, and {subject.name} is a pretrained "
            "encoder"
        )
    if subject.run is None:
        raise InputError(
            f"{subject.name} is the folder of a pretrained encoder, whose losses are measured on "
            "the shards that llmctl trained it on, and these are not known; finetune it and "
            "evaluate what comes of it, or give a run's name"
        )
    if files.data is not None:
        raise UsageError(
            f"{subject.name} is a pretrained encoder: it is measured on the validation part of its "
            "shards; leave out --data, or give --from a classifier"
        )
    shards = _shards_of(workspace, subject.run.manifest)
    return Given(subject, others, None, shards=shards), masked_report, None


def _choose_seq2seq(
    workspace: Workspace,
    subject: Subject,
    others: dict[str, Subject],
    files: Files,
    config: EvaluateConfig,
) -> Chosen:
    """For a model that writes from sources."""
    asked = {"--template": files.template, "--examples": files.examples, "--task": config.task}
    _refuse(asked, f"is for language models, and {subject.name} has a task")
    if files.data is None:
        raise UsageError(
            f"{subject.name} writes from sources: give --data FILE with pairs of source and target"
        )
    for other in others.values():
        if other.kind != "seq2seq":
            raise UsageError(f"--compare {other.name} was not finetuned with --task seq2seq")
    given = Given(subject, others, files.data, files.target)
    return given, seq2seq_report, data_record(files.data)


def _choose_language(
    workspace: Workspace,
    subject: Subject,
    others: dict[str, Subject],
    files: Files,
    config: EvaluateConfig,
) -> Chosen:
    """For a language model."""
    data = files.data
    if subject.kind == "ngram" and config.dtype != "fp32":
        raise UsageError(
            f"--dtype {config.dtype}: {subject.name} is an n-gram model and has no weights; leave "
            "it out"
        )
    if files.template is not None:
        if data is None:
            raise UsageError(f"--template {files.template} asks about --data FILE; give it")
        if config.task is not None:
            raise UsageError("--template and --task are two ways of asking; give one of them")
        given = Given(subject, others, data, template=files.template, examples=files.examples)
        return given, prompt_report, data_record(data)
    if files.examples is not None or any(config.shots):
        raise UsageError("--examples and --shots go with --template FILE, which writes prompts")
    if data is not None and data.is_dir():
        task, record = task_of(data, config), folder_record(data)
        if task == "perplexity":
            raise InputError(
                f"--data {data} is a folder: of text give a file of it, or name the --task of its "
                "questions"
            )
    elif data is not None:
        record = data_record(data)
        task = task_of(data, config)
    elif config.task not in (None, "perplexity"):
        raise UsageError(f"--task {config.task}: give its questions, --data FILE")
    else:
        task, record = "perplexity", None
    for other in others.values():
        if not other.is_language_model:
            raise UsageError(
                f"--compare {other.name} predicts no text, and goes with --template; give a "
                "language model"
            )
    if task != "perplexity":
        return Given(subject, others, data), partial(task_report, task), record
    given = _with_shards(workspace, subject, others, data, config)
    return given, language_report, record


def _with_shards(
    workspace: Workspace,
    subject: Subject,
    others: dict[str, Subject],
    data: Path | None,
    config: EvaluateConfig,
) -> Given:
    """A language model's text, and an n-gram model beside it where there is one."""
    shards = None
    if data is None:
        if subject.run is None:
            raise UsageError(
                f"{subject.name} is a folder: its shards are not known; give the text to measure "
                "on, --data FILE"
            )
        shards = _shards_of(workspace, subject.run.manifest)
    notes = []
    kinds = {subject.kind, *(other.kind for other in others.values())}
    if config.baselines and subject.run is not None and "ngram" not in kinds:
        record = _shards_record(workspace, subject.run.manifest)
        if record is not None:
            ngram = _ngram_of(workspace, record)
            if ngram is not None:
                others = {**others, ngram: open_subject(workspace, ngram)}
                notes.append(f"beside it: {ngram}, the n-gram model of {record.name}")
            else:
                notes.append(
                    f"no n-gram model of {record.name} to compare with; make one: llmctl pretrain "
                    f"--arch ngram --shards {record.name.partition('/')[2]}"
                )
    return Given(subject, others, data, shards=shards, notes=notes)


def _ngram_of(workspace: Workspace, shards: InputRecord) -> str | None:
    """The newest n-gram model of some shards."""
    found = [
        run.manifest.name
        for run in workspace.list("run")
        if run.finished
        and run.manifest.config.get("arch") == "ngram"
        and shards.digest in [r.digest for r in run.manifest.inputs if r.role == "shards"]
    ]
    return found[-1] if found else None


def _file_record(role: str, path: Path) -> InputRecord:
    """A further file as an input. Raises InputError if it isn't one."""
    if not path.is_file():
        raise InputError(f"--{role} {path}: no such file")
    return InputRecord(role=role, name=str(path.resolve()), digest=sha256_file(path))


def _shards_record(workspace: Workspace, manifest: Manifest) -> InputRecord | None:
    """The shards that a run was trained on, or the run that it was finetuned from."""
    for record in manifest.inputs:
        if record.role == "shards":
            return record
    lineage = workspace.lineage(manifest)
    return next((record for _, record, _ in lineage if record.role == "shards"), None)


def _shards_of(workspace: Workspace, manifest: Manifest) -> Artefact:
    record = _shards_record(workspace, manifest)
    if record is None:
        raise InputError(
            f"run {manifest.name} names no shards to measure it on; give the text, --data FILE"
        )
    shards = workspace.get("shards", record.name.partition("/")[2])
    if shards.manifest.digest != record.digest:
        raise InputError(
            f"shards {shards.manifest.name} are not those that run {manifest.name} was trained "
            "on; make them again as they were"
        )
    shards.verify("validation")
    return shards
