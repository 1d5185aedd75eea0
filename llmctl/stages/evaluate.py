"""Evaluate: a model and held-out data to a report, with baselines beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llmctl.config import ColumnName, Config
from llmctl.data.shards import ShardReader
from llmctl.data.tables import Example
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import baselines, classification
from llmctl.evaluation.bootstrap import paired_difference
from llmctl.evaluation.pseudo_perplexity import pseudo_perplexity
from llmctl.inference.prediction import class_probabilities
from llmctl.interop.model_folder import ModelFolder
from llmctl.objectives.classify import encode_examples
from llmctl.objectives.masked_lm import PUBLISHED_MASK_RATE, collate
from llmctl.stages.inputs import (
    LabelledColumns,
    data_record,
    is_held_out,
    open_model,
    read_labelled,
)
from llmctl.stages.pretrain import VALIDATION_SEED, PretrainConfig, Pretraining
from llmctl.stages.reporter import Reporter
from llmctl.training.precision import choose_device
from llmctl.training.trainer import evaluate
from llmctl.workspace.artefacts import (
    Artefact,
    InputRecord,
    Manifest,
    Workspace,
    fingerprint,
    new_manifest,
    slug,
)
from llmctl.workspace.files import read_json, sha256_file, write_json


class EvaluateConfig(Config):
    """How much is measured."""

    text_column: ColumnName | None = None
    """Columns as in finetuning; unset: those of the finetuning."""
    text_pair_column: ColumnName | None = None
    """Likewise."""
    label_column: ColumnName | None = None
    """Likewise."""
    encoding_errors: Literal["strict", "replace"] | None = None
    """Unset: as in training."""
    baselines: bool = True
    """Train the baselines on the classifier's data and measure them beside it."""
    resamples: int = Field(1000, ge=1)
    """Of the bootstrap."""
    max_tokens: int = Field(2000, ge=1)
    """Tokens scored for the pseudo-perplexity: each costs a forward pass."""
    device: str = "auto"
    """auto: the accelerator if there is one."""
    seed: int = Field(0, ge=0)
    """Of the bootstrap and of the baselines."""


@dataclass(frozen=True)
class _Given:
    """What is measured on what, and the report that it gives."""

    folder: ModelFolder
    run: Artefact | None
    others: dict[str, ModelFolder]
    inputs: list[InputRecord]
    name: str
    found: Artefact | None


def evaluate_model(
    workspace: Workspace,
    start: str,
    data: Path | None,
    config: EvaluateConfig,
    *,
    compare: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Any], Artefact, bool]:
    """Measure a model; returns the report, its artefact, and whether it was there already.

    compare: further classifiers to measure on the same data, in the same table.
    """
    reporter = reporter or Reporter()
    given = _resolve(workspace, start, data, config, compare, name, force, reporter)
    if given.found is not None:
        given.found.verify()
        return read_json(given.found.folder / "report.json"), given.found, True
    manifest = new_manifest(
        "report",
        given.name,
        stage="eval",
        config=config.model_dump(mode="json"),
        identity=config.identity(),
        inputs=given.inputs,
        seed=config.seed,
    )
    # Before the work: a report that can't be kept is not worth its minutes.
    workspace.prepare("report")
    if data is not None:
        report = _classifier_report(given, data, config, reporter)
    else:
        report = _pretrained_report(workspace, given, config, reporter)
    report = {"model": start, **report}
    with workspace.publish(manifest) as (target, summary):
        write_json(target / "report.json", report)
        summary.update(report["summary"])
    return report, workspace.get("report", given.name), False


