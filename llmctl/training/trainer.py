"""The training loop: one for every task, a generator of records.

It prints and writes nothing but checkpoints: stages record what it yields and commands draw it.
Batch N and every random draw in step N are functions of (seed, N), so a run that goes on from a
checkpoint does exactly what an uninterrupted one does.

A batch is divided by rows among the processes, and by each into parts that fit its memory. Every
part's losses are divided by the count of the whole batch, so the sum of the parts' gradients is
the batch's, however it was divided.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from llmctl.data.keyed import key_of
from llmctl.errors import DivergedError, InputError, ResourceError
from llmctl.models.heads.cross_entropy import compiled_cross_entropy
from llmctl.models.layers.kernels import use_kernels_of
from llmctl.training.batches import Objective, TensorBatch
from llmctl.training.checkpoints import (
    Checkpoint,
    CheckpointStore,
    optimiser_tensors,
    restore_optimiser,
)
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import (
    ALONE,
    World,
    distribute,
    recompute_activations,
    shared_like,
    whole,
)
from llmctl.training.optim.float8 import use_float8
from llmctl.training.optim.optimiser import build_optimiser, set_learning_rate
from llmctl.training.optim.schedules import share_of_peak
from llmctl.training.planning.memory import largest_part, out_of_memory, peak_bytes
from llmctl.training.precision import autocast
from llmctl.training.profile import StepProfiler
from llmctl.training.progress import Progress, progress_of
from llmctl.training.validation import LookStopped, batched_pairs

PATIENCE_NOT_FINITE = 5
"""Steps in a row without a finite gradient before training gives up."""
NOT_FINITE = "the loss or its gradient was not finite"
LEAST_WARM_UP = 0.01
"""Share of what is left of a training that is gone on with, for the learning rate to rise again."""
USUAL_NORM_DECAY = 0.98
"""Of the running mean of gradient norms, which a spike is told by: about the last fifty steps."""
FILLED = "filled"
"""In the sums since the last logged step: tokens, and slots for them."""
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


@dataclass(frozen=True)
class _Work:
    """A batch as one process takes it."""

    parts: list[tuple[int, TensorBatch]]
    """Each with the number of its first row in the batch."""
    weight: float
    """0 where there were too few rows for all: such a process takes part with one that counts
    nothing."""
    counts: dict[str, int]
    """Of the whole batch: what its losses are divided by."""
    real_tokens: int
    slots: int


class _Speed:
    """Tokens and seconds of some steps; validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._tokens, self._slots, self._seconds = 0, 0, 0.0

    def add(self, work: _Work, seconds: float) -> None:
        self._tokens += work.real_tokens
        self._slots += work.slots
        self._seconds += seconds

    @property
    def filled(self) -> float:
        """The share of the slots that tokens fill."""
        return self._tokens / self._slots

    def figures(self, flops_per_slot: float | None, peak_flops: float) -> dict[str, float]:
        figures = {"tokens_per_second": self._tokens / self._seconds}
        if flops_per_slot is not None:
            done = flops_per_slot * self._slots / self._seconds
            figures["utilisation"] = done / peak_flops
        return figures


