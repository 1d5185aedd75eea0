"""One step of training: a batch, in parts, to a gradient and an update.

A batch is divided by rows among the processes, and by each into parts that fit its memory. Every
part's losses are divided by the count of the whole batch, so the sum of the parts' gradients is
the batch's, however it was divided. Every random draw is tied to the seed, the step and the row.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from llmctl.data.random import key_of
from llmctl.errors import ResourceError, UsageError
from llmctl.models.heads.cross_entropy import compiled_cross_entropy
from llmctl.models.layers.kernels import set_device_capability
from llmctl.training.batches import ComparedLoss, LossParts, Objective, TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import (
    World,
    distribute,
    full_tensor,
    recompute_activations,
)
from llmctl.training.measured import Sums
from llmctl.training.optim.float8 import use_float8
from llmctl.training.optim.optimiser import build_optimiser, set_learning_rate
from llmctl.training.planning.memory import largest_part, out_of_memory
from llmctl.training.precision import autocast
from llmctl.training.progress import Progress

GRAD_NORM_EMA_DECAY = 0.98
"""The decay of the running mean of gradient norms, which a spike is told by: about the last fifty
steps."""
STEPS_BEFORE_SPIKES = 50
"""Steps before a spike can be told: at first every norm is unusual."""

Batches = Callable[[int], TensorBatch]


@dataclass(frozen=True)
class MicroBatches:
    """A batch as one process takes it."""

    parts: list[tuple[int, TensorBatch]]
    """Each with the number of its first row in the batch."""
    weight: float
    """0 where there were too few rows for all, or where the batch can't be divided and another
    process has it: such a process takes part with rows that count nothing."""
    counts: dict[str, int]
    """What the losses of the whole batch are divided by."""
    real_tokens: int
    slots: int
    whole: TensorBatch | None = None
    """The batch, where its rows are compared with one another."""


class Stepper:
    """A model with its loss and its optimiser, shared out among the processes, that takes steps."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        config: TrainingConfig,
        *,
        seed: int,
        device: torch.device,
        precision: str,
        rate_scale: dict[str, float] | None,
        compiled: bool,
        world: World,
    ) -> None:
        self.objective, self.model = objective, objective.model
        self._batches, self.config, self._seed = batches, config, seed
        self._device, self._precision, self._compiled = device, precision, compiled
        self.world, self.progress = world, Progress()
        set_device_capability(device)
        if precision == "fp8":
            use_float8(self.model)
        if config.activation_checkpointing:
            recompute_activations(self.model)
        self._shared = config.parallel != "ddp"
        # What was trained in shares ends as one model.
        self._plain = copy.deepcopy(self.model) if self._shared and world.is_main else None
        self._loss = distribute(objective, config, world, device)
        self._compared = objective.loss if isinstance(objective.loss, ComparedLoss) else None
        self._micro_batch = config.micro_batch if isinstance(config.micro_batch, int) else 0
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = build_optimiser(
            self.model,
            config,
            rate_scale=rate_scale,
            product_type=torch.float32 if precision == "fp32" else torch.bfloat16,
        )
        if compiled:
            body: nn.Module = self.model.body  # type: ignore[assignment]
            body.compile(dynamic=False)

    def close(self) -> None:
        """Let go of what ties this process to the others; they can't be reached afterwards.

        A wrapper that outlived its group of processes would wait for ever for its threads.
        """
        self._loss = self.objective
        gc.collect()

    def unsharded_model(self) -> nn.Module | None:
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
            one = full_tensor(value)
            if self.world.is_main:
                # Together they may be too large for an accelerator.
                weights[name] = one.cpu() if one is not value else one
        return weights

    def _prepare(self, *, count_flops: bool) -> float | None:
        """Before the first step: settle the micro-batch, and count the operations of a slot."""
        if self.config.micro_batch != "auto" and not count_flops:
            return None
        batch = self._batches(self.progress.step)
        if not self._divisible(batch):
            self._refuse_parts()
        if self.config.micro_batch == "auto":
            own = max(1, -(-len(batch) // self.world.size))
            self._micro_batch = self.world.all_reduce_min(self._rows_that_fit(batch, own))
            if not self._micro_batch:
                raise ResourceError(
                    "out of memory: not even one row of a batch fits; take a smaller model, "
                    "shorter rows or training.activation_checkpointing=true"
                )
        if not count_flops:
            return None
        part = batch.rows(0, 1) if self._divisible(batch) else batch
        with FlopCounterMode(display=False) as counter:
            self._dry_step(part, len(part))
        return counter.get_total_flops() / part.num_positions

    def _rows_that_fit(self, batch: TensorBatch, most: int) -> int:
        return largest_part(
            lambda rows: self._dry_step(batch, rows), most, self._device, self.model
        )

    def _dry_step(self, batch: TensorBatch, rows: int) -> None:
        """A forward and a backward pass over a batch's first rows, with nothing kept."""
        part = (batch if rows == len(batch) else batch.rows(0, rows)).to(self._device)
        # Kernels for this shape would be made for nothing.
        with torch.compiler.set_stance("force_eager"), autocast(self._device, self._precision):
            if self._compared is not None:
                total = self.objective(part, encode=True).sum()
            else:
                total = self.objective(part).total
        torch.autograd.grad(total, self._parameters, allow_unused=True)

    def _divisible(self, batch: TensorBatch) -> bool:
        """Whether the network may take a batch in parts."""
        return batch.separable or self._compared is not None

    def _local_micro_batches(self, step: int) -> MicroBatches:
        """This process's part of a batch; made in the background."""
        batch = self._batches(step)
        rows, world = len(batch), self.world
        begin, stop = (rows * n // world.size for n in (world.rank, world.rank + 1))
        weight = 1.0
        if not self._divisible(batch):  # all compute it, and the main process's counts
            self._refuse_parts()
            begin, stop, weight = 0, rows, float(world.is_main)
        elif begin == stop:  # too few rows for all
            begin, stop, weight = 0, 1, 0.0
        number = -(-(stop - begin) // (self._micro_batch or stop - begin))
        edges = [begin + (stop - begin) * n // number for n in range(number + 1)]
        parts = [
            (first, batch if (first, end) == (0, rows) else batch.rows(first, end))
            for first, end in pairwise(edges)
        ]
        if self._device.type == "cuda":
            parts = [(first, part.pin_memory()) for first, part in parts]
        whole = batch if self._compared is not None else None
        return MicroBatches(
            parts, weight, batch.loss_denominators, batch.real_tokens, batch.num_positions, whole
        )

    def _refuse_parts(self) -> None:
        """Raises UsageError where a batch that can't be divided is to be taken in parts."""
        if self.config.micro_batch:
            raise UsageError(
                f"training.micro_batch {self.config.micro_batch} takes a batch in parts, and this "
                "task's can't be divided, as its loss compares the rows with one another; leave it "
                "out, and lower training.batch_size where memory is short"
            )

    def _step(self, micro_batches: MicroBatches, multiplier: float) -> tuple[Sums, float, bool]:
        """Forward, backward, update; returns the sums and counts of what was measured, the
        gradient's norm and whether the update was made: not if the gradient is not finite, nor if
        it is a spike. multiplier: of the peak learning rate."""
        set_learning_rate(self.optimiser, self.config, multiplier)
        self.optimiser.zero_grad(set_to_none=True)
        try:
            measured = (
                self._gradient(micro_batches)
                if micro_batches.whole is None
                else self._compared_gradient(micro_batches, micro_batches.whole)
            )
        except RuntimeError as error:
            if out_of_memory(error):
                raise self._oom_error(micro_batches) from error
            raise
        with record_function("clip"):
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm, foreach=True)
            norm = full_tensor(norm)
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

    def _gradient(self, micro_batches: MicroBatches) -> dict[str, tuple[Tensor, int]]:
        """Add up the gradient of this process's part of a batch; returns sums and counts."""
        measured: dict[str, tuple[Tensor, int]] = {}
        weight = micro_batches.weight
        for number, (first, part) in enumerate(micro_batches.parts, 1):
            with self._summing(number == len(micro_batches.parts)):
                losses = self._forward(self._loss, first, part)
                total = _total(losses, micro_batches.counts)
                # A wrapper takes the mean over the processes.
                with record_function("backward"):
                    (total * (weight * self.world.size)).backward()
            for name, (value, count) in _figures(losses, total, weight).items():
                before, counted = measured.get(name, (0.0, 0))
                measured[name] = (before + value, counted + count)
        measured["loss"] = (measured["loss"][0], int(self.world.is_main))
        return measured

    def _forward(self, wrapped: nn.Module, first: int, part: TensorBatch, **how: bool) -> Any:
        """The forward pass of a part of a batch whose first row has this number."""
        # Dropout draws from the global generator: tie it to the place, so that there is no state.
        torch.manual_seed(key_of(self._seed, "step", self.progress.step, first))
        moved = part.to(self._device)
        with (
            record_function("forward"),
            autocast(self._device, self._precision),
            compiled_cross_entropy(self._compiled),
        ):
            return wrapped(moved, **how)

    def _compared_gradient(
        self, micro_batches: MicroBatches, whole: TensorBatch
    ) -> dict[str, tuple[Tensor, int]]:
        """Add up the gradient of this process's part of a batch whose rows are compared; returns
        sums and counts.

        The gradient by what each row comes to needs no network, and the network's needs that
        gradient alone: so rows are taken in parts, by however many processes, and a batch may be
        larger than memory (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
        Memory Limited Setup": GradCache).
        """
        assert self._compared is not None
        parts, weight = micro_batches.parts, micro_batches.weight
        alone = len(parts) == 1
        # 1. What this process's rows come to. Of several parts the graph is thrown away; it is made
        #    all the same, as without one kernels and compiled code may draw another dropout.
        encoded = []
        for first, part in parts:
            if alone:
                encoded.append(self._forward(self._loss, first, part, encode=True))
            else:
                encoded.append(self._forward(self.objective, first, part, encode=True).detach())
        sizes = [len(entries) for entries in encoded]
        own = torch.cat([entries.detach() for entries in encoded])
        # 2. Those of all processes, compared by each of them; a row that counts nothing stays home.
        entries, begin = self.world.all_gather_rows(own if weight else own[:0])
        entries.requires_grad_()
        losses = self._compared.compare(entries, whole.to(self._device))
        total = _total(losses, micro_batches.counts)
        (gradient,) = torch.autograd.grad(total, entries)
        own_gradient = gradient[begin : begin + len(own)] if weight else torch.zeros_like(own)
        # 3. Back through the network; a wrapper takes the mean over the processes.
        gradients = (own_gradient * self.world.size).split(sizes)
        for number, ((first, part), by_entries) in enumerate(zip(parts, gradients, strict=True), 1):
            with self._summing(number == len(parts)):
                again = encoded[0] if alone else self._forward(self._loss, first, part, encode=True)
                with record_function("backward"):
                    again.backward(by_entries)
        counted = float(self.world.is_main)  # all have found the same
        measured = _figures(losses, total, counted)
        return {**measured, "loss": (measured["loss"][0], int(counted))}

    def _summing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes add up their gradients once for a batch, after its last part."""
        if isinstance(self._loss, nn.parallel.DistributedDataParallel) and not last:
            return self._loss.no_sync()
        if self.world.size > 1 and self.config.parallel != "ddp":
            self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def _oom_error(self, micro_batches: MicroBatches) -> ResourceError:
        """What to say when memory ran out, after looking what would fit."""
        self.optimiser.zero_grad(set_to_none=True)
        tried = max(len(part) for _, part in micro_batches.parts)
        if not self._divisible(micro_batches.parts[0][1]):
            return ResourceError(
                f"step {self.progress.step + 1}: out of memory with {tried} rows, which this task "
                "can't take in parts; begin again with --force and a lower training.batch_size"
            )
        if self.world.size > 1:  # the others wait in the middle of the step
            return ResourceError(
                f"step {self.progress.step + 1}: out of memory with {tried} rows at a time in "
                f"process {self.world.rank}; set training.micro_batch={max(1, tried // 2)} or auto "
                "and run the command again, it goes on from the last checkpoint"
            )
        fits = self._rows_that_fit(self._batches(self.progress.step), tried - 1)
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
        most = limit * progress.grad_norm_ema if progress.step else norm
        # A spike counts as little more than usual; if it is the new level, it will be usual soon.
        weight = max(1 - GRAD_NORM_EMA_DECAY, 1 / (progress.step + 1))
        progress.grad_norm_ema += weight * (min(norm, most) - progress.grad_norm_ema)
        return norm >= most and progress.step >= STEPS_BEFORE_SPIKES


def _total(losses: LossParts, counts: Mapping[str, int]) -> Tensor:
    """The sum of a part's losses, each divided by the count of the whole batch."""
    shares = [
        part.weight * part.total.float() / max(counts[name], 1)
        for name, part in losses.losses.items()
    ]
    return torch.stack(shares).sum()


def _figures(losses: LossParts, total: Tensor, weight: float) -> dict[str, tuple[Tensor, int]]:
    """Sums and counts of what was measured, and the loss as a sum that has no count yet."""
    figures = {
        name: (part.total.detach().float() * weight, int(part.count * weight))
        for name, part in {**losses.losses, **losses.metrics}.items()
    }
    return {**figures, "loss": (total.detach() * weight, 0)}