def plan(
    workspace: Workspace,
    start: str,
    data: Path | None,
    config: EvaluateConfig,
    *,
    compare: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what ``evaluate_model`` would do."""
    given = _resolve(workspace, start, data, config, compare, name, force, reporter or Reporter())
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "name": given.name,
            "up_to_date": given.found is not None,
            "inputs": {record.role: record.name for record in given.inputs},
            "compare": list(compare),
        },
    }


def _resolve(
    workspace: Workspace,
    start: str,
    data: Path | None,
    config: EvaluateConfig,
    compare: Sequence[str],
    name: str | None,
    force: bool,
    reporter: Reporter,
) -> _Given:
    choose_device(config.device, "--device")
    folder, record = open_model(workspace, start)
    run = workspace.get("run", start) if start in workspace.names("run") else None
    inputs = [record]
    if folder.labels is not None:
        if data is None:
            raise UsageError(f"{start} is a classifier: give --data FILE with labelled examples")
        inputs.append(data_record(data))
    else:
        if compare:
            raise UsageError(f"--compare is for classifiers, and {start} is a pretrained model")
        if data is not None:
            raise UsageError(
                f"{start} is a pretrained model: it is measured on the validation part of its "
                "shards; leave out --data, or give --from a classifier"
            )
        if run is None:
            raise InputError(f"{start} is a folder: its shards are not known; give a run's name")
        shards = _shards_of(workspace, run.manifest)
        inputs.append(shards.as_input("shards"))
    others: dict[str, ModelFolder] = {}
    for other in compare:
        others[other], other_record = open_model(workspace, other)
        if others[other].labels is None:
            raise UsageError(f"--compare {other} is a pretrained model; give a classifier")
        inputs.append(other_record)
    model_name = start if run else slug(Path(start).resolve().name, "model")
    data_name = slug(data.name.partition(".")[0], "data") if data else "validation"
    report_name, found = workspace.match(
        "report",
        name,
        f"{model_name}-{data_name}",
        fingerprint("eval", config.identity(), inputs),
        force=force,
        note=reporter.note,
    )
    return _Given(folder, run, others, inputs, report_name, found)


def _classifier_report(
    given: _Given, data: Path, config: EvaluateConfig, reporter: Reporter
) -> dict[str, Any]:
    folder, run = given.folder, given.run
    labels = folder.labels or []
    examples = _columns_like_training(run, data, config, reporter)
    number_of = {label: number for number, label in enumerate(labels)}
    unknown = sorted({e.label or "" for e in examples} - number_of.keys())
    if unknown:
        raise InputError(
            f"{data} has labels that the classifier does not know ({', '.join(unknown[:5])}); "
            f"it knows {', '.join(labels[:10])}"
        )
    true = np.asarray([number_of[example.label or ""] for example in examples])
    probabilities = _probabilities(folder, examples, labels, config.device)
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    rows = {"model": classification.report(probabilities, true, labels, **options)}
    correct = {"model": probabilities.argmax(-1) == true}
    for name, other in given.others.items():
        guessed = _probabilities(other, examples, labels, config.device)
        rows[name] = classification.report(guessed, true, labels, **options)
        correct[name] = guessed.argmax(-1) == true
    notes: list[str] = []
    train = _training_examples(run, reporter, notes) if config.baselines else None
    if train:
        train_labels = np.asarray([number_of[example.label or ""] for example in train])
        texts = [_joined(example) for example in examples]
        train_texts = [_joined(example) for example in train]
        for name, make in (
            ("majority class", lambda: baselines.majority(train_labels, len(labels), len(true))),
            (
                "TF-IDF + logistic regression",
                lambda: baselines.tfidf_logistic_regression(
                    train_texts, train_labels, texts, len(labels), config.seed
                ),
            ),
        ):
            try:
                guessed = make()
            except UsageError as error:
                notes.append(f"{name} left out: {error}")
                reporter.note(notes[-1])
                continue
            rows[name] = classification.report(guessed, true, labels, **options)
            correct[name] = guessed.argmax(-1) == true
    differences = {
        name: paired_difference(correct["model"], values, seed=config.seed)
        for name, values in correct.items()
        if name != "model"
    }
    return {
        "task": "classify",
        "data": str(data),
        "examples": len(true),
        "results": rows,
        "differences": differences,
        "notes": notes,
        "summary": {"accuracy": rows["model"]["accuracy"], "macro_f1": rows["model"]["macro_f1"]},
    }


def _probabilities(
    folder: ModelFolder, examples: Sequence[Example], labels: Sequence[str], device: str
) -> NDArray[np.float64]:
    """A classifier's probabilities, its classes in the order of ``labels``."""
    known = folder.labels or []
    if set(known) != set(labels):
        raise InputError(
            f"{folder.path} knows other classes ({', '.join(known[:5])}, …) than the model it is "
            "compared with; compare classifiers of one task"
        )
    model = folder.classifier().to(choose_device(device))
    encoded = encode_examples(folder.tokenizer, examples, folder.max_length)
    result = class_probabilities(model, encoded, folder.tokenizer.special["pad"])
    return result[:, [known.index(label) for label in labels]]


def _joined(example: Example) -> str:
    return f"{example.text} {example.text_pair}" if example.text_pair else example.text


def _columns_like_training(
    run: Artefact | None, data: Path, config: EvaluateConfig, reporter: Reporter
) -> list[Example]:
    """Read the data with the columns given, else with those of the finetuning."""
    trained = run.manifest.config.get("data", {}) if run else {}
    columns = LabelledColumns(
        text_column=config.text_column or trained.get("text_column"),
        text_pair_column=config.text_pair_column or trained.get("text_pair_column"),
        label_column=config.label_column or trained.get("label_column"),
        encoding_errors=config.encoding_errors or trained.get("encoding_errors", "strict"),
    )
    return read_labelled(data, columns, reporter)


def _training_examples(
    run: Artefact | None, reporter: Reporter, notes: list[str]
) -> list[Example] | None:
    """What the classifier was trained on, its held-out part left out, for the baselines."""
    record = None
    if run is not None:
        record = next((r for r in run.manifest.inputs if r.role == "data"), None)
    path = Path(record.name) if record else None
    if run is None or record is None or path is None:
        notes.append("baselines left out: a model folder does not say what it was trained on")
    elif not path.is_file() or sha256_file(path) != record.digest:
        notes.append(f"baselines left out: the training data {path} is gone or has changed")
    else:
        given = run.manifest.config["data"]
        columns = LabelledColumns(**{key: given[key] for key in LabelledColumns.model_fields})
        return [
            example
            for example in read_labelled(path, columns, Reporter())
            if not is_held_out(example, given["validation"])
        ]
    reporter.note(notes[-1])
    return None


def _shards_of(workspace: Workspace, manifest: Manifest) -> Artefact:
    record = next((r for r in manifest.inputs if r.role == "shards"), None)
    if record is None:
        raise InputError(f"run {manifest.name} names no shards; it can't be measured")
    shards = workspace.get("shards", record.name.partition("/")[2])
    if shards.manifest.digest != record.digest:
        raise InputError(
            f"shards {shards.manifest.name} are not those that run {manifest.name} was trained "
            "on; make them again as they were"
        )
    shards.verify("validation")
    return shards


def _pretrained_report(
    workspace: Workspace, given: _Given, config: EvaluateConfig, reporter: Reporter
) -> dict[str, Any]:
    folder, run = given.folder, given.run
    assert run is not None
    shards = _shards_of(workspace, run.manifest)
    trained = PretrainConfig.model_validate(run.manifest.config)
    # Always as published, whatever the model was trained with: so that models can be compared.
    objective = trained.objective.replace(
        mask_rate=PUBLISHED_MASK_RATE, mask_share=0.8, random_share=0.1, whole_word=False
    )
    pretraining = Pretraining(shards, trained.replace(objective=objective.model_dump()))
    batches = pretraining.batches("validation", seed=VALIDATION_SEED)
    if not batches.chunks.count:
        raise InputError(
            f"shards {shards.manifest.name} have no validation documents; tokenize with a larger "
            "--validation"
        )
    device = choose_device(config.device)
    model = folder.masked_lm().to(device)
    total = batches.batches_per_epoch

    def batch(number: int) -> Any:
        reporter.progress("masked-LM loss", number + 1, total)
        refs, rows = batches.batch(number)
        return collate(
            batches.chunks,
            refs,
            rows,
            config=objective,
            vocabulary=pretraining.vocabulary,
            sequence_length=trained.data.sequence_length,
            seed=VALIDATION_SEED,
        )

    values = evaluate(model, batch, total, device=device)
    reader = ShardReader(shards.folder, "validation")
    perplexity, scored = pseudo_perplexity(
        model,
        _texts(reader, trained.data.sequence_length - 2),
        pretraining.vocabulary,
        max_tokens=config.max_tokens,
        progress=lambda done: reporter.progress("pseudo-perplexity", done, config.max_tokens),
    )
    reporter.progress("pseudo-perplexity", config.max_tokens, config.max_tokens)
    results = {**values, "pseudo_perplexity": perplexity if scored else None}
    return {
        "task": "pretrain",
        "data": shards.manifest.reference,
        "validation_tokens": int(reader.document_lengths.sum()),
        "mask_rate": PUBLISHED_MASK_RATE,
        "pseudo_perplexity_tokens": scored,
        "results": results,
        "notes": [],
        "summary": results,
    }


def _texts(reader: ShardReader, longest: int) -> Iterator[list[int]]:
    """The beginning of each document."""
    for document in range(len(reader)):
        yield reader.tokens(document, 0, longest).tolist()
