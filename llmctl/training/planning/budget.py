"""A budget of wall clock to a pretraining: model size, batch, steps and schedule for this machine.

Real steps of one shape of the ladder are timed, at two batch sizes; the others are taken to be as
fast for their operations. What the rest of the budget then holds of tokens, and what those are
worth, gives each shape a loss by the scaling law, and the lowest is taken, once its own steps were
timed. The learning rate falls linearly to zero, which ends lowest (Bergsma et al. 2025).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmctl.errors import UsageError
from llmctl.models import ARCHITECTURES
from llmctl.models.scaling import ScalingLaw, entropy
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import duration
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.device import Machine, choose_machine
from llmctl.training.distributed.processes import SINGLE_PROCESS, World
from llmctl.training.planning.choice import Choice, ShapeCandidate
from llmctl.training.planning.ladder import LadderShape, Opener, ladder
from llmctl.training.planning.memory import free_bytes
from llmctl.training.planning.plan import process_seconds
from llmctl.training.planning.rehearsal import StepTimings, measure_training, time_steps
from llmctl.training.precision import choose_compile
from llmctl.training.trainer import Trainer

LEAST_SECONDS = 20.0
"""Below it start-up and calibration leave too little: PyTorch alone takes two seconds."""
MIN_TRAINING_STEPS = 50
"""Steps that a training needs at the least to have a warm-up and a decay."""
LEAST_SHARE = 0.4
"""The share of the budget that must be left for training."""
GIVE_UP_SHARE = 0.04
"""The share of the budget after which one step of a batch size that is timed stands for all."""
RELATIVE_ERROR = 0.25
"""Share of the predicted loss that its range allows for: on Wikipedia's text, which the law was not
fitted to, it was 18 % off, and texts of one entropy differ by a fifth in what can be learned."""
EVAL_TIME_SHARE = 0.05
"""The share of the time for training that validations on the way may take."""
WARM_UP_STEPS = 10
COMPILED_SHARE = 0.75
"""Time of a compiled step over one that isn't: a third to a half is saved at nano size, a tenth
beyond (tests/benchmarks). The steps are an estimate; the time limit is not."""
COMPILE_SECONDS = 35.0

FIRST_TIMED = 1
STEP_TOKENS = {
    "causal_lm": [1 << n for n in range(11, 15)],
    "masked_lm": [1 << n for n in range(10, 15)],
}
"""Tokens of a step that are considered, by objective; the least and the most but one are timed.
With fewer, Muon learns less from as many tokens: a loss of 5.61 with 512, of 5.17 with 2,048."""
ON_ACCELERATOR = 8
"""Times as many there."""

TrainerMaker = Callable[[Any, Machine, CheckpointStore], Trainer]


class BudgetSearch:
    """The search for a shape and a batch size."""

    def __init__(
        self,
        config: Any,
        start_time: float,
        open_pretraining: Opener,
        make_trainer: TrainerMaker,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.config, self.budget, self._start_time = config, float(config.budget), start_time
        self._open, self._make = open_pretraining, make_trainer
        # Compiling pays for a training, not for the few steps that are timed.
        self.machine = choose_machine(config.training.replace(compile="off"), world)
        self._shapes = ladder(config, open_pretraining)
        pretraining = self._open(self._shapes[0].config)
        reader = pretraining.reader("train")
        self._unique = float(reader.document_lengths.sum())
        self._vocab_size = pretraining.config.model.vocab_size
        self._entropy = entropy(reader.token_counts(self._vocab_size))
        law = ARCHITECTURES[config.arch].scaling
        assert law is not None
        self.law: ScalingLaw = law

    def spent(self) -> float:
        """Seconds since the command began, by the main process's clock."""
        return self.machine.world.broadcast([time.perf_counter() - self._start_time])[0]

    def _batch_sizes(self) -> list[int]:
        if "training.batch_size" not in self.config.chosen:
            return [self.config.training.batch_size]
        length = self.config.data.sequence_length
        considered = STEP_TOKENS[ARCHITECTURES[self.config.arch].task]
        scale = 1 if self.machine.device.type == "cpu" else ON_ACCELERATOR
        return sorted({max(1, tokens * scale // length) for tokens in considered})

    def _time(self, shape: LadderShape) -> None:
        """Time a shape's steps at two batch sizes, or at the only one."""
        sizes = self._batch_sizes()
        seconds = min(1.0, self.budget / 150)
        for size in sorted({sizes[0], sizes[-1 if len(sizes) < 3 else -2]}):
            pretraining = self._open(_with_training(shape.config, batch_size=size))
            trainer = self._make(pretraining, self.machine, CheckpointStore(Path(), 1))
            timings = time_steps(trainer, seconds, give_up=max(1.0, self.budget * GIVE_UP_SHARE))
            shape.timed[size] = timings.seconds_per_step, timings.tokens_per_step
            del trainer
            gc.collect()

    def _step(self, index: int, size: int) -> tuple[float, float]:
        """Seconds and tokens of a step of a shape, as timed or by the operations of the nearest one
        that was."""
        near = min(
            (n for n, shape in enumerate(self._shapes) if shape.timed), key=lambda n: abs(n - index)
        )
        shape = self._shapes[near]
        small, large = min(shape.timed), max(shape.timed)
        (low, low_tokens), (high, high_tokens) = shape.timed[small], shape.timed[large]
        slope = (high - low) / (large - small) if large > small else 0.0
        # Fewer rows than were timed take no less than their share.
        seconds = max(low + slope * (size - small), low * min(1.0, size / small))
        tokens = high_tokens if size == large else low_tokens * size / small
        return seconds * self._shapes[index].flops / shape.flops, tokens

    def _candidate(self, index: int, seconds: float) -> ShapeCandidate | None:
        """The best of a shape in so many seconds of training; None if it can't do enough steps."""
        shape, found = self._shapes[index], []
        model = shape.config.model
        for size in self._batch_sizes():
            step, per_step = self._step(index, size)
            steps = self.steps_in(seconds, step)
            tokens = steps * per_step
            if steps >= MIN_TRAINING_STEPS:
                found.append(ShapeCandidate(
                    model.num_layers, model.hidden_size, shape.parameters, size, step, steps,
                    tokens, tokens / self._unique, self.predicted_loss(shape, tokens, per_step),
                ))  # fmt: skip
        return min(found, key=lambda candidate: candidate.predicted_loss, default=None)

    def steps_in(self, seconds: float, step: float) -> int:
        """Steps in so many seconds, by the time that one takes before it is compiled."""
        if self._compiles(seconds):
            seconds, step = seconds - COMPILE_SECONDS, step * COMPILED_SHARE
        return int(seconds * (1 - EVAL_TIME_SHARE) / step)

    def _compiles(self, seconds: float) -> bool:
        """Whether a training of that length is compiled."""
        return choose_compile(self.config.training.compile, self.machine.device, seconds)

    def search(self) -> list[tuple[LadderShape, ShapeCandidate]]:
        """Time a shape, and what is then the best, until that is timed; returns those that were,
        the best first.

        Raises UsageError if not even the smallest could do enough steps.
        """
        self._check_feasible()
        index = min(FIRST_TIMED, len(self._shapes) - 1)
        while not self._shapes[index].timed:
            self._time(self._shapes[index])
            seconds = self._seconds_left()
            found = [self._candidate(n, seconds) for n in range(len(self._shapes))]
            ranked = sorted(
                (candidate.predicted_loss, n)
                for n, candidate in enumerate(found)
                if candidate is not None and (self._shapes[n].timed or self._fits(n))
            )
            # Where none can do enough steps, a smaller one might.
            index = ranked[0][1] if ranked else 0
        candidates = [(self._shapes[n], found[n]) for _, n in ranked if self._shapes[n].timed]
        if not candidates:
            step, _ = self._step(index, self._batch_sizes()[0])
            raise UsageError(self._too_short(index, step))
        return candidates  # type: ignore[return-value]

    def _seconds_left(self) -> float:
        """For training, before what follows it is known: a twentieth is left for that."""
        return 0.95 * self.budget - self.spent() - process_seconds(self.machine.world.size)

    def _fits(self, index: int) -> bool:
        """Whether weights, gradients and optimiser find room twice, for each process."""
        device, world = self.machine.device, self.machine.world
        sharing = world.local_size if device.type == "cpu" else 1
        room = 32 * self._shapes[index].parameters * sharing < free_bytes(device)
        return bool(world.all_reduce_min(int(room)))

    def _check_feasible(self) -> None:
        """Before a step is tried: at the rate of matrix products none is faster than that."""
        shape, rows = self._shapes[0], self._batch_sizes()[0]
        rate = self.machine.world.all_reduce_sum([self.machine.matrix_flops])[0]
        step = shape.flops * rows * self.config.data.sequence_length / rate
        if MIN_TRAINING_STEPS * step > self._seconds_left():
            raise UsageError(self._too_short(0, step))

    def _too_short(self, index: int, step: float) -> str:
        training = (MIN_TRAINING_STEPS + 1) * step / (1 - EVAL_TIME_SHARE)
        compiling = ""
        if self._compiles(training):
            training = COMPILE_SECONDS + COMPILED_SHARE * training
            compiling = f", compiling takes about {duration(COMPILE_SECONDS)}"
        need = training + self.spent() + process_seconds(self.machine.world.size)
        return (
            f"--budget {duration(self.budget)} is too short: start-up and calibration took "
            f"{duration(self.spent())}{compiling}, and {MIN_TRAINING_STEPS} steps of "
            f"{self._shapes[index].parameters / 1e6:.1f} M parameters take "
            f"{duration(MIN_TRAINING_STEPS * step)} on this machine; give at least "
            f"{duration(math.ceil(need / 0.95))}, or a smaller model or batch"
        )

    def final_config(self, shape: LadderShape, chosen: ShapeCandidate) -> Any:
        """The configuration with what was chosen, as far as it was open."""
        warm_up = max(self.config.training.warmup, min(0.1, WARM_UP_STEPS / chosen.steps))
        values = {"batch_size": chosen.batch_size, "schedule": "linear", "warmup": warm_up}
        changes = {k: v for k, v in values.items() if f"training.{k}" in self.config.chosen}
        return _with_training(shape.config, precision=self.machine.precision, **changes)

    def predicted_loss(self, shape: LadderShape, tokens: float, tokens_per_step: float) -> float:
        """By the law, for this text."""
        worth = self.law.worth(tokens, self._unique, tokens_per_step)
        return self._entropy * self.law.loss(shape.weights, worth, self._vocab_size)


def choose_shape(
    config: Any,
    folder: Path,
    *,
    start_time: float,
    open_pretraining: Opener,
    make_trainer: TrainerMaker,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
) -> tuple[Any, Choice]:
    """The configuration for a budget, and what it is expected to come to.

    start_time: when the command began, by time.perf_counter. folder: to write a rehearsal into,
    removed by the caller. world: the processes that will train; all must call it. Raises UsageError
    if the budget is too short.
    """
    reporter.note("timing models of several sizes on this machine")
    with torch.random.fork_rng(devices=[]):
        search = BudgetSearch(config, start_time, open_pretraining, make_trainer, world)
        candidates = search.search()
        shape, best = candidates[0]
        config = search.final_config(shape, best)
        pretraining = open_pretraining(config)
        trial = measure_training(
            partial(make_trainer, pretraining, search.machine),
            pretraining.export,
            folder / "rehearsal",
            min(2.0, search.budget / 60),
        )
        gc.collect()
    spent = search.spent()
    limit = search.budget - spent - trial.build_seconds - _tail(trial, world)
    if limit < LEAST_SHARE * search.budget:
        raise UsageError(_too_little_left(search.budget, limit))
    steps = search.steps_in(limit, trial.seconds_per_step)
    changes: dict[str, Any] = {"time_limit": round(limit, 3)}
    if "training.eval_every" in config.chosen:
        evals = min(10, int(EVAL_TIME_SHARE * limit / max(trial.validation_seconds, 1e-9)))
        # The last look comes with the end, whenever that is; one alone is never due before.
        changes["eval_every"] = max(1, steps // evals) if evals > 1 else 100 * steps
    tokens = steps * trial.tokens_per_step
    loss = search.predicted_loss(shape, tokens, trial.tokens_per_step)
    choice = Choice(
        budget_seconds=search.budget,
        predicted_loss=loss,
        predicted_range=((1 - RELATIVE_ERROR) * loss, (1 + RELATIVE_ERROR) * loss),
        steps=steps,
        tokens=tokens,
        training_seconds=limit,
        calibration_seconds=spent,
        others_cores=round(trial.others_cores, 2),
        candidates=[candidate for _, candidate in candidates],
    )
    for line in choice.lines():
        reporter.note(line)
    return _with_training(config, **changes), choice


def _with_training(config: Any, **changes: Any) -> Any:
    return config.replace(training=config.training.replace(**changes).model_dump())


def _tail(trial: StepTimings, world: World) -> float:
    """Seconds from the time limit to the end of the process: half of a step on average, then the
    last validation, checkpoint and export."""
    return (
        trial.seconds_per_step / 2
        + trial.validation_seconds
        + trial.checkpoint_seconds
        + trial.export_seconds
        + process_seconds(world.size)
    )


def _too_little_left(budget: float, left: float) -> str:
    need = math.ceil((budget - left) / (1 - LEAST_SHARE))
    return (
        f"--budget {duration(budget)} leaves {duration(max(0.0, left))} for training: start-up, "
        f"calibration, the last validation and the export take {duration(budget - left)} on this "
        f"machine; give at least {duration(need)}, or lower data.eval_batches"
    )
