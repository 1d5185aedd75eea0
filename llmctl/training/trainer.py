"""The training loop: one for every objective, a generator of records.

It prints and writes nothing but checkpoints: stages record what it yields and commands draw it.
Batch N and every random draw in step N are functions of (seed, N), so a run that goes on from a
checkpoint does exactly what an uninterrupted one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import nn

from llmctl.data.keyed import key_of
from llmctl.errors import DivergedError
from llmctl.objectives.base import LossParts, Objective, Ratio, TensorBatch
from llmctl.training.checkpoints import Checkpoint, CheckpointStore, restore_optimiser
from llmctl.training.config import TrainingConfig
from llmctl.training.optimiser import build_optimiser, set_learning_rate
from llmctl.training.precision import autocast
from llmctl.training.schedules import share_of_peak

PATIENCE_NOT_FINITE = 5
"""Steps in a row without a finite gradient before training gives up."""
NOT_FINITE = "the loss or its gradient was not finite"
USUAL_NORM_DECAY = 0.98
"""Of the running mean of gradient norms, which a spike is told by: about the last fifty steps."""
STEPS_BEFORE_SPIKES = 50
"""Steps before a spike can be told: at first every norm is unusual."""

Batches = Callable[[int], TensorBatch]


@dataclass(frozen=True)
class Record:
    """Something that happened at a step: a logged step, a validation, a checkpoint, the end."""

    kind: str
    """``train``, ``validation``, ``checkpoint``, ``skipped``, ``stopped`` or ``finished``."""
    step: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """The part of training's state that is numbers; kept in checkpoints."""

    step: int = 0
    elapsed: float = 0.0
    """Seconds of wall clock, over all sessions."""
    tokens: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)
    """Sums and counts since the last logged step."""
    best: float = math.inf
    """Lowest validation criterion so far (the loss, or what ``validate`` calls ``criterion``) …"""
    best_step: int = 0
    """… and the step it was measured at."""
    lowest_loss: float = math.inf
    """Of the validations so far."""
    improved_step: int = 0
    """Step of the last validation with a new lowest criterion or loss, for early stopping."""
    usual_norm: float = 0.0
    """Running mean of the gradients' norms before clipping, to tell a spike by."""
    look_due: bool = False
    """Whether the validation at this step is still to come, as a stop cut it short."""
    ended: bool = False
    """Whether training came to its end, which may be before its last step."""


class LookStopped(Exception):
    """A validation was cut short by a stop."""


