"""What a training will take, before it starts: parameters, operations, memory, time, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from llmctl.models.spec import Part, roles_of
from llmctl.training.config import TrainingConfig
from llmctl.training.machine import is_busy
from llmctl.training.planning.rehearsal import StepTimings

PARAMETER_PARTS = get_args(Part)

PROCESS_SECONDS = 0.5
"""Python's start and end, which a command can't time itself: 0.1 s until the first line, the rest
for what PyTorch takes down."""
TOGETHER_SECONDS = 1.0
"""More than that where ``--nproc`` starts several and waits for them."""


def process_seconds(processes: int) -> float:
    """What processes take to start and to end, beside what they can time themselves."""
    return PROCESS_SECONDS + (TOGETHER_SECONDS if processes > 1 else 0.0)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Weights of each of ``PARAMETER_PARTS``, each weight once; ``model`` may be on the meta
    device."""
    counts = dict.fromkeys(PARAMETER_PARTS, 0)
    roles = roles_of(model)
    for name, parameter in model.named_parameters():
        counts[roles[name].part] += parameter.numel()
    return counts


@dataclass(frozen=True)
class Extent:
    """How long a training is and how often it stops to look."""

    total_steps: int | None
    """None: the time limits it."""
    eval_every: int
    """Steps between validations."""
    looks: bool
    """Whether there is anything to validate on."""


@dataclass(frozen=True)
class Schedule:
    """How often a training does what."""

    steps: int
    validations: int
    checkpoints: int


@dataclass(frozen=True)
class TrainingPlan:
    """A training's figures. Operations count a multiplication and an addition as two."""

    parameters: Mapping[str, int]
    flops_per_token: float
    rehearsal: StepTimings
    training: TrainingConfig
    extent: Extent
    start_seconds: float
    """From the command's beginning until its trainer is made; the first step not counted."""
    matrix_flops: float
    """The machine's measured rate of matrix products, a second."""
    logits_bytes: int = 0
    """Bytes of the logits that are there at a time."""
    processes: int = 1
    """That train together. Memory is each one's, the rest is theirs together."""
    fragments: float = 0.0
    """By which share memory grows after the rehearsal: see ``memory.FRAGMENTS``."""
    threads: int = 0
    """Threads of each process, where the processor computes; 0 where an accelerator does."""
    mapped_bytes: int = 0
    """Bytes of the shards: what is read of them counts as the process's memory."""

    def schedule(self) -> Schedule:
        """Steps, validations and checkpoints in all, the last of each at the end."""
        total = self.extent.total_steps
        if self.training.time_limit is None:
            assert total is not None
            return self._schedule(total)
        # Those before the end are taken off the time for steps.
        r, limit = self.rehearsal, self.training.time_limit
        left = limit - r.warm_up_seconds
        looks = r.validation_seconds / self.extent.eval_every if self.extent.looks else 0.0
        every = self.training.checkpoint_every
        saves = r.checkpoint_seconds / every if every else 0.0
        if not every:
            left -= limit // self.training.checkpoint_seconds * r.checkpoint_seconds
        steps = max(1, round(left / (r.seconds_per_step + looks + saves)))
        return self._schedule(min(steps, total or steps))

    def _schedule(self, steps: int) -> Schedule:
        every = self.training.checkpoint_every
        if every:
            saves = -(-steps // every)
        else:
            saves = int(steps * self.rehearsal.seconds_per_step // self.training.checkpoint_seconds)
            saves += 1
        looks = -(-steps // self.extent.eval_every) if self.extent.looks else 0
        return Schedule(steps, looks, saves)

    def seconds_by_part(self) -> dict[str, float]:
        """Wall clock of the command from its start to its end."""
        r, plan = self.rehearsal, self.schedule()
        return {
            "start-up": self.start_seconds + r.build_seconds + process_seconds(self.processes),
            "warm-up": r.warm_up_seconds,
            "steps": plan.steps * r.seconds_per_step,
            "validations": plan.validations * r.validation_seconds,
            "checkpoints": plan.checkpoints * r.checkpoint_seconds,
            "export": r.export_seconds,
        }

    @property
    def seconds(self) -> float:
        return sum(self.seconds_by_part().values())

    @property
    def quiet_share(self) -> float | None:
        """The share of a step's time that a quiet machine takes at the least, where others computed
        on this one while it was timed: as if all threads had a core each and none waited, the
        processor time that it was seen to take. None where others did not, or it isn't known."""
        r = self.rehearsal
        if not (is_busy(r.others_cores) and self.threads and r.own_cores):
            return None
        return min(1.0, r.own_cores / self.threads)

    def quiet(self) -> dict[str, float]:
        """How long all of it takes on a quiet machine at the least, or where the time is limited,
        how many steps it holds at the most."""
        if (share := self.quiet_share) is None:
            return {}
        if self.training.time_limit is not None:
            return {"quiet_steps_at_most": round(self.schedule().steps / share)}
        parts = self.seconds_by_part()
        lost = (1 - share) * (parts["steps"] + parts["validations"])
        return {"quiet_seconds_at_least": self.seconds - lost}

    def memory_by_kind(self) -> dict[str, int]:
        """Bytes at the fullest moment."""
        memory = self.rehearsal.memory
        assert memory is not None
        # Not more than is read, at two bytes a token or more.
        read = 2 * self.schedule().steps * self.rehearsal.tokens_per_step
        logits = min(self.logits_bytes, memory.rest)
        return {
            **vars(memory),
            "logits": logits,
            "rest": memory.rest - logits,
            "fragments": round(self.fragments * memory.peak),
            "shards": min(self.mapped_bytes, round(read)),
        }

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory_by_kind().values())

    def document(self, price: float | None = None) -> dict[str, Any]:
        """All of it as JSON values. price: of an hour on this machine."""
        r, plan = self.rehearsal, self.schedule()
        flops_per_step = self.flops_per_token * r.tokens_per_step
        rate = flops_per_step / r.seconds_per_step
        return {
            "processes": self.processes,
            "parameters": sum(self.parameters.values()),
            "parameters_by_part": dict(self.parameters),
            "total_steps": plan.steps,
            "validations": plan.validations,
            "checkpoints": plan.checkpoints,
            "tokens_per_step": r.tokens_per_step,
            "tokens": plan.steps * r.tokens_per_step,
            "tokens_per_second": r.tokens_per_step / r.seconds_per_step,
            "flops_per_token": self.flops_per_token,
            "flops_per_step": flops_per_step,
            "flops": flops_per_step * plan.steps,
            "machine_matrix_flops_per_second": self.matrix_flops,
            "flops_utilisation": rate / self.matrix_flops,
            "memory_bytes": self.memory_bytes,
            "memory_by_kind": self.memory_by_kind(),
            "seconds_per_step": r.seconds_per_step,
            "expected_seconds": self.seconds,
            "seconds_by_part": self.seconds_by_part(),
            "others_cores": round(r.others_cores, 2),
            **self.quiet(),
            **cost(self.seconds, price),
        }


def cost(seconds: float, price: float | None) -> dict[str, float]:
    """What so long a training costs, where the price of an hour is given."""
    return {} if price is None else {"price_per_hour": price, "cost": seconds / 3600 * price}
