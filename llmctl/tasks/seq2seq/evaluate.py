"""Evaluate what a model writes from sources: against references, beside what is simpler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.data.tables.parallel_text import PairColumns, read_pairs
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.overlap import bleu_chrf, is_chinese, lead, paired_bleu_difference, rouge
from llmctl.evaluation.report import MODEL, Figure, Gap, Report
from llmctl.formats.columns import pair_columns, pair_record
from llmctl.formats.description import LEAD_WORDS
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import Evaluator
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.seq2seq.batches import collated, encode
from llmctl.tasks.seq2seq.generate import FromSources
from llmctl.tasks.seq2seq.loss import seq2seq_loss
from llmctl.tasks.training_data import is_training_file, seen_in_training
from llmctl.training.batches import Objective
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device
from llmctl.training.validation import evaluate

SHOWN_EXAMPLES = 10
"""Examples that are shown side by side, evenly chosen."""
LEAD = 10
"""Words of the baseline where the model does not say how long its targets were."""

FIGURES = (
    Figure("BLEU (95 %)", "bleu", ".2f", "intervals.bleu"),
    Figure("chrF", "chrf", ".2f"),
    Figure("R-1", "rouge1"),
    Figure("R-2", "rouge2"),
    Figure("R-L", "rougeL"),
    Figure("accuracy", "token_accuracy", ".1%", optional=True),
    Figure("loss", "loss", ".4f", optional=True),
)
BLEU_GAP = Gap("BLEU", "+.2f")
EXPLAINED = (
    "BLEU and chrF (of 100) and ROUGE (R-1, R-2, R-L, of 1): what texts and references have in "
    "common in words and letters; accuracy and loss (nats): of the references' tokens, each given "
    "those before it"
)


@dataclass(frozen=True)
class _AlignedTexts:
    """The pairs of a file that have two texts."""

    of_models: dict[str, list[str]]
    """The sources that each model reads, which may be of another column."""
    references: list[str]
    places: list[str]

    @property
    def sources(self) -> list[str]:
        """Those of the model that is measured."""
        return self.of_models[MODEL]


class Seq2SeqEvaluator(Evaluator):
    """Texts written from the sources of a file, measured by overlap with its targets."""

    kinds = ("seq2seq",)
    reports = ("seq2seq",)

    def choose(self) -> None:
        """A model that writes from sources is compared with others that do."""
        self.refuse("is for language models, and {} has a task", "template", "examples", "task")
        if self.files.data is None:
            raise UsageError(
                f"{self.model.name} writes from sources: give --data FILE with pairs of source and "
                "target"
            )
        for other in self.others:
            if other.kind not in self.kinds:
                raise UsageError(f"--compare {other.name} was not finetuned with --task seq2seq")
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Write from all sources with all models."""
        texts, notes, columns = self._read(reporter)
        rows: dict[str, dict[str, Any]] = {}
        written: dict[str, list[str]] = {}
        for name, model in self.models.items():
            sources = texts.of_models[name]
            written[name] = self._written(model, sources, texts.places, reporter)
            likelihood, cut = self._likelihood(model, sources, texts.references)
            rows[name] = {**self._measured(written[name], texts), **likelihood}
            notes += cut
        if self.config.baselines:
            for name, guesses in self._guesses(texts.sources).items():
                written[name] = guesses
                rows[name] = self._measured(guesses, texts)
        return Report(
            task="seq2seq",
            data=str(self.path),
            facts={
                "examples": len(texts.sources),
                "columns": {name: taken and pair_record(taken) for name, taken in columns.items()},
                "training_file": is_training_file(self.model, self.path),
                "num_beams": self.config.num_beams,
                "shown": _side_by_side(texts, written[MODEL]),
                "written": written[MODEL],
            },
            results=rows,
            differences={
                name: paired_bleu_difference(
                    written[MODEL], others, texts.references, **self._resampling
                )
                for name, others in written.items()
                if name != MODEL
            },
            notes=notes,
            summary={name: rows[MODEL][name] for name in ("bleu", "chrf", "rougeL")},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, the differences, and some texts beside their references."""
        facts, model = report.facts, report.results[MODEL]
        title = f"{report.model} on {facts['examples']:,} sources, {facts['num_beams']} beams"
        yield report.table(title, FIGURES)
        yield EXPLAINED
        yield f"BLEU {model['bleu_signature']}; chrF {model['chrf_signature']}"
        yield from report.gaps(BLEU_GAP)
        for example in facts["shown"]:
            yield (
                f"\n{example['at']}\n  source     {example['source']}"
                f"\n  reference  {example['reference']}\n  written    {example['written']}"
            )

    @property
    def _resampling(self) -> dict[str, Any]:
        return {"resamples": self.config.resamples, "seed": self.config.seed}

    def _read(
        self, reporter: Reporter
    ) -> tuple[_AlignedTexts, list[str], dict[str, PairColumns | None]]:
        """The pairs with the sources that each model reads, notes of what was noticed, and the
        columns. Raises InputError if no pair is left."""
        reading = self.read_options(reporter, as_trained=True)
        columns: dict[str, PairColumns | None] = {}
        for name, model in self.models.items():
            first = columns.get(MODEL)
            columns[name] = pair_columns(
                model,
                self.path,
                source_column=self.config.source_column,
                # All are measured by the same references.
                target_column=first.target if first else self.config.target_column,
                reading=reading,
                note=self.note_for(reporter, model),
            )
        read = [
            read_pairs(
                self.path,
                target_file=self.files.target,
                source_column=taken.source if taken else None,
                target_column=taken.target if taken else None,
                reading=reading,
            )
            for taken in columns.values()
        ]
        texts, left_out = _AlignedTexts({name: [] for name in columns}, [], []), 0
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
            raise InputError(f"{self.path} has no pair of two texts that are not empty")
        notes = [f"left out {left_out:,} pairs of which one text is empty"] if left_out else []
        for model in self.models.values():
            notes += seen_in_training(model, self.path)
        return texts, notes, columns

    def _written(
        self,
        model: OpenedModel,
        sources: Sequence[str],
        places: Sequence[str],
        reporter: Reporter,
    ) -> list[str]:
        """What a model writes from each source."""
        config = self.config
        generation = FromSources(
            model,
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
        written = []
        for answer in generation.answers(map(Prompt, sources, places)):
            written.append(" ".join(answer.completions[0].text.split()))
            reporter.progress(f"{model.name} writes", len(written), len(sources))
        return written

    def _measured(self, written: Sequence[str], texts: _AlignedTexts) -> dict[str, Any]:
        """Overlap of what was written with the references."""
        overlap = bleu_chrf(written, texts.references, **self._resampling)
        words = rouge(written, texts.references, **self._resampling)
        return {**words, **overlap, "intervals": {**words["intervals"], **overlap["intervals"]}}

    def _guesses(self, sources: list[str]) -> dict[str, list[str]]:
        """What is simpler than any model."""
        words = int(self.model.folder.fields.get(LEAD_WORDS, LEAD))
        unit = "characters" if is_chinese(sources) else "words"
        return {
            "copy of the source": sources,
            f"first {words} {unit}": [lead(source, words) for source in sources],
        }

    def _likelihood(
        self, opened: OpenedModel, sources: Sequence[str], references: Sequence[str]
    ) -> tuple[dict[str, float], list[str]]:
        """Loss and accuracy of the references' tokens, each given the true ones before it; and
        notes of what was cut."""
        folder, size = opened.folder, self.config.batch_size
        tokenizer, frame = folder.tokenizer, folder.frame
        limits = {"source": folder.max_source, "target": folder.max_target}
        most: dict[str, Any] = {f"max_{part}": tokens for part, tokens in limits.items()}
        pairs, cut = [], Counter[str]()
        for texts in zip(sources, references, strict=True):
            ids = list(map(tokenizer.encode, texts))
            for (part, limit), own in zip(limits.items(), ids, strict=True):
                is_cut = frame.source_cut if part == "source" else frame.target_cut
                cut[part] += is_cut(len(own), limit)
            pairs.append(encode(*ids, frame=frame, **most))
        notes = [
            f"{opened.name}: {cut[part]:,} of {len(pairs):,} {part}s are longer than the {limit} "
            f"tokens of its finetuning and were cut; finetune with a larger data.max_{part}"
            for part, limit in limits.items()
            if cut[part]
        ]
        pairs.sort(key=lambda pair: pair.lengths[::-1])
        batches = [
            collated(
                pairs[n : n + size], folder.writes_from_source or "decoder", tokenizer.token_bytes
            )
            for n in range(0, len(pairs), size)
        ]
        device = choose_device(self.config.device, "--device")
        model = folder.seq2seq() if folder.kind == "seq2seq" else folder.causal_lm()
        objective = Objective(model.to(device), seq2seq_loss)
        values = evaluate(
            objective, batches.__getitem__, len(batches), device=device, world=get_world()
        )
        accuracy = values.get("token_accuracy", values.get("lm_accuracy"))
        return {"loss": values["loss"], "token_accuracy": float(accuracy or 0.0)}, notes


def _side_by_side(texts: _AlignedTexts, written: Sequence[str]) -> list[dict[str, str]]:
    """Some sources with their references and what was written."""
    chosen = np.linspace(0, len(written) - 1, min(SHOWN_EXAMPLES, len(written))).round()
    return [
        {
            "at": texts.places[n],
            "source": texts.sources[n],
            "reference": texts.references[n],
            "written": written[n],
        }
        for n in chosen.astype(int).tolist()
    ]
