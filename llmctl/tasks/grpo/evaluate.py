"""Evaluate by rewards: what a model's likeliest answers are worth, beside those of the model that
it started from.

N prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.preferences import AskedPrompt, read_prompts
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Figure, Gap, Report
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator
from llmctl.tasks.dpo.evaluate import shown_samples
from llmctl.tasks.dpo.untuned import (
    SHOWN_SAMPLES,
    UNTUNED,
    AnsweringModel,
    evenly,
    mean_interval,
    paired_gap,
    untuned,
)
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.grpo.config import RewardConfig
from llmctl.tasks.grpo.rewards import WeightedRewards, function_file
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.manifests import InputRecord

FIGURES = (
    Figure("reward (95 %)", "reward", ".3f", "interval", ".3f"),
    Figure("tokens", "answer_tokens", ".1f"),
)
REWARD_GAP = Gap("reward", "+.3f")


class RewardEvaluator(LanguageEvaluator):
    """Answers of language models, by what they are worth."""

    reports = ("reward",)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether rewards are asked for."""
        return config.task == "reward" or bool(config.rewards.reward)

    def choose(self) -> None:
        """Find the prompts and the rewards, and what the model was tuned from."""
        super().choose()
        self.refuse_prompts()
        if self.config.task not in (None, "reward"):
            raise UsageError(f"--reward goes with --task reward, and --task is {self.config.task}")
        if self.files.data is None:
            raise UsageError("--task reward: give prompts to be answered, --data FILE")
        for model in self.models.values():
            if model.kind == "ngram":
                raise UsageError(f"{model.name} is an n-gram model, which answers nobody")
        self.data = data_record(self.path)
        self._reward_config = self._settled()
        self._rewards = WeightedRewards(self._reward_config)
        before = untuned(self.workspace, self.model) if self.config.baselines else None
        if before is not None:
            self.models[UNTUNED] = before

    def _settled(self) -> RewardConfig:
        """The rewards as they are given, or as in the model's finetuning."""
        run, given = self.model.run, self.config.rewards
        if given.reward:
            return given
        if run is not None and run.manifest.config.get("task") == "grpo":
            kept = run.manifest.config["objective"]
            fields = {key: kept[key] for key in RewardConfig.model_fields if key in kept}
            return RewardConfig.model_validate(fields)
        raise UsageError(
            f"{self.model.name} was not finetuned with --task grpo: say what its answers are "
            "worth, --reward"
        )

    def inputs(self) -> list[InputRecord]:
        rewards = self._reward_config
        files = [function_file(reward) for reward in rewards.reward]
        files += [Path(rewards.schema_file)] if rewards.schema_file else []
        records = [data_record(file, "reward") for file in files if file is not None]
        return [*super().inputs(), *records]

    def run(self, reporter: Reporter) -> Report:
        """Let all models answer the prompts."""
        prompts = list(read_prompts(self.path, reading=self.read_options(reporter)))
        rows: dict[str, dict[str, Any]] = {}
        worth: dict[str, NDArray[np.float64]] = {}
        texts: dict[str, list[str]] = {}
        for name, model in self.models.items():
            rows[name], worth[name], texts[name] = self._answered(model, prompts, reporter)
        how = (self.config.resamples, self.config.seed)
        facts: dict[str, Any] = {"prompts": len(prompts), "reward": list(self._rewards.names)}
        if UNTUNED in texts:
            facts["samples"] = [
                {"prompt": prompts[n].prompt[-1].content, "before": texts[UNTUNED][n],
                 "after": texts[MODEL][n]}
                for n in evenly(len(prompts), SHOWN_SAMPLES)
            ]  # fmt: skip
        return Report(
            task="reward",
            data=str(self.path),
            facts=facts,
            results=rows,
            differences={
                name: paired_gap(worth[MODEL], other, *how)
                for name, other in worth.items()
                if name != MODEL
            },
            summary={key: rows[MODEL][key] for key in ("reward", "answer_tokens")},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, and some answers before and after."""
        names = ", ".join(report.facts["reward"])
        title = f"{report.data}: {report.facts['prompts']:,} prompts, rewarded by {names}"
        yield report.table(title, FIGURES)
        yield from report.gaps(REWARD_GAP)
        yield from shown_samples(report)

    def _answered(
        self, opened: OpenedModel, prompts: Sequence[AskedPrompt], reporter: Reporter
    ) -> tuple[dict[str, Any], NDArray[np.float64], list[str]]:
        """A model's row, what each of its answers is worth, and the answers."""
        config = self.config
        model = AnsweringModel(
            opened, config.device, max_new_tokens=config.max_new_tokens, seed=config.seed
        )
        encoded = []
        for prompt in prompts:
            ids = model.prompt(prompt.messages)
            if ids is None:
                raise InputError(
                    f"{prompt.source} leaves no room for an answer within {opened.name}'s "
                    f"{model.longest} tokens; leave it out"
                )
            encoded.append(ids)
        answers = model.answers(encoded, reporter)
        each = [
            self._rewards(answer.text, prompt.values, prompt.source)
            for answer, prompt in zip(answers, prompts, strict=True)
        ]
        worth_N = np.asarray([rewards[0] for rewards in each])
        row = {
            "reward": float(worth_N.mean()),
            "interval": mean_interval(worth_N, config.resamples, config.seed),
            "answer_tokens": float(np.mean([len(answer.ids) for answer in answers])),
        }
        if len(self._rewards.names) > 1:
            parts = np.asarray(each)[:, 1:].mean(0)
            row["rewards"] = dict(zip(self._rewards.names, parts.tolist(), strict=True))
        return row, worth_N, [answer.text for answer in answers]
