"""Finetune by rewards: prompts to a model whose answers are rewarded.

A batch is some prompts. Its loss has the model answer each several times, asks what the answers are
worth, and makes those likelier that are better than the prompt's others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmctl.data.tables.preferences import AskedPrompt, read_prompts
from llmctl.data.text.hashing import is_held_out
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.inference.decoding import Completion
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.log_probs import token_log_probs
from llmctl.models.heads.padding import read_padded
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.dpo.answers import EncodedAnswer, answer_rows
from llmctl.tasks.dpo.preferring import AnsweringTask
from llmctl.tasks.dpo.sampling import AnswerSampler
from llmctl.tasks.grpo.config import GrpoConfig
from llmctl.tasks.grpo.loss import advantages, clipped_loss, kl_estimate
from llmctl.tasks.grpo.rewards import WeightedRewards, function_file
from llmctl.training.batches import LossParts, SumAndCount, TensorBatch
from llmctl.training.device import Machine
from llmctl.workspace.manifests import InputRecord

VALIDATIONS = 10
"""Validations of a training, about: each answers all prompts that are held out."""
VALIDATION_BATCH = 256
"""Prompts that are answered together at a validation."""


@dataclass(frozen=True)
class PromptBatch(TensorBatch):
    """Prompts to be answered."""

    prompt_B: Tensor
    """Numbers of the prompts."""
    place_B: Tensor
    """Their places in the whole batch, by which answers are drawn."""
    rollout: int
    """The number of the batch that its answers are drawn for."""
    most_tokens: int
    """Tokens of all answers to a prompt at most: what losses are divided by."""

    @property
    def num_positions(self) -> int:
        return self.real_tokens

    @property
    def loss_denominators(self) -> dict[str, int]:
        return dict.fromkeys(("policy_loss", "kl_loss"), len(self) * self.most_tokens)


@dataclass
class TriedAnswers:
    """What was tried for a prompt."""

    answers: list[EncodedAnswer]
    completions: list[Completion]
    rewards: list[list[float]]
    """For each answer what it is worth in all, and by each reward."""
    old: Tensor | None = field(default=None)
    """Log-probabilities of the answers' tokens when they were drawn."""