class _Speed:
    """Tokens and seconds of some steps; validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._tokens, self._slots, self._seconds = 0, 0, 0.0

    def add(self, batch: TensorBatch, seconds: float) -> None:
        self._tokens += batch.real_tokens
        self._slots += batch.slots
        self._seconds += seconds

    def figures(self) -> dict[str, float]:
        return {
            "tokens_per_second": self._tokens / self._seconds,
            "padding": 1.0 - self._tokens / self._slots,
        }


class Trainer:
    """Trains an objective on batches."""

    def __init__(
        self,
        model: nn.Module,
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
        on_best: Callable[[int], None] | None = None,
        rate_scale: dict[str, float] | None = None,
        compiled: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """total_steps: None if only the time limits the run. patience: validations after the
        warm-up that better neither the criterion nor the loss before an early stop; 0: never.
        on_best: called at each new best. compiled: make kernels for the model's body."""
        self.model, self._batches, self.config = model, batches, config
        self.total_steps, self._seed = total_steps, seed
        self._device, self._precision, self._store = device, precision, store
        self._validate, self._eval_every = validate, eval_every
        self._patience, self._on_best = patience, on_best
        self._should_stop = should_stop
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = build_optimiser(
            model.named_parameters(),
            config,
            rate_scale=rate_scale,
            product_type=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
        if compiled:
            body: nn.Module = model.body  # type: ignore[assignment]
            body.compile(dynamic=False)
        self.progress = Progress()
        self._skipped = 0
        """Steps in a row without a finite gradient, up to now."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(checkpoint.model)
        restore_optimiser(self.model, self.optimiser, checkpoint.optimiser)
        known = Progress.__dataclass_fields__
        self.progress = Progress(**{k: v for k, v in checkpoint.state.items() if k in known})

    def run(self) -> Iterator[Record]:
        """Train to the end, or until ``should_stop``; yields what happens.

        Raises DivergedError after several steps in a row without a finite gradient, and where the
        validation loss or the last gradient is not finite; nothing is saved then.
        """
        progress, config = self.progress, self.config
        begun = time.perf_counter() - progress.elapsed
        saved_at, saved_step = time.perf_counter(), progress.step
        speed = _Speed()
        self.model.train()
        if progress.look_due:
            yield from self._look_if_due()
            if progress.look_due:
                yield Record("stopped", progress.step)
                return
            progress.ended = progress.ended or self._stale()
        with ThreadPoolExecutor(1) as background:
            upcoming = background.submit(self._batches, progress.step)
            while not self._done():
                started = time.perf_counter()
                batch = upcoming.result().to(self._device)
                upcoming = background.submit(self._batches, progress.step + 1)
                share = share_of_peak(
                    self.share_done(), config.warmup, config.schedule, config.decay
                )
                parts, norm, taken = self._step(batch, share)
                speed.add(batch, time.perf_counter() - started)
                progress.step += 1
                progress.elapsed = time.perf_counter() - begun
                progress.tokens += batch.real_tokens
                last = self._done()
                if taken:
                    self._skipped = 0
                    self._accumulate(parts, norm)
                elif math.isfinite(norm):
                    yield Record("skipped", progress.step, {"gradient_norm": norm})
                else:
                    yield self._skip(norm, last)
                if progress.window and (progress.step % config.log_every == 0 or last):
                    figures = {
                        **self._drain(),
                        "learning_rate": config.learning_rate * share,
                        "tokens": progress.tokens,
                        **speed.figures(),
                        "elapsed": progress.elapsed,
                    }
                    speed = _Speed()
                    yield Record("train", progress.step, figures)
                if self._validate and (
                    last or (self._eval_every and progress.step % self._eval_every == 0)
                ):
                    progress.look_due = True
                    yield from self._look_if_due()
                    last = last or self._stale()
                progress.ended = last
                stop = self._should_stop()
                due = (
                    progress.step % config.checkpoint_every == 0
                    if config.checkpoint_every
                    else time.perf_counter() - saved_at >= config.checkpoint_seconds
                )
                # What led to a gradient that is not finite must not replace a good checkpoint.
                if (stop or due or last) and saved_step != progress.step and not self._skipped:
                    state = dict(vars(progress))
                    self._store.save(
                        progress.step, self.model, self.optimiser, state, wait=stop or last
                    )
                    saved_at, saved_step = time.perf_counter(), progress.step
                    yield Record("checkpoint", progress.step)
                if last and not progress.look_due:
                    break
                if stop:
                    self._store.wait()
                    yield Record("stopped", progress.step)
                    return
        yield Record("finished", progress.step)

    def _skip(self, norm: float, last: bool) -> Record:
        """Note a step without a finite gradient. Raises DivergedError if there were too many."""
        self._skipped += 1
        if self._skipped >= PATIENCE_NOT_FINITE or last:
            raise DivergedError(
                f"step {self.progress.step}: {NOT_FINITE} for {self._skipped} steps in a row; "
                "the last checkpoint is from before, lower training.learning_rate"
            )
        return Record("skipped", self.progress.step, {"gradient_norm": norm})

    def _step(self, batch: TensorBatch, share: float) -> tuple[LossParts, float, bool]:
        """Forward, backward, update; returns the gradient's norm and whether the update was made:
        not if the gradient is not finite, nor if it is a spike."""
        # Dropout draws from the global generator: tie it to the step, so that there is no state.
        torch.manual_seed(key_of(self._seed, "step", self.progress.step))
        set_learning_rate(self.optimiser, self.config, share)
        objective: Objective = self.model  # type: ignore[assignment]
        with autocast(self._device, self._precision):
            parts = objective.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        parts.total.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm, foreach=True)
        value = float(norm) if math.isfinite(float(parts.total.detach())) else math.nan
        taken = math.isfinite(value) and not self._is_spike(value)
        if taken:
            self.optimiser.step()
        return parts, value, taken

    def _is_spike(self, norm: float) -> bool:
        progress, limit = self.progress, self.config.skip_spikes
        if not limit:
            return False
        most = limit * progress.usual_norm if progress.step else norm
        # A spike counts as little more than usual; if it is the new level, it will be usual soon.
        weight = max(1 - USUAL_NORM_DECAY, 1 / (progress.step + 1))
        progress.usual_norm += weight * (min(norm, most) - progress.usual_norm)
        return norm >= most and progress.step >= STEPS_BEFORE_SPIKES

    def share_done(self) -> float:
        """How much of the training is behind us, by steps or by time, whichever is more."""
        shares = [0.0]
        if self.total_steps:
            shares.append(self.progress.step / self.total_steps)
        if self.config.time_limit:
            shares.append(self.progress.elapsed / self.config.time_limit)
        return min(1.0, max(shares))

    def _done(self) -> bool:
        return self.progress.ended or self.share_done() >= 1.0

    def _accumulate(self, parts: LossParts, norm: float) -> None:
        sums = self.progress.window
        ratios = {**parts.losses, **parts.metrics, "gradient_norm": Ratio(torch.tensor(norm), 1)}
        for name, ratio in ratios.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(ratio.total.detach())
            entry[1] += ratio.count
        entry = sums.setdefault("loss", [0.0, 0.0])
        entry[0] += float(parts.total.detach())
        entry[1] += 1

    def _drain(self) -> dict[str, float]:
        means = {name: s / n for name, (s, n) in self.progress.window.items() if n}
        self.progress.window = {}
        return means

    def _look_if_due(self) -> Iterator[Record]:
        """Validate. Stopped in between, it stays due for what goes on from the checkpoint."""
        if self._validate is None:
            self.progress.look_due = False
            return
        try:
            record = self._look(self._validate)
        except LookStopped:
            self.model.train()
            return
        self.progress.look_due = False
        yield record

    def _look(self, validate: Callable[[], dict[str, float]]) -> Record:
        values = validate()
        self.model.train()
        criterion = values.pop("criterion", values["loss"])
        progress = self.progress
        if not math.isfinite(values["loss"]):
            raise DivergedError(
                f"step {progress.step}: the validation loss is not finite; the last checkpoint is "
                "from before, lower training.learning_rate"
            )
        if self.share_done() <= self.config.warmup:
            progress.improved_step = progress.step  # too early to tell
        if values["loss"] < progress.lowest_loss:
            progress.lowest_loss, progress.improved_step = values["loss"], progress.step
        if criterion < progress.best:
            progress.best, progress.best_step = criterion, progress.step
            progress.improved_step = progress.step
            if self._on_best:
                self._on_best(progress.step)
        return Record("validation", progress.step, values)

    def _stale(self) -> bool:
        if not self._patience or not self._eval_every or self.progress.look_due:
            return False
        behind = self.progress.step - self.progress.improved_step
        return behind >= self._patience * self._eval_every


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Callable[[int], TensorBatch],
    count: int,
    *,
    device: torch.device,
    precision: str = "fp32",
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Losses and metrics over some batches, each a sum over all divided by its count.

    ``loss`` is the sum of the objective's losses. Raises LookStopped where ``should_stop`` says so
    before all batches are done.
    """
    objective: Objective = model  # type: ignore[assignment]
    model.eval()
    # Kernels for a few batches of other shapes would take longer to make than they save.
    with torch.compiler.set_stance("force_eager"):
        return _evaluate(objective, batches, count, device, precision, should_stop)


def _evaluate(
    objective: Objective,
    batches: Callable[[int], TensorBatch],
    count: int,
    device: torch.device,
    precision: str,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    losses: set[str] = set()
    for number in range(count):
        if should_stop():
            raise LookStopped
        with autocast(device, precision):
            parts = objective.loss(batches(number).to(device))
        losses.update(parts.losses)
        for name, ratio in {**parts.losses, **parts.metrics}.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(ratio.total)
            entry[1] += ratio.count
    means = {name: s / n for name, (s, n) in sums.items() if n}
    return {"loss": sum(means[name] for name in losses if name in means), **means}
