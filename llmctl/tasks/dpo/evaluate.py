"""Evaluate preferences: which of two answers a model prefers, and how far it is from where it
started.

Two things are asked of each pair. Does the *reward* that the model implies, log π − log π_ref of
the model that it was tuned from, put the chosen answer first? And does its likelihood for each
token, which any language model has? A tie is half right. The divergence is that of answers which
the model draws; the untuned model draws by the same random numbers, and both are kept side by side.

N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.conversations import Conversation
from llmctl.data.tables.preferences import PreferencePair, has_pairs, read_preferences
from llmctl.data.text.files import is_table
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Gap, Report, share
from llmctl.evaluation.report import Figure as Column
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator
from llmctl.tasks.dpo.answers import EncodedAnswer, encode_answer
from llmctl.tasks.dpo.reference import answers_under
from llmctl.tasks.dpo.untuned import (
    SHOWN_SAMPLES,
    UNTUNED,
    AnsweringModel,
    divergence,
    evenly,
    mean_interval,
    paired_gap,
    untuned,
)
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.opened import OpenedModel
from llmctl.training.device import Machine
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

FIGURES = (
    replace(
        share("by reward (95 %)", "reward_accuracy", "intervals.reward_accuracy"), optional=True
    ),
    share("by likelihood (95 %)", "likelihood_accuracy", "intervals.likelihood_accuracy"),
    Column("margin, nats", "margin", "+.3f", optional=True),
    Column("KL, nats", "kl", ".3f", optional=True),
)
EXPLAINED = (
    "by reward: share of pairs whose chosen answer gained more on the untuned model than the "
    "rejected one; margin: by how much; by likelihood: whose chosen answer is likelier for each "
    "token; KL: divergence from the untuned model in an answer that is drawn"
)
LIKELIHOOD_GAP = Gap("right by likelihood", "+.1f", scale=100, unit=" points")
SHOWN_IN_TABLE = 3
"""Prompts whose answers before and after are printed; the report keeps more."""


class PreferenceEvaluator(LanguageEvaluator):
    """Pairs of answers under language models."""

    reports = ("preference",)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether preferences are asked for, or the data has pairs."""
        if config.task is not None or config.suite is not None or files.data is None:
            return config.task == "preference"
        if not files.data.is_file() or not is_table(files.data):
            return False
        return has_pairs(files.data, reading=config.read_config().read_options())

    def choose(self) -> None:
        """Find the pairs, and what the model was tuned from."""
        super().choose()
        self.refuse_prompts()
        if self.files.data is None:
            raise UsageError("--task preference: give pairs of answers, --data FILE")
        for model in self.models.values():
            if model.kind == "ngram":
                raise UsageError(f"{model.name} is an n-gram model, which answers nobody")
        self.data = data_record(self.path)
        self._before = {name: untuned(self.workspace, model) for name, model in self.models.items()}
        if self._before[MODEL] is None:
            self.notes.append(
                f"{self.model.name} was not tuned on preferences or rewards by llmctl, so there is "
                "no model that it started from: pairs are told by likelihood alone"
            )

    def run(self, reporter: Reporter) -> Report:
        """Read the pairs with all models."""
        pairs = list(read_preferences(self.path, reading=self.read_options(reporter)))
        rows: dict[str, dict[str, Any]] = {}
        right: dict[str, NDArray[Any]] = {}
        facts: dict[str, Any] = {}
        notes: list[str] = []
        for name, model in self.models.items():
            measured, before = self._measured(model, pairs, self._before[name], reporter)
            if measured["left_out"]:
                notes.append(
                    f"{model.name}: {measured['left_out']:,} of {len(pairs):,} pairs don't fit its "
                    f"{model.folder.max_length} tokens, and count as ties"
                )
            rows[name], right[name] = measured["row"], measured["right"]
            if name == MODEL:
                facts["samples"] = measured["samples"]
                if before is not None and self.config.baselines:
                    rows[UNTUNED], right[UNTUNED] = before["row"], before["right"]
        how = (self.config.resamples, self.config.seed)
        return Report(
            task="preference",
            data=str(self.path),
            facts={"pairs": len(pairs), **facts},
            results=rows,
            differences={
                name: paired_gap(right[MODEL], other, *how)
                for name, other in right.items()
                if name != MODEL
            },
            notes=notes,
            summary={
                key: rows[MODEL][key]
                for key in ("reward_accuracy", "likelihood_accuracy", "margin", "kl")
                if key in rows[MODEL]
            },
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, and some answers before and after."""
        yield report.table(f"{report.data}: {report.facts['pairs']:,} pairs", FIGURES)
        yield EXPLAINED
        yield from report.gaps(LIKELIHOOD_GAP)
        yield from shown_samples(report)

    def _answering(self, model: OpenedModel) -> AnsweringModel:
        config = self.config
        return AnsweringModel(
            model, config.device, max_new_tokens=config.max_new_tokens, seed=config.seed
        )

    def _measured(
        self,
        opened: OpenedModel,
        pairs: Sequence[PreferencePair],
        before: OpenedModel | None,
        reporter: Reporter,
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """A model's row, and that of what it was tuned from where there is such a model."""
        model = self._answering(opened)
        encoded = [
            [encode_answer(pair.answered(a), model.template, model.longest)
             for a in (pair.chosen, pair.rejected)]
            for pair in pairs
        ]  # fmt: skip
        fitting = [n for n, both in enumerate(encoded) if None not in both]
        if not fitting:
            raise InputError(
                f"{self.path}: no answer begins within {opened.name}'s {model.longest} tokens"
            )
        answers = [answer for n in fitting for answer in encoded[n] if answer is not None]
        tokens = np.asarray([answer.tokens for answer in answers]).reshape(-1, 2)
        scores = self._scores(model, answers, reporter)
        found = {
            **self._likelihood(scores / tokens, fitting, len(pairs)),
            "left_out": len(pairs) - len(fitting),
            "samples": [],
        }
        if before is None:
            return found, None
        reference = self._answering(before)
        start = self._scores(reference, answers, reporter)
        other = self._likelihood(start / tokens, fitting, len(pairs))
        other["row"] |= {"reward_accuracy": 0.5, "margin": 0.0, "kl": 0.0}
        other["row"]["intervals"]["reward_accuracy"] = (0.5, 0.5)
        ratios = scores - start
        delta_N = np.zeros(len(pairs))
        delta_N[fitting] = ratios[:, 0] - ratios[:, 1]
        right_N = (np.sign(delta_N) + 1) / 2
        kl, samples = self._drawn(model, reference, pairs, reporter)
        row, intervals = found["row"], found["row"]["intervals"]
        row |= {"reward_accuracy": float(right_N.mean()), "margin": float(delta_N.mean())}
        how = (self.config.resamples, self.config.seed)
        intervals |= {
            "reward_accuracy": mean_interval(right_N, *how),
            "margin": mean_interval(delta_N, *how),
        }
        if len(kl):
            row["kl"], intervals["kl"] = float(kl.mean()), mean_interval(kl, *how)
        return {**found, "samples": samples}, other

    def _scores(
        self, model: AnsweringModel, answers: Sequence[EncodedAnswer], reporter: Reporter
    ) -> NDArray[np.float64]:
        """Log-probabilities of pairs of answers (N, 2), in nats."""
        machine = Machine(choose_device(self.config.device), "fp32", False, get_world())
        told = f"answers under {model.name}"
        found = answers_under(model.network, answers, machine, reporter, told)
        return found.double().numpy().reshape(-1, 2)

    def _likelihood(
        self, by_token: NDArray[np.float64], fitting: Sequence[int], count: int
    ) -> dict[str, Any]:
        right_N = np.full(count, 0.5)
        right_N[list(fitting)] = (np.sign(by_token[:, 0] - by_token[:, 1]) + 1) / 2
        interval = mean_interval(right_N, self.config.resamples, self.config.seed)
        row = {
            "likelihood_accuracy": float(right_N.mean()),
            "intervals": {"likelihood_accuracy": interval, "reward_accuracy": None},
        }
        return {"row": row, "right": right_N}

    def _drawn(
        self,
        model: AnsweringModel,
        reference: AnsweringModel,
        pairs: Sequence[PreferencePair],
        reporter: Reporter,
    ) -> tuple[NDArray[np.float64], list[dict[str, str]]]:
        """The divergence in some answers that the model draws, and answers before and after."""
        asked = list(dict.fromkeys(pair.prompt for pair in pairs))
        chosen = [asked[n] for n in evenly(len(asked), SHOWN_SAMPLES)]
        prompts = [(turns, model.prompt(Conversation(turns, "").messages)) for turns in chosen]
        fitting = [(turns, ids) for turns, ids in prompts if ids is not None]
        if not fitting:
            return np.zeros(0), []
        ids = [ids for _, ids in fitting]
        after = model.answers(ids, reporter, temperature=1.0)
        before = reference.answers(ids, reporter, temperature=1.0)
        samples = [
            {"prompt": turns[-1].content, "before": old.text, "after": new.text}
            for (turns, _), old, new in zip(fitting, before, after, strict=True)
        ]
        return divergence(model, reference, ids, after), samples


def shown_samples(report: Report) -> Iterator[str]:
    """Some of the answers before and after, each on a line."""
    for sample in report.facts.get("samples", [])[:SHOWN_IN_TABLE]:
        yield f"> {_on_a_line(sample['prompt'])}"
        for what in ("before", "after"):
            yield f"  {what}: {_on_a_line(sample[what])}"


def _on_a_line(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
