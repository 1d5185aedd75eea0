"""Evaluate what a model writes from sources: against references, beside what is simpler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.data.source_target import read_pairs
from llmctl.errors import InputError
from llmctl.evaluation.overlap import bleu_chrf, lead, paired_bleu_difference, rouge
from llmctl.interop.model_folder import LEAD_WORDS
from llmctl.objectives.seq2seq import Pair, collated, encode
from llmctl.stages.evaluate_config import EvaluateConfig, Given, Report, Subject
from llmctl.stages.generate import GenerateConfig, Generation, Opened, Prompt
from llmctl.stages.reporter import Reporter
from llmctl.training.distributed import current
from llmctl.training.precision import choose_device
from llmctl.training.validation import evaluate

SHOWN = 10
"""Examples that are shown side by side, evenly chosen."""
LEAD = 10
"""Words of the baseline where the model does not say how long its targets were."""


@dataclass(frozen=True)
class _Texts:
    """The pairs of a file that have two texts."""

    sources: list[str]
    references: list[str]
    places: list[str]


def seq2seq_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """Texts written from the sources of a file, measured by overlap with its targets."""
    texts, notes = _read(given, config)
    rows: dict[str, dict[str, Any]] = {}
    written: dict[str, list[str]] = {}
    for name, subject in given.subjects.items():
        written[name] = _written(subject, texts, config, reporter)
        rows[name] = {
            **_measured(written[name], texts, config),
            **_likelihood(subject, texts, config),
        }
    if config.baselines:
        words = int(given.subject.neural.fields.get(LEAD_WORDS, LEAD))
        for name, guesses in {
            "copy of the source": texts.sources,
            f"first {words} words": [lead(source, words) for source in texts.sources],
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


def _read(given: Given, config: EvaluateConfig) -> tuple[_Texts, list[str]]:
    """The pairs, and a note of those left out. Raises InputError if none is left."""
    assert given.data is not None
    run = given.subject.run
    trained = run.manifest.config.get("data", {}) if run else {}
    texts, left_out = _Texts([], [], []), 0
    for pair in read_pairs(
        given.data,
        target_file=given.target,
        source_column=config.source_column or _column(trained, "source_column", given),
        target_column=config.target_column or _column(trained, "target_column", given),
        encoding_errors=config.encoding_errors or trained.get("encoding_errors", "strict"),
    ):
        if not pair.source or not pair.target:
            left_out += 1
            continue
        texts.sources.append(pair.source)
        texts.references.append(pair.target)
        texts.places.append(pair.where)
    if not texts.sources:
        raise InputError(f"{given.data} has no pair of two texts that are not empty")
    note = f"left out {left_out:,} pairs of which one text is empty"
    return texts, [note] if left_out else []


def _column(trained: dict[str, Any], name: str, given: Given) -> str | None:
    """A column of the finetuning, where the data is a table again."""
    return trained.get(name) if given.target is None else None


def _written(
    subject: Subject, texts: _Texts, config: EvaluateConfig, reporter: Reporter
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
    prompts = map(Prompt, texts.sources, texts.places)
    found = []
    for answer in generation.answers(prompts):
        found.append(" ".join(answer.completions[0].text.split()))
        reporter.progress(f"{subject.name} writes", len(found), len(texts.sources))
    return found


def _measured(written: Sequence[str], texts: _Texts, config: EvaluateConfig) -> dict[str, Any]:
    how: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    overlap = bleu_chrf(written, texts.references, **how)
    words = rouge(written, texts.references, **how)
    return {**words, **overlap, "intervals": {**words["intervals"], **overlap["intervals"]}}


def _likelihood(subject: Subject, texts: _Texts, config: EvaluateConfig) -> dict[str, float]:
    """Loss and accuracy of the references' tokens, each given the true ones before it."""
    folder = subject.neural
    start, end = folder.boundaries
    encoded: list[Pair] = [
        encode(
            folder.tokenizer.encode(source), folder.tokenizer.encode(reference),
            start=start, end=end, max_source=folder.max_source, max_target=folder.max_target,
        )
        for source, reference in zip(texts.sources, texts.references, strict=True)
    ]  # fmt: skip
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
    return {"loss": values["loss"], "token_accuracy": float(accuracy or 0.0)}