class GrpoTask(AnsweringTask):
    """Prompts, and a language model that is trained by what its answers are worth."""

    config: GrpoConfig
    config_type: ClassVar[type[GrpoConfig]] = GrpoConfig

    def __init__(
        self, data: Path, base: Pretrained, config: GrpoConfig, *, start: str, reporter: Reporter
    ) -> None:
        """Raises UsageError for a precision or a sharing that answers can't be written in."""
        super().__init__(data, base, config, start=start, reporter=reporter)
        training = config.training
        for name, value in {"parallel": ("fsdp", "hybrid"), "precision": ("fp8",),
                            "compile": ("on",)}.items():  # fmt: skip
            if getattr(training, name) in value:
                raise UsageError(
                    f"training.{name} {getattr(training, name)} is not for --task grpo, which "
                    "writes answers with the network as it trains; leave it out"
                )
        objective = config.objective
        self._rewards = WeightedRewards(objective)
        self._prompts: list[AskedPrompt] = []
        self._ids: list[list[int]] = []
        self._split: tuple[list[int], list[int]] = ([], [])
        self._read(reporter)
        self.train_examples, self.held_out_examples = map(len, self._split)
        self._sampler = AnswerSampler(
            self._tokenizer,
            self._template,
            longest=self._max_length,
            max_new_tokens=objective.max_new_tokens,
            at_once=objective.sample_batch,
            seed=config.seed,
        )
        lengths = [len(self._ids[number]) for number in self._split[0]]
        self._epoch = lru_cache(maxsize=2)(
            partial(bucketed, lengths, training.batch_size, config.seed)
        )
        self._tried: tuple[int, dict[int, TriedAnswers]] = (-1, {})
        """What was tried for the batch of a number, by the prompts' places."""
        self._reference: CausalLM | None = None

    @classmethod
    def further_inputs(cls, config: Any) -> list[InputRecord]:
        objective = config.objective
        files = [function_file(reward) for reward in objective.reward]
        files += [Path(objective.schema_file)] if objective.schema_file else []
        return [data_record(file, "reward") for file in files if file is not None]

    @property
    def steps_together(self) -> int:
        return self.config.objective.iterations

    def _read(self, reporter: Reporter) -> None:
        """Fill the prompts and the split. Raises InputError where none is left, or where the first
        can't be rewarded."""
        counts: Counter[str] = Counter()
        reading = self.config.data.read_options(reporter.note)
        for prompt in read_prompts(self.data, reading=reading):
            counts["read"] += 1
            try:
                ids = self._template.encode_prompt(prompt.messages)
            except InputError as error:
                raise InputError(f"{prompt.source}: {error}") from None
            if len(ids) >= self._max_length:
                counts["too long"] += 1
                continue
            # Whether an answer's worth can be told is found here, and not in an hour.
            self._rewards.check(prompt.values, prompt.source, first=not self._ids)
            held_out = is_held_out(prompt.asked, self.config.data.validation)
            self._split[held_out].append(len(self._ids))
            self._prompts.append(prompt)
            self._ids.append(ids)
        if not self._ids:
            raise InputError(
                f"{self.data}: no prompt leaves room for an answer within {self._max_length} "
                "tokens; raise data.max_length, or finetune a model with a longer context"
            )
        if counts["too long"]:
            reporter.note(
                f"left out {counts['too long']:,} of {counts['read']:,} prompts, which leave no "
                f"room for an answer within {self._max_length} tokens"
            )
        if not self._split[0]:
            raise InputError("all prompts fell to validation; give more of them")

    @property
    def introduction(self) -> str:
        objective, size = self.config.objective, self.config.training.batch_size
        return (
            f"{self.train_examples:,} prompts to train on, {self.held_out_examples:,} held out; "
            f"{min(size, self.train_examples) * objective.group_size:,} answers are tried for a "
            f"step, and rewarded by {', '.join(self._rewards.names)}"
        )

    @property
    def batches_per_epoch(self) -> int:
        return super().batches_per_epoch * self.steps_together

    @property
    def eval_every(self) -> int:
        steps = self.total_steps or self.batches_per_epoch * VALIDATIONS
        return self.config.training.eval_every or max(1, steps // VALIDATIONS)

    def before_training(self, folder: Path, machine: Machine, reporter: Reporter) -> None:
        if self.config.objective.beta:
            model = self.base.owning().causal_lm().to(machine.device).eval()
            self._reference = model.requires_grad_(False)

    def batch(self, number: int) -> PromptBatch:
        """Batch ``number``: random prompts of like length; as often as there are iterations."""
        rollout = number // self.steps_together
        epoch, place = divmod(rollout, self.batches_per_epoch // self.steps_together)
        trained = self._split[0]
        return self._collated([trained[i] for i in self._epoch(epoch)[place]], rollout)

    def validation_batches(self) -> list[PromptBatch]:
        held_out, size = self._split[1], VALIDATION_BATCH
        return [
            self._collated(held_out[begin : begin + size], 0)
            for begin in range(0, len(held_out), size)
        ]

    def _collated(self, numbers: Sequence[int], rollout: int) -> PromptBatch:
        objective = self.config.objective
        return PromptBatch(
            tokens_B=torch.tensor([len(self._ids[n]) for n in numbers]).numpy(),
            prompt_B=torch.tensor(list(numbers)),
            place_B=torch.arange(len(numbers)),
            rollout=rollout,
            most_tokens=objective.group_size * objective.max_new_tokens,
        )

    def loss(self, model: CausalLM, batch: PromptBatch) -> LossParts:
        return self._trained(model, batch) if model.training else self._validated(model, batch)

    def _validated(self, model: CausalLM, batch: PromptBatch) -> LossParts:
        """What the likeliest answers are worth: their loss is what is missing to more."""
        numbers = batch.prompt_B.tolist()
        written = self._sampler(model, [self._ids[number] for number in numbers])
        tried = [
            self._rewarded(n, completions) for n, completions in zip(numbers, written, strict=True)
        ]
        figures = self._figures(tried)
        total, count = figures["reward"].total, figures["reward"].count
        return LossParts({"negative_reward": SumAndCount(-total, count)}, figures)

    def _trained(self, model: CausalLM, batch: PromptBatch) -> LossParts:
        objective = self.config.objective
        tried = self._answers(model, batch)
        device = model.output_weight.device
        rows = answer_rows([answer for one in tried for answer in one.answers])
        ids, labels, mask = (
            torch.from_numpy(part).to(device) for part in (rows.input_ids, rows.labels, rows.mask)
        )
        scored = mask & (labels >= 0)
        tokens_M, owner_M = labels[scored], torch.nonzero(scored)[:, 0]

        def scores(network: CausalLM) -> tuple[Tensor, Tensor]:
            hidden_ATD = read_padded(network.body, ids, mask)
            return token_log_probs(
                network, hidden_ATD[scored], tokens_M, temperature=objective.temperature
            )

        log_probs_M, entropy_M = scores(model)
        old_M = _kept_log_probs(tried, log_probs_M.detach(), owner_M, objective.group_size)
        worth_BG = torch.tensor([[r[0] for r in one.rewards] for one in tried], device=device)
        advantage_M = advantages(worth_BG).flatten()[owner_M]
        policy, clipped = clipped_loss(log_probs_M, old_M, advantage_M, objective.clip)
        count, tokens = len(batch) * batch.most_tokens, len(tokens_M)
        losses = {"policy_loss": SumAndCount(policy, count)}
        figures = {
            **self._figures(tried),
            "entropy": SumAndCount(entropy_M.sum(), tokens),
            "flat_groups": SumAndCount((worth_BG.std(1) == 0).sum(), len(tried)),
        }
        if objective.iterations > 1:
            figures["clipped"] = SumAndCount(clipped, tokens)
        if self._reference is not None:
            with torch.no_grad():
                reference_M, _ = scores(self._reference)
            kl = kl_estimate(log_probs_M, reference_M)
            losses["kl_loss"] = SumAndCount(kl, count, weight=objective.beta)
            figures["kl"] = SumAndCount(kl.detach(), tokens)
        return LossParts(losses, figures)

    def _answers(self, model: CausalLM, batch: PromptBatch) -> list[TriedAnswers]:
        """What is tried for each prompt: anew for a batch, the same in its further iterations."""
        objective = self.config.objective
        places, numbers = batch.place_B.tolist(), batch.prompt_B.tolist()
        if self._tried[0] != batch.rollout:
            self._tried = (batch.rollout, {})
        kept = self._tried[1]
        if not all(place in kept for place in places) or objective.iterations == 1:
            written = self._sampler(
                model,
                [self._ids[number] for number in numbers],
                first=places[0],
                rollout=batch.rollout,
                count=objective.group_size,
                temperature=objective.temperature,
            )
            for place, number, completions in zip(places, numbers, written, strict=True):
                kept[place] = self._rewarded(number, completions)
        return [kept[place] for place in places]

    def _rewarded(self, number: int, completions: list[Completion]) -> TriedAnswers:
        """Answers to a prompt with what they are worth."""
        prompt, ids = self._prompts[number], self._ids[number]
        return TriedAnswers(
            [EncodedAnswer(_joined(ids, one.ids), len(ids)) for one in completions],
            completions,
            [self._rewards(one.text, prompt.values, prompt.source) for one in completions],
        )

    def _figures(self, tried: Sequence[TriedAnswers]) -> dict[str, SumAndCount]:
        """What answers are worth, how long they are, and how many end by themselves."""
        completions = [one for answers in tried for one in answers.completions]
        rewards = [reward for answers in tried for reward in answers.rewards]
        columns = torch.tensor(rewards).sum(0)
        names = ["reward", *(f"reward_{name}" for name in self._rewards.names)]
        figures = dict(zip(names, columns, strict=True))
        if len(names) == 2:  # the one is the other
            figures.pop(names[1])
        figures["answer_tokens"] = torch.tensor(sum(len(one.ids) for one in completions))
        figures["ended"] = torch.tensor(sum(one.finish != "length" for one in completions))
        return {name: SumAndCount(total, len(completions)) for name, total in figures.items()}

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "criterion": -values["reward"]}


def _joined(prompt: Sequence[int], answer: Sequence[int]) -> Any:
    return torch.tensor([*prompt, *answer]).numpy()


def _kept_log_probs(
    tried: Sequence[TriedAnswers], now_M: Tensor, owner_M: Tensor, group_size: int
) -> Tensor:
    """Log-probabilities of the answers' tokens when they were drawn: those of now, where they were
    drawn for this step, which are then kept."""
    prompt_M = owner_M // group_size
    for number, one in enumerate(tried):
        if one.old is None:
            one.old = now_M[prompt_M == number]
    return torch.cat([one.old for one in tried if one.old is not None])