class Trainer:
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
        keep_best: bool = False,
        rate_scale: dict[str, float] | None = None,
        compiled: bool = False,
        matrix_flops: float | None = None,
        world: World = ALONE,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """total_steps: None if only the time limits the run. patience: validations after the
        warm-up that better neither the criterion nor the loss before an early stop; 0: never.
        keep_best: keep the weights that were the best at a validation. compiled: make kernels for
        the model's body. matrix_flops: a second, of this process's device, to tell how much of it
        is used."""
        model = objective.model
        self.model, self._batches, self.config = model, batches, config
        self.total_steps, self._seed = total_steps, seed
        self._device, self._precision, self._store = device, precision, store
        self._validate, self._eval_every = validate, eval_every
        self._patience, self._keep_best = patience, keep_best
        self._should_stop = should_stop
        self._compiled, self._matrix_flops, self.world = compiled, matrix_flops, world
        use_kernels_of(device)
        if precision == "fp8":
            use_float8(model)
        if config.activation_checkpointing:
            recompute_activations(model)
        self._shared = config.parallel != "ddp"
        # What was trained in shares ends as one model.
        self._plain = copy.deepcopy(model) if self._shared and world.is_main else None
        self.objective = objective
        self._loss = distribute(objective, config, world, device)
        if self._shared:
            store.write_together()
        self._micro_batch = config.micro_batch if isinstance(config.micro_batch, int) else 0
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = build_optimiser(
            model,
            config,
            rate_scale=rate_scale,
            product_type=torch.float32 if precision == "fp32" else torch.bfloat16,
        )
        if compiled:
            body: nn.Module = model.body  # type: ignore[assignment]
            body.compile(dynamic=False)
        self.progress = Progress()
        self.profiler: StepProfiler | None = None
        """Traces some steps, where it is set."""
        self._skipped = 0
        """Steps in a row without a finite gradient, up to now."""

    def close(self) -> None:
        """Let go of what ties this process to the others; they can't be reached afterwards.

        A wrapper that outlived its group of processes would wait for ever for its threads.
        """
        self._loss = self.objective
        gc.collect()

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
        placed = {name: shared_like(value, own[name]) for name, value in weights.items()}
        self.model.load_state_dict(placed)
        self.progress = progress
        if self._keep_best and progress.best_step and self.world.is_main:
            self._store.save_best(progress.best_step, weights)

    def extend(self, *, warm_up: bool) -> None:
        """Go on where a shorter training of this ended. warm_up: the learning rate rises again."""
        progress = self.progress
        progress.ended, progress.improved_step = False, progress.step
        progress.warmed_up_again = self.share_done() if warm_up else None

    def _share_of_peak(self) -> float:
        """Of the learning rate, for the next step."""
        config, begun = self.config, self.progress.warmed_up_again
        # A step that is all there is has the peak: the warm-up begins with 0.
        done = config.warmup if self.total_steps == 1 else self.share_done()
        share = share_of_peak(done, config.warmup, config.schedule, config.decay)
        if begun is None:
            return share
        return share * min(1.0, (done - begun) / (max(config.warmup, LEAST_WARM_UP) * (1 - begun)))

    def run(self) -> Iterator[Record]:
        """Train to the end, or until ``should_stop``; yields what happens.

        Raises DivergedError after several steps in a row without a finite gradient, and where the
        validation loss or the last gradient is not finite; nothing is saved then. Raises
        ResourceError where memory runs out, naming the largest part of a batch that fits.
        """
        progress, config = self.progress, self.config
        begun = time.perf_counter() - progress.elapsed
        saved_at, saved_step = progress.elapsed, progress.step
        speed = _Speed()
        self.model.train()
        if progress.look_due:
            yield from self._look_if_due()
            if progress.look_due:
                yield Record("stopped", progress.step)
                return
            progress.ended = progress.ended or self._stale()
        flops_per_slot = self._prepare()
        with ThreadPoolExecutor(1) as background, self._profiled():
            upcoming = background.submit(self._work, progress.step)
            while not self._done():
                started = time.perf_counter()
                with record_function("batch"):
                    work = upcoming.result()
                upcoming = background.submit(self._work, progress.step + 1)
                share = self._share_of_peak()
                sums, norm, taken = self._step(work, share)
                if self.profiler is not None:
                    self.profiler.step()
                now = time.perf_counter()
                speed.add(work, now - started)
                progress.step += 1
                stop, progress.elapsed, sums = self._agree(now - begun, sums)
                progress.tokens += work.real_tokens
                last = self._done()
                if taken:
                    self._skipped = 0
                    # What the record says of the batches is kept over a stop, too.
                    filled = [float(work.real_tokens), float(work.slots)]
                    self._accumulate({**sums, FILLED: filled}, norm)
                elif math.isfinite(norm):
                    yield Record("skipped", progress.step, {"gradient_norm": norm})
                else:
                    yield self._skip(norm, last)
                if progress.window and (progress.step % config.log_every == 0 or last):
                    peak = (self._matrix_flops or math.nan) * self.world.size
                    means = self._drain()
                    padding = 1.0 - means.pop(FILLED, speed.filled)
                    figures = {
                        **means,
                        "learning_rate": config.learning_rate * share,
                        "tokens": progress.tokens,
                        **speed.figures(flops_per_slot, peak),
                        "padding": padding,
                        "memory_bytes": float(peak_bytes()),
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
                # One process alone needs not wait for the next step to heed a signal.
                stop = stop or (self.world.size == 1 and self._should_stop())
                due = (
                    progress.step % config.checkpoint_every == 0
                    if config.checkpoint_every
                    else progress.elapsed - saved_at >= config.checkpoint_seconds
                )
                # What led to a gradient that is not finite must not replace a good checkpoint.
                if (stop or due or last) and saved_step != progress.step and not self._skipped:
                    self._save(wait=stop or last)
                    saved_at, saved_step = progress.elapsed, progress.step
                    yield Record("checkpoint", progress.step)
                if last and not progress.look_due:
                    break
                if stop:
                    self._store.wait()
                    yield Record("stopped", progress.step)
                    return
        yield Record("finished", progress.step)

    @contextlib.contextmanager
    def _profiled(self) -> Iterator[None]:
        if self.profiler is None:
            yield
            return
        self.profiler.start()
        try:
            yield
        finally:
            self.profiler.stop()

    def whole_model(self) -> nn.Module | None:
        """The model as it is, in one piece, for the main process; the others get None. All must
        call it."""
        weights = self._weights()
        if not self.world.is_main:
            return None
        if self._plain is None:
            return self.model
        self._plain.load_state_dict(weights)
        return self._plain

    def _weights(self) -> dict[str, Tensor]:
        """Whole, for the main process; the others get none. All must call it."""
        weights = {}
        for name, value in self.model.state_dict().items():
            one = whole(value)
            if self.world.is_main:
                # Together they may be too large for an accelerator.
                weights[name] = one.cpu() if one is not value else one
        return weights

    def _save(self, wait: bool) -> None:
        if self._shared or self.world.is_main:
            self._store.save(
                self.progress.step,
                self.model.state_dict(),
                optimiser_tensors(self.model, self.optimiser),
                {**vars(self.progress), "precision": self._precision},
                wait=wait,
            )

    def _prepare(self) -> float | None:
        """Before the first step: settle the micro-batch, and count the operations of a slot."""
        if self.config.micro_batch != "auto" and self._matrix_flops is None:
            return None
        batch = self._batches(self.progress.step)
        if self.config.micro_batch == "auto":
            own = max(1, -(-len(batch) // self.world.size))
            fits = largest_part(
                lambda rows: self._trial(batch, rows), own, self._device, self.model
            )
            self._micro_batch = self.world.least(fits)
            if not self._micro_batch:
                raise ResourceError(
                    "out of memory: not even one row of a batch fits; take a smaller model, "
                    "shorter rows or training.activation_checkpointing=true"
                )
        if self._matrix_flops is None:
            return None
        part = batch.rows(0, 1)
        counter = FlopCounterMode(display=False)
        with counter:
            self._trial(batch, 1)
        return counter.get_total_flops() / part.slots

    def _trial(self, batch: TensorBatch, rows: int) -> None:
        """A forward and a backward pass over a batch's first rows, with nothing kept."""
        part = batch.rows(0, rows).to(self._device)
        # Kernels for this shape would be made for nothing.
        with torch.compiler.set_stance("force_eager"), autocast(self._device, self._precision):
            total = self.objective(part).total
        torch.autograd.grad(total, self._parameters, allow_unused=True)

    def _work(self, step: int) -> _Work:
        """This process's part of a batch; made in the background."""
        batch = self._batches(step)
        rows, world = len(batch), self.world
        begin, stop = (rows * n // world.size for n in (world.rank, world.rank + 1))
        weight = 1.0
        if begin == stop:  # too few rows for all
            begin, stop, weight = 0, 1, 0.0
        number = -(-(stop - begin) // (self._micro_batch or stop - begin))
        edges = [begin + (stop - begin) * n // number for n in range(number + 1)]
        parts = [
            (first, batch if (first, end) == (0, rows) else batch.rows(first, end))
            for first, end in pairwise(edges)
        ]
        if self._device.type == "cuda":
            parts = [(first, part.pin_memory()) for first, part in parts]
        return _Work(parts, weight, batch.counts, batch.real_tokens, batch.slots)

    def _agree(
        self, elapsed: float, sums: dict[str, list[float]]
    ) -> tuple[bool, float, dict[str, list[float]]]:
        """Whether to stop, the main process's clock, and sums over all processes."""
        stop = self._should_stop()
        if self.world.size == 1:
            return stop, elapsed, sums
        own = [float(stop), elapsed if self.world.is_main else 0.0]
        stops, elapsed, *flat = self.world.total([*own, *chain.from_iterable(sums.values())])
        return stops > 0, elapsed, dict(zip(sums, map(list, batched_pairs(flat)), strict=True))

    def _skip(self, norm: float, last: bool) -> Record:
        """Note a step without a finite gradient. Raises DivergedError if there were too many."""
        self._skipped += 1
        if self._skipped >= PATIENCE_NOT_FINITE or last:
            raise DivergedError(
                f"step {self.progress.step}: {NOT_FINITE} for {self._skipped} steps in a row; "
                "train again with --force and a lower training.learning_rate"
            )
        return Record("skipped", self.progress.step, {"gradient_norm": norm})

    def _step(self, work: _Work, share: float) -> tuple[dict[str, list[float]], float, bool]:
        """Forward, backward, update; returns the sums and counts of what was measured, the
        gradient's norm and whether the update was made: not if the gradient is not finite, nor if
        it is a spike."""
        set_learning_rate(self.optimiser, self.config, share)
        self.optimiser.zero_grad(set_to_none=True)
        try:
            measured = self._gradient(work)
        except RuntimeError as error:
            if out_of_memory(error):
                raise self._no_memory(work) from error
            raise
        with record_function("clip"):
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm, foreach=True)
            norm = whole(norm)
        # The one place where the processor waits for an accelerator.
        values = torch.stack([norm.float(), *(total for total, _ in measured.values())]).tolist()
        names = list(measured)
        if not math.isfinite(values[1 + names.index("loss")]):
            values[0] = math.nan
        taken = math.isfinite(values[0]) and not self._is_spike(values[0])
        if taken:
            with record_function("update"):
                self.optimiser.step()
        counts = (float(count) for _, count in measured.values())
        sums = dict(zip(measured, map(list, zip(values[1:], counts, strict=True)), strict=True))
        return sums, values[0], taken

    def _gradient(self, work: _Work) -> dict[str, tuple[Tensor, int]]:
        """Add up the gradient of this process's part of a batch; returns sums and counts."""
        measured: dict[str, tuple[Tensor, int]] = {}
        for number, (first, part) in enumerate(work.parts, 1):
            # Dropout draws from the global generator: tie it to the place, so that there is no
            # state.
            torch.manual_seed(key_of(self._seed, "step", self.progress.step, first))
            moved = part.to(self._device)
            with self._summing(number == len(work.parts)):
                with (
                    record_function("forward"),
                    autocast(self._device, self._precision),
                    compiled_cross_entropy(self._compiled),
                ):
                    losses = self._loss(moved)
                total = torch.stack(
                    [
                        ratio.total.float() / max(work.counts[name], 1)
                        for name, ratio in losses.losses.items()
                    ]
                ).sum()
                # A wrapper takes the mean over the processes.
                with record_function("backward"):
                    (total * (work.weight * self.world.size)).backward()
            figures = {
                name: (ratio.total.detach().float() * work.weight, int(ratio.count * work.weight))
                for name, ratio in {**losses.losses, **losses.metrics}.items()
            }
            figures["loss"] = (total.detach() * work.weight, 0)
            for name, (value, count) in figures.items():
                before, counted = measured.get(name, (0.0, 0))
                measured[name] = (before + value, counted + count)
        measured["loss"] = (measured["loss"][0], int(self.world.is_main))
        return measured

    def _summing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes add up their gradients once for a batch, after its last part."""
        if isinstance(self._loss, nn.parallel.DistributedDataParallel) and not last:
            return self._loss.no_sync()
        if self.world.size > 1 and self.config.parallel != "ddp":
            self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def _no_memory(self, work: _Work) -> ResourceError:
        """What to say when memory ran out, after looking what would fit."""
        self.optimiser.zero_grad(set_to_none=True)
        tried = max(len(part) for _, part in work.parts)
        if self.world.size > 1:  # the others wait in the middle of the step
            return ResourceError(
                f"step {self.progress.step + 1}: out of memory with {tried} rows at a time in "
                f"process {self.world.rank}; set training.micro_batch={max(1, tried // 2)} or auto "
                "and run the command again, it goes on from the last checkpoint"
            )
        batch = self._batches(self.progress.step)
        fits = largest_part(
            lambda rows: self._trial(batch, rows), tried - 1, self._device, self.model
        )
        remedy = (
            f"{fits} would fit: set training.micro_batch={fits} (the same batch, in parts)"
            if fits
            else "not even one would fit: take a smaller model, shorter rows or "
            "training.activation_checkpointing=true"
        )
        return ResourceError(
            f"step {self.progress.step + 1}: out of memory with {tried} rows at a time; {remedy} "
            "and run the command again, it goes on from the last checkpoint"
        )

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

    def _accumulate(self, sums: dict[str, list[float]], norm: float) -> None:
        for name, (total, count) in {**sums, "gradient_norm": [norm, 1.0]}.items():
            entry = self.progress.window.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += count

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
            if self._keep_best:
                weights = self._weights()
                if self.world.is_main:
                    self._store.save_best(progress.step, weights)
        return Record("validation", progress.step, values)

    def _stale(self) -> bool:
        if not self._patience or not self._eval_every or self.progress.look_due:
            return False
        behind = self.progress.step - self.progress.improved_step
        return behind >= self._patience * self._eval_every
