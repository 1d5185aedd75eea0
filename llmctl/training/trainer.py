"""The training loop: one for every task, a generator of records.

It prints and writes nothing but checkpoints: stages record what it yields and commands draw it.
Batch N and every random draw in step N are functions of (seed, N), so a run that goes on from a
checkpoint does exactly what an uninterrupted one does. What a step does is told in ``step``.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.profiler import record_function

from llmctl.errors import DivergedError, InputError
from llmctl.reporting.reporter import Record
from llmctl.training.batches import Objective
from llmctl.training.checkpoints import (
    Checkpoint,
    CheckpointStore,
    optimiser_tensors,
    restore_optimiser,
)
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import SINGLE_PROCESS, World, shard_like
from llmctl.training.measured import Speed, accumulate, means, summed_over
from llmctl.training.optim.schedules import lr_multiplier
from llmctl.training.planning.memory import out_of_memory, peak_bytes
from llmctl.training.profile import StepProfiler
from llmctl.training.progress import Progress, progress_of, state_of
from llmctl.training.step import Batches, Stepper
from llmctl.training.validation import ValidationInterrupted

MAX_NONFINITE_STEPS = 5
"""Steps in a row without a finite gradient before training gives up."""
NOT_FINITE = "the loss or its gradient was not finite"
LEAST_WARM_UP = 0.01
"""Share of what is left of a training that is gone on with, for the learning rate to rise again."""
FILLED = "filled"
"""In the sums since the last logged step: tokens, and slots for them."""


class Trainer(Stepper):
    """Trains a model, by its loss, on batches."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        config: TrainingConfig,
        *,
        total_steps: int | None,
        seed: int,
        device: torch.device,
        precision: str,
        store: CheckpointStore,
        validate: Callable[[], dict[str, float]] | None = None,
        eval_every: int = 0,
        patience: int = 0,
        steps_together: int = 1,
        keep_best: bool = False,
        rate_scale: dict[str, float] | None = None,
        compiled: bool = False,
        matrix_flops: float | None = None,
        world: World = SINGLE_PROCESS,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """total_steps: None if only the time limits the run. patience: validations after the
        warm-up that better neither the criterion nor the loss before an early stop; 0: never.
        steps_together: steps between which it neither stops nor saves.
        keep_best: keep the weights that were the best at a validation. compiled: make kernels for
        the model's body. matrix_flops: a second, of this process's device, to tell how much of it
        is used."""
        super().__init__(
            objective, batches, config, seed=seed, device=device, precision=precision,
            rate_scale=rate_scale, compiled=compiled, world=world,
        )  # fmt: skip
        self.total_steps, self._store = total_steps, store
        self._evaluate, self._eval_every = validate, eval_every
        self._patience, self._keep_best = patience, keep_best
        self._together = steps_together
        self._matrix_flops, self._should_stop = matrix_flops, should_stop
        if self._shared:
            store.enable_sharded()
        self.profiler: StepProfiler | None = None
        """Traces some steps, where it is set."""
        self._skipped = 0
        """Steps in a row without a finite gradient, up to now."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises InputError for one that is of something else."""
        kept = checkpoint.state.get("precision", self._precision)
        if kept != self._precision:  # the manifest's, which nothing else vouches for yet
            raise InputError(
                f"{checkpoint.folder} was made in {kept}, and the run's manifest says "
                f"{self._precision}; put the manifest back as it was, or begin again with --force"
            )
        weights, moments = checkpoint.tensors(self.model.state_dict())
        try:
            self.progress = progress_of(checkpoint.state)
            self.model.load_state_dict(weights)
            restore_optimiser(self.model, self.optimiser, moments)
        except (ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"{checkpoint.folder} is no checkpoint of this training ({reason}); remove it, or "
                "start again with --force"
            ) from None

    def start_from(self, weights: Mapping[str, Tensor], progress: Progress) -> None:
        """Go on from a finished model's weights, with an optimiser that has seen nothing."""
        own = self.model.state_dict()
        placed = {name: shard_like(value, own[name]) for name, value in weights.items()}
        self.model.load_state_dict(placed)
        self.progress = progress
        if self._keep_best and progress.best_step and self.world.is_main:
            self._store.save_best(progress.best_step, weights)

    def extend(self, *, warm_up: bool) -> None:
        """Go on where a shorter training of this ended. warm_up: the learning rate rises again."""
        progress = self.progress
        progress.ended, progress.improved_step = False, progress.step
        progress.warmed_up_again = self.progress_fraction() if warm_up else None

    def _lr_multiplier(self) -> float:
        """The factor of the learning rate for the next step."""
        config, rewarmed_at = self.config, self.progress.warmed_up_again
        # A step that is all there is has the peak: the warm-up begins with 0.
        done = config.warmup if self.total_steps == 1 else self.progress_fraction()
        multiplier = lr_multiplier(done, config.warmup, config.schedule, config.decay)
        if rewarmed_at is None:
            return multiplier
        rising = max(config.warmup, LEAST_WARM_UP) * (1 - rewarmed_at)
        return multiplier * min(1.0, (done - rewarmed_at) / rising)

    def run(self) -> Iterator[Record]:
        """Train to the end, or until ``should_stop``; yields what happens.

        Raises DivergedError after several steps in a row without a finite gradient, and where the
        validation loss or the last gradient is not finite; nothing is saved then. Raises
        ResourceError where memory runs out, naming the largest part of a batch that fits.
        """
        progress = self.progress
        start_time = time.perf_counter() - progress.elapsed
        self._speed, self._saved = Speed(), (progress.step, progress.elapsed)
        self.model.train()
        if progress.validation_due:
            yield from self._validate_if_due()
            if progress.validation_due:
                yield Record("stopped", progress.step)
                return
            progress.ended = progress.ended or self._out_of_patience()
        self._flops_per_slot = self._prepare(count_flops=self._matrix_flops is not None)
        with ThreadPoolExecutor(1) as background, self.profiler or contextlib.nullcontext():
            upcoming = background.submit(self._local_micro_batches, progress.step)
            while not self._done():
                # 1. A batch; the next is made meanwhile.
                begin = time.perf_counter()
                with record_function("batch"):
                    batch = upcoming.result()
                upcoming = background.submit(self._local_micro_batches, progress.step + 1)
                # 2. Forward, backward, update.
                multiplier = self._lr_multiplier()
                sums, norm, taken = self._step(batch, multiplier)
                if self.profiler is not None:
                    self.profiler.step()
                now = time.perf_counter()
                self._speed.add(batch.real_tokens, batch.slots, now - begin)
                # 3. The same sums, clock and wish to stop on all processes.
                own = float(self._should_stop()), now - start_time if self.world.is_main else 0.0
                sums, (stops, progress.elapsed) = summed_over(self.world, sums, *own)
                progress.step += 1
                progress.tokens += batch.real_tokens
                last = self._done()
                # 4. What is told of the step.
                filled = [float(batch.real_tokens), float(batch.slots)]
                if taken:  # what the record says of the batches is kept over a stop, too
                    accumulate(progress.window, {**sums, FILLED: filled})
                yield from self._told(norm, taken, multiplier, last)
                # 5. A validation, which may end the training.
                if self._evaluate and (last or self._is_eval_step()):
                    progress.validation_due = True
                    yield from self._validate_if_due()
                    last = last or self._out_of_patience()
                progress.ended = last
                # 6. A checkpoint. One process alone needs not wait for the next step to stop.
                stop = stops > 0 or (self.world.size == 1 and self._should_stop())
                stop = stop and progress.step % self._together == 0
                yield from self._save_if_due(stop, last)
                if last and not progress.validation_due:
                    break
                if stop:
                    self._store.wait()
                    yield Record("stopped", progress.step)
                    return
        yield Record("finished", progress.step)

    def _told(self, norm: float, taken: bool, multiplier: float, last: bool) -> Iterator[Record]:
        """Records of a step that was left out, and of those since the last logged one. Raises
        DivergedError if there were too many without a finite gradient."""
        progress, config = self.progress, self.config
        if taken:
            self._skipped = 0
            accumulate(progress.window, {"gradient_norm": [norm, 1.0]})
        else:
            self._skipped += not math.isfinite(norm)
            too_many = self._skipped >= MAX_NONFINITE_STEPS or last
            if too_many and not math.isfinite(norm):
                raise DivergedError(
                    f"step {progress.step}: {NOT_FINITE} for {self._skipped} steps in a row; "
                    "train again with --force and a lower training.learning_rate"
                )
            yield Record("skipped", progress.step, {"gradient_norm": norm})
        if progress.window and (progress.step % config.log_every == 0 or last):
            window, progress.window = means(progress.window), {}
            padding = 1.0 - window.pop(FILLED, self._speed.filled)
            peak_flops = (self._matrix_flops or math.nan) * self.world.size
            figures = {
                **window,
                "learning_rate": config.learning_rate * multiplier,
                "tokens": progress.tokens,
                **self._speed.figures(self._flops_per_slot, peak_flops),
                "padding": padding,
                "memory_bytes": float(peak_bytes()),
                "elapsed": progress.elapsed,
            }
            self._speed = Speed()
            yield Record("train", progress.step, figures)

    def _is_eval_step(self) -> bool:
        return bool(self._eval_every) and self.progress.step % self._eval_every == 0

    def _save_if_due(self, stop: bool, last: bool) -> Iterator[Record]:
        """Write a checkpoint at a stop, at the end and now and then."""
        progress, every = self.progress, self.config.checkpoint_every
        saved_step, saved_at = self._saved
        due = (
            progress.step % every == 0
            if every
            else progress.elapsed - saved_at >= self.config.checkpoint_seconds
        ) and progress.step % self._together == 0
        # What led to a gradient that is not finite must not replace a good checkpoint.
        if not (stop or due or last) or saved_step == progress.step or self._skipped:
            return
        if self._shared or self.world.is_main:
            self._store.save(
                progress.step,
                self.model.state_dict(),
                optimiser_tensors(self.model, self.optimiser),
                {**state_of(progress), "precision": self._precision},
                wait=stop or last,
            )
        self._saved = progress.step, progress.elapsed
        yield Record("checkpoint", progress.step)

    def progress_fraction(self) -> float:
        """How much of the training is behind us, by steps or by time, whichever is more."""
        shares = [0.0]
        if self.total_steps:
            shares.append(self.progress.step / self.total_steps)
        if self.config.time_limit:
            shares.append(self.progress.elapsed / self.config.time_limit)
        return min(1.0, max(shares))

    def _done(self) -> bool:
        return self.progress.ended or self.progress_fraction() >= 1.0

    def _validate_if_due(self) -> Iterator[Record]:
        """Validate. Stopped in between, it stays due for what goes on from the checkpoint."""
        if self._evaluate is None:
            self.progress.validation_due = False
            return
        try:
            record = self._validate(self._evaluate)
        except ValidationInterrupted:
            self.model.train()
            return
        self.progress.validation_due = False
        yield record

    def _validate(self, evaluate: Callable[[], dict[str, float]]) -> Record:
        values = evaluate()
        self.model.train()
        criterion = values.pop("criterion", values["loss"])
        progress = self.progress
        if not math.isfinite(values["loss"]):
            raise DivergedError(
                f"step {progress.step}: the validation loss is not finite; the last checkpoint is "
                "from before, lower training.learning_rate"
            )
        if self.progress_fraction() <= self.config.warmup:
            progress.improved_step = progress.step  # too early to tell
        if values["loss"] < progress.lowest_loss:
            progress.lowest_loss, progress.improved_step = values["loss"], progress.step
        if criterion < progress.best:
            progress.best, progress.best_step = criterion, progress.step
            progress.improved_step = progress.step
            if self._keep_best:
                weights = self._weights()
                if self.world.is_main:
                    self._store.save_best(progress.step, weights)
        return Record("validation", progress.step, values)

    def _out_of_patience(self) -> bool:
        if not self._patience or not self._eval_every or self.progress.validation_due:
            return False
        behind = self.progress.step - self.progress.improved_step
        return behind >= self._patience * self._eval_every
