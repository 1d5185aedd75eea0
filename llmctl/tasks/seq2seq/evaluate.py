"""Evaluate what a model writes from sources: against references, beside what is simpler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.data.tables.source_target import PairColumns, read_pairs
from llmctl.errors import InputError
from llmctl.evaluation.overlap import bleu_chrf, is_chinese, lead, paired_bleu_difference, rouge
from llmctl.formats.columns import pair_columns, pair_record
from llmctl.formats.huggingface.model_folder import LEAD_WORDS
from llmctl.objectives.seq2seq import Pair, collated, encode
from llmctl.reporting.reporter import Reporter
from llmctl.stages.generate import GenerateConfig, Generation, Opened, Prompt
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject
from llmctl.tasks.training_data import is_training_file, seen_in_training
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.training.validation import evaluate

SHOWN = 10
"""Examples that are shown side by side, evenly chosen."""
LEAD = 10
"""Words of the baseline where the model does not say how long its targets were."""


@dataclass(frozen=True)
class _Texts:
    """The pairs of a file that have two texts."""

    of_models: dict[str, list[str]]
    """The sources that each model reads, which may be of another column."""
    references: list[str]
    places: list[str]

    @property
    def sources(self) -> list[str]:
        """Those of the model that is measured."""
        return self.of_models["model"]


def seq2seq_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """Texts written from the sources of a file, measured by overlap with its targets."""
    assert given.data is not None
    texts, notes, columns = _read(given, config, reporter)
    rows: dict[str, dict[str, Any]] = {}
    written: dict[str, list[str]] = {}
    for name, subject in given.subjects.items():
        sources = texts.of_models[name]
        written[name] = _written(subject, sources, texts.places, config, reporter)
        likelihood, cut = _likelihood(subject, sources, texts.references, config)
        rows[name] = {**_measured(written[name], texts, config), **likelihood}
        notes += cut
    if config.baselines:
        words = int(given.subject.neural.fields.get(LEAD_WORDS, LEAD))
        unit = "characters" if is_chinese(texts.sources) else "words"
        for name, guesses in {
            "copy of the source": texts.sources,
            f"first {words} {unit}": [lead(source, words) for source in texts.sources],
        }.items():
            written[name] = guesses
            rows[name] = _measured(guesses, texts, config)
    for note in notes:
        reporter.note(note)
    differences = {
        name: paired_bleu_difference(
            written["model"], texts_of, texts.references,
            resamples=config.resamples, seed=config.seed,
        )
        for name, texts_of in written.items()
        if name != "model"
    }  # fmt: skip
    chosen = np.linspace(0, len(texts.sources) - 1, min(SHOWN, len(texts.sources))).round()
    model = rows["model"]
    return {
        "task": "seq2seq",
        "data": str(given.data),
        "examples": len(texts.sources),
        "columns": {name: taken and pair_record(taken) for name, taken in columns.items()},
        "training_file": is_training_file(given.subject.finetuned, given.data),
        "num_beams": config.num_beams,
        "results": rows,
        "differences": differences,
        "shown": [
            {
                "at": texts.places[n],
                "source": texts.sources[n],
                "reference": texts.references[n],
                "written": written["model"][n],
            }
            for n in chosen.astype(int).tolist()
        ],
        "written": written["model"],
        "notes": notes,
        "summary": {"bleu": model["bleu"], "chrf": model["chrf"], "rougeL": model["rougeL"]},
    }


def _read(
    given: Given, config: EvaluateConfig, reporter: Reporter
) -> tuple[_Texts, list[str], dict[str, PairColumns | None]]:
    """The pairs with the sources that each model reads, notes of what was noticed, and the columns.
    Raises InputError if no pair is left."""
    data, model = given.data, given.subject.finetuned
    assert data is not None
    reading = config.read_config(model.options).read_options(reporter.note)
    columns: dict[str, PairColumns | None] = {}
    for name, subject in given.subjects.items():
        before = f"{subject.name}: " if given.others else ""
        first = columns.get("model")
        columns[name] = pair_columns(
            subject.finetuned,
            data,
            source_column=config.source_column,
            # All are measured by the same references.
            target_column=first.target if first else config.target_column,
            reading=reading,
            note=lambda text, before=before: reporter.note(before + text),  # type: ignore[misc]
        )
    read = [
        read_pairs(
            data,
            target_file=given.target,
            source_column=taken.source if taken else None,
            target_column=taken.target if taken else None,
            reading=reading,
        )
        for taken in columns.values()
    ]
    texts, left_out = _Texts({name: [] for name in columns}, [], []), 0
    for row in zip(*read, strict=True):
        pair = row[0]
        if not pair.target or not all(other.source for other in row):
            left_out += 1
            continue
        for name, other in zip(columns, row, strict=True):
            texts.of_models[name].append(other.source)
        texts.references.append(pair.target)
        texts.places.append(pair.where)
    if not texts.places:
        raise InputError(f"{data} has no pair of two texts that are not empty")
    notes = [f"left out {left_out:,} pairs of which one text is empty"] if left_out else []
    for subject in given.subjects.values():
        notes += seen_in_training(subject.finetuned, data)
    return texts, notes, columns


def _written(
    subject: Subject,
    sources: Sequence[str],
    places: Sequence[str],
    config: EvaluateConfig,
    reporter: Reporter,
) -> list[str]:
    """What a model writes from each source."""
    generation = Generation(
        Opened(subject.name, subject.folder, subject.record),
        GenerateConfig(
            num_beams=config.num_beams,
            length_penalty=config.length_penalty if config.num_beams > 1 else None,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            dtype=config.dtype,
            device=config.device,
        ),
        reporter=reporter,
    )
    prompts = map(Prompt, sources, places)
    found = []
    for answer in generation.answers(prompts):
        found.append(" ".join(answer.completions[0].text.split()))
        reporter.progress(f"{subject.name} writes", len(found), len(sources))
    return found


def _measured(written: Sequence[str], texts: _Texts, config: EvaluateConfig) -> dict[str, Any]:
    how: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    overlap = bleu_chrf(written, texts.references, **how)
    words = rouge(written, texts.references, **how)
    return {**words, **overlap, "intervals": {**words["intervals"], **overlap["intervals"]}}


def _likelihood(
    subject: Subject, sources: Sequence[str], references: Sequence[str], config: EvaluateConfig
) -> tuple[dict[str, float], list[str]]:
    """Loss and accuracy of the references' tokens, each given the true ones before it; and notes
    of what was cut."""
    folder = subject.neural
    start, end = folder.boundaries
    encoded: list[Pair] = []
    cut = Counter[str]()
    for source, reference in zip(sources, references, strict=True):
        source_ids, target_ids = map(folder.tokenizer.encode, (source, reference))
        cut["source"] += len(source_ids) >= folder.max_source
        cut["target"] += len(target_ids) >= folder.max_target
        encoded.append(
            encode(
                source_ids, target_ids,
                start=start, end=end, max_source=folder.max_source, max_target=folder.max_target,
            )
        )  # fmt: skip
    notes = [
        f"{subject.name}: {cut[part]:,} of {len(encoded):,} {part}s are longer than the {most} "
        f"tokens of its finetuning and were cut; finetune with a larger data.max_{part}"
        for part, most in (("source", folder.max_source), ("target", folder.max_target))
        if cut[part]
    ]
    encoded.sort(key=lambda pair: pair.lengths[::-1])
    size = config.batch_size
    batches = [
        collated(encoded[n : n + size], folder.writes_from_source, folder.tokenizer.token_bytes)
        for n in range(0, len(encoded), size)
    ]
    device = choose_device(config.device, "--device")
    model = folder.seq2seq() if folder.kind == "seq2seq" else folder.causal_lm()
    values = evaluate(
        model.to(device), batches.__getitem__, len(batches), device=device, world=current()
    )
    accuracy = values.get("token_accuracy", values.get("lm_accuracy"))
    return {"loss": values["loss"], "token_accuracy": float(accuracy or 0.0)}, notes
