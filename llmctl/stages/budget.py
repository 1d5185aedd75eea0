"""A budget of wall clock to a pretraining: model size, batch, steps and schedule for this machine.

A ladder of shapes lies around the presets: depth is width / 64 and heads are 64 wide, as nanochat
has them (the shape at a given size matters little, Kaplan et al. 2020, §3.1). Real steps of a few
rungs are timed, at two batch sizes; what the rest of the budget then holds of tokens, and what
those are worth, gives each rung a loss by the scaling law, and the lowest is taken. The search
climbs from rung to rung: what it has not timed it takes to be as fast for its operations as its
nearest neighbour. The learning rate falls linearly to zero, which ends lowest (Bergsma et al.
2025).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmctl.errors import ConfigError, UsageError
from llmctl.models import ARCHITECTURES
from llmctl.models.flops import multiplied_weights
from llmctl.models.scaling import ScalingLaw, entropy
from llmctl.models.spec import backbones
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import count, duration
from llmctl.tasks.pretraining import Pretraining
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.distributed.processes import ALONE, World
from llmctl.training.machine import is_busy
from llmctl.training.planning.memory import free_bytes
from llmctl.training.planning.plan import process_seconds
from llmctl.training.planning.rehearsal import Rehearsal, rehearse, time_steps
from llmctl.training.precision import (
    choose_compile,
    choose_device,
    choose_precision,
    matrix_rate,
)
from llmctl.training.run import Machine, agreed
from llmctl.training.trainer import Trainer

if TYPE_CHECKING:
    from llmctl.tasks.pretraining import PretrainConfig

    AnyConfig = PretrainConfig[Any, Any, Any]

LEAST_SECONDS = 20.0
"""Below it start-up and calibration leave too little: PyTorch alone takes two seconds."""
LEAST_STEPS = 50
"""Steps that a training needs at the least to have a warm-up and a decay."""
LEAST_SHARE = 0.4
"""Of the budget that must be left for training."""
CALIBRATION_SHARE = 0.08
MOST_CALIBRATION = 60.0
"""Share of the budget, and seconds, after which no further rung is timed."""
TRIAL_SHARE = 0.05
MOST_TRIAL_STEPS = 300
"""Of the training of seconds that tells how much this text can teach."""
WRONG_AFTER_TRIAL, WRONG_WITHOUT = 0.12, 0.25
"""Shares of the predicted loss that its range allows for: on Wikipedia's text, which the law was
not fitted to, it was 10 % off after such a trial and 18 % without."""
LOOKING_SHARE = 0.05
"""Of the time for training that validations on the way may take."""
WARM_UP_STEPS = 10
COMPILED_SHARE = 0.75
"""Time of a compiled step over one that isn't: a third to a half is saved at nano size, a tenth
beyond (tests/benchmarks). The steps are an estimate; the time limit is not."""
COMPILE_SECONDS = 35.0

LADDER = [
    (2, 64), (2, 128), (3, 192), (4, 256), (5, 320), (6, 384), (8, 512), (10, 640), (12, 768),
    (16, 1024), (20, 1280), (24, 1536),
]  # fmt: skip
"""Layers and width."""
FIRST_RUNG = 1
STEP_TOKENS = {
    "causal_lm": [1 << n for n in range(11, 15)],
    "masked_lm": [1 << n for n in range(10, 15)],
}
"""Tokens of a step that are considered, by objective; the least and the most but one are timed.
With fewer, Muon learns less from as many tokens: a loss of 5.61 with 512, of 5.17 with 2,048."""
ON_ACCELERATOR = 8
"""Times as many there."""

DERIVED = {"num_heads", "num_kv_heads", "head_size", "intermediate_size"}
"""Fields of a model that follow from its width where they are 0."""
MODEL_KEYS = {"num_layers", "hidden_size", *DERIVED}
TRAINING_KEYS = ("batch_size", "schedule", "warmup", "eval_every")

Opener = Callable[["AnyConfig"], tuple[Pretraining[Any, Any], "AnyConfig"]]
Maker = Callable[[Pretraining[Any, Any], "AnyConfig", Machine, CheckpointStore, Reporter], Trainer]
Exporter = Callable[[Pretraining[Any, Any], "AnyConfig", nn.Module, Path], object]


def left_open(arch: str, preset: str | None, *layers: Mapping[str, Any]) -> list[str]:
    """The keys that a budget chooses: those that neither a preset nor a layer gives."""
    given = {f"{table}.{key}" for layer in layers for table in ("model", "training")
             for key in layer.get(table, {})}  # fmt: skip
    model = [] if preset else MODEL_KEYS & set(ARCHITECTURES[arch].config.model_fields)
    keys = [f"model.{key}" for key in sorted(model)]
    return [key for key in keys + [f"training.{key}" for key in TRAINING_KEYS] if key not in given]


@dataclass(frozen=True)
class Candidate:
    """A shape with its best batch size, and what it would come to."""

    num_layers: int
    hidden_size: int
    parameters: int
    batch_size: int
    seconds_per_step: float
    steps: int
    tokens: float
    epochs: float
    predicted_loss: float


@dataclass(frozen=True)
class Choice:
    """What a budget came to."""

    budget_seconds: float
    predicted_loss: float
    predicted_range: tuple[float, float]
    """As far as the law was wrong on a text that it was not fitted to."""
    steps: int
    tokens: float
    training_seconds: float
    calibration_seconds: float
    """All that went before the training."""
    others_cores: float
    """That other processes used while the chosen shape was timed."""
    candidates: list[Candidate]
    """The shapes that were timed, the chosen one first."""

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass
class Rung:
    """A shape of the ladder."""

    config: AnyConfig
    weights: int
    parameters: int
    flops: float
    """For each token."""
    timed: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Seconds and tokens of a step, by batch size."""


class Chooser:
    """The search for a shape and a batch size."""

    def __init__(
        self,
        config: AnyConfig,
        begun: float,
        open_pretraining: Opener,
        make_trainer: Maker,
        world: World = ALONE,
    ) -> None:
        assert config.budget is not None
        self.config, self.budget, self._begun = config, float(config.budget), begun
        self._open, self._make = open_pretraining, make_trainer
        device = choose_device(config.training.device)
        precision = choose_precision(config.training.precision, device)
        self.machine = agreed(Machine(device, precision, False, world))
        self._rungs = self._ladder()
        pretraining, opened = self._open(self._rungs[0].config)
        reader = pretraining.reader("train")
        self._unique = float(reader.document_lengths.sum())
        self._vocab_size = opened.model.vocab_size
        self._entropy = entropy(reader.token_counts(self._vocab_size))
        law = ARCHITECTURES[config.arch].scaling
        assert law is not None
        self.law: ScalingLaw = law
        self._text_factor = 1.0

    def spent(self) -> float:
        """Seconds since the command began, by the main process's clock."""
        return self.machine.world.of_main([time.perf_counter() - self._begun])[0]

    def _ladder(self) -> list[Rung]:
        """The shapes that are left open, each once."""
        open_keys = {key.partition(".")[2] for key in self.config.chosen if "model." in key}
        rungs: dict[tuple[int, int], Rung] = {}
        for layers, width in LADDER:
            shape = dict.fromkeys(DERIVED & open_keys, 0)
            shape |= {key: value for key, value in
                      {"num_layers": layers, "hidden_size": width}.items()
                      if key in open_keys}  # fmt: skip
            try:
                model = self.config.model.replace(**shape)
            except ValueError:  # a number of heads is given that doesn't divide this width
                continue
            key = (model.num_layers, model.hidden_size)
            if key not in rungs:
                config = self.config.replace(model=model.model_dump())
                pretraining, _ = self._open(config)
                with torch.device("meta"):
                    network = pretraining.build_model(config.seed)
                rungs[key] = Rung(
                    config,
                    multiplied_weights(backbones(network)["body."]),
                    sum(p.numel() for p in network.parameters()),
                    pretraining.flops_per_token(),
                )
        if not rungs:
            raise ConfigError(
                "no shape of the ladder goes with the model.* options given beside --budget; "
                "leave out model.num_heads"
            )
        return sorted(rungs.values(), key=lambda rung: rung.flops)

    def _batch_sizes(self) -> list[int]:
        if "training.batch_size" not in self.config.chosen:
            return [self.config.training.batch_size]
        length = self.config.data.sequence_length
        considered = STEP_TOKENS[ARCHITECTURES[self.config.arch].task]
        scale = 1 if self.machine.device.type == "cpu" else ON_ACCELERATOR
        return sorted({max(1, tokens * scale // length) for tokens in considered})

    def _time(self, rung: Rung) -> None:
        """Time a rung's steps at two batch sizes, or at the only one."""
        sizes = self._batch_sizes()
        seconds = min(1.0, self.budget / 150)
        for size in sorted({sizes[0], sizes[-1 if len(sizes) < 3 else -2]}):
            pretraining, config = self._open(_with_training(rung.config, batch_size=size))
            trainer = self._make(
                pretraining, config, self.machine, CheckpointStore(Path(), 1), Reporter()
            )
            give_up = max(1.0, self.budget * CALIBRATION_SHARE / 2)
            found = time_steps(trainer, seconds, give_up=give_up)
            rung.timed[size] = found.seconds_per_step, found.tokens_per_step
            del trainer
            gc.collect()

    def _step(self, index: int, size: int) -> tuple[float, float]:
        """Seconds and tokens of a step of a rung, as timed or as its nearest timed one's."""
        near = min(
            (n for n, rung in enumerate(self._rungs) if rung.timed), key=lambda n: abs(n - index)
        )
        rung = self._rungs[near]
        small, large = min(rung.timed), max(rung.timed)
        (low, low_tokens), (high, high_tokens) = rung.timed[small], rung.timed[large]
        slope = (high - low) / (large - small) if large > small else 0.0
        # Fewer rows than were timed take no less than their share.
        seconds = max(low + slope * (size - small), low * min(1.0, size / small))
        tokens = high_tokens if size == large else low_tokens * size / small
        return seconds * self._rungs[index].flops / rung.flops, tokens

    def _candidate(self, index: int, seconds: float) -> Candidate | None:
        """The best of a rung in so many seconds of training; None if it can't do enough steps."""
        rung = self._rungs[index]
        best: Candidate | None = None
        for size in self._batch_sizes():
            step, per_step = self._step(index, size)
            steps = self.steps_in(seconds, step)
            if steps < LEAST_STEPS:
                continue
            tokens = steps * per_step
            loss = self.predicted_loss(rung, tokens, per_step)
            if best is None or loss < best.predicted_loss:
                model = rung.config.model
                best = Candidate(
                    model.num_layers, model.hidden_size, rung.parameters, size, step, steps,
                    tokens, tokens / self._unique, loss,
                )  # fmt: skip
        return best

    def steps_in(self, seconds: float, step: float) -> int:
        """Steps in so many seconds, by the time that one takes before it is compiled."""
        if self._compiles(seconds):
            seconds, step = seconds - COMPILE_SECONDS, step * COMPILED_SHARE
        return int(seconds * (1 - LOOKING_SHARE) / step)

    def _compiles(self, seconds: float) -> bool:
        """Whether a training of that length is compiled."""
        return choose_compile(self.config.training.compile, self.machine.device, seconds)

    def search(self) -> list[tuple[Rung, Candidate]]:
        """Time rungs until the best is timed and so are its neighbours, or the time for it is up;
        returns those that were timed, the best first.

        Raises UsageError if not even the smallest could do enough steps.
        """
        self._refuse_the_impossible()
        limit = self.spent() + min(MOST_CALIBRATION, CALIBRATION_SHARE * self.budget)
        index = min(FIRST_RUNG, len(self._rungs) - 1)
        while True:
            self._time(self._rungs[index])
            ranked = self._ranked(range(len(self._rungs)))
            # Where none can do enough steps, a smaller one might.
            best = ranked[0][0] if ranked else 0
            untimed = [
                n
                for n in (best, best - 1, best + 1)
                if 0 <= n < len(self._rungs) and not self._rungs[n].timed and self._fits(n)
            ]
            timed = [n for n, rung in enumerate(self._rungs) if rung.timed]
            if not untimed or (self.spent() >= limit and (self._ranked(timed) or 0 in timed)):
                break
            index = untimed[0]
        ranked = self._ranked(timed)
        if not ranked:
            step, _ = self._step(min(timed), self._batch_sizes()[0])
            raise UsageError(self._too_short(min(timed), step))
        return [(self._rungs[n], candidate) for n, candidate in ranked]

    def _seconds_left(self) -> float:
        """For training, before what follows it is known: a twentieth is left for that."""
        return 0.95 * self.budget - self.spent() - process_seconds(self.machine.world.size)

    def _ranked(self, indices: Iterable[int]) -> list[tuple[int, Candidate]]:
        seconds = self._seconds_left()
        found = [(n, self._candidate(n, seconds)) for n in indices]
        there = [(n, candidate) for n, candidate in found if candidate is not None]
        return sorted(there, key=lambda pair: pair[1].predicted_loss)

    def _fits(self, index: int) -> bool:
        """Whether weights, gradients and optimiser find room twice, for each process."""
        device, world = self.machine.device, self.machine.world
        sharing = world.local_size if device.type == "cpu" else 1
        room = 32 * self._rungs[index].parameters * sharing < free_bytes(device)
        return bool(world.least(int(room)))

    def _refuse_the_impossible(self) -> None:
        """Before a step is tried: at the rate of matrix products none is faster than that."""
        rung, rows = self._rungs[0], self._batch_sizes()[0]
        precision = torch.bfloat16 if self.machine.precision == "bf16" else torch.float32
        world = self.machine.world
        rate = world.total([matrix_rate(self.machine.device, precision)])[0]
        step = rung.flops * rows * self.config.data.sequence_length / rate
        if LEAST_STEPS * step > self._seconds_left():
            raise UsageError(self._too_short(0, step))

    def _too_short(self, index: int, step: float) -> str:
        training = (LEAST_STEPS + 1) * step / (1 - LOOKING_SHARE)
        compiling = ""
        if self._compiles(training):
            training = COMPILE_SECONDS + COMPILED_SHARE * training
            compiling = f", compiling takes about {duration(COMPILE_SECONDS)}"
        need = training + self.spent() + process_seconds(self.machine.world.size)
        return (
            f"--budget {duration(self.budget)} is too short: start-up and calibration took "
            f"{duration(self.spent())}{compiling}, and {LEAST_STEPS} steps of "
            f"{self._rungs[index].parameters / 1e6:.1f} M parameters take "
            f"{duration(LEAST_STEPS * step)} on this machine; give at least "
            f"{duration(math.ceil(need / 0.95))}, or a smaller model or batch"
        )

    def settled(self, rung: Rung, chosen: Candidate) -> AnyConfig:
        """The configuration with what was chosen, as far as it was open."""
        warm_up = max(self.config.training.warmup, min(0.1, WARM_UP_STEPS / chosen.steps))
        values = {"batch_size": chosen.batch_size, "schedule": "linear", "warmup": warm_up}
        changes = {k: v for k, v in values.items() if f"training.{k}" in self.config.chosen}
        return _with_training(rung.config, precision=self.machine.precision, **changes)

    def learn_from_text(self, folder: Path) -> bool:
        """Train the fastest shape that was timed for a few seconds, to its end, and hold its loss
        against the law's; returns whether there was time for it.

        Texts of one entropy differ by a fifth in how much of it can be learned. This does not
        change which shape is best, only how good it will be.
        """
        rung = min((r for r in self._rungs if r.timed), key=lambda r: min(r.timed.values()))
        size = min(rung.timed)
        steps = min(MOST_TRIAL_STEPS, int(TRIAL_SHARE * self.budget / rung.timed[size][0]))
        if steps < LEAST_STEPS:
            return False
        config = _with_training(
            rung.config, batch_size=size, max_steps=steps, eval_every=steps, compile="off"
        )
        pretraining, opened = self._open(config)
        store = CheckpointStore(folder, 1)
        trainer = self._make(pretraining, opened, self.machine, store, Reporter())
        losses = [r.values["loss"] for r in trainer.run() if r.kind == "validation"]
        if not losses:
            return False
        tokens = trainer.progress.tokens
        self._text_factor = losses[-1] / self.predicted_loss(rung, tokens, tokens / steps)
        return True

    def predicted_loss(self, rung: Rung, tokens: float, tokens_per_step: float) -> float:
        """By the law, for this text."""
        worth = self.law.worth(tokens, self._unique, tokens_per_step)
        unit = self._text_factor * self._entropy
        return unit * self.law.loss(rung.weights, worth, self._vocab_size)


def choose(
    config: AnyConfig,
    folder: Path,
    *,
    begun: float,
    open_pretraining: Opener,
    make_trainer: Maker,
    export: Exporter,
    reporter: Reporter,
    world: World = ALONE,
) -> tuple[AnyConfig, Choice]:
    """The configuration for a budget, and what it is expected to come to.

    begun: when the command began, by time.perf_counter. folder: to write a rehearsal into, removed
    by the caller. world: the processes that will train; all must call it. Raises UsageError if the
    budget is too short.
    """
    reporter.note("timing models of several sizes on this machine")
    with torch.random.fork_rng(devices=[]):
        chooser = Chooser(config, begun, open_pretraining, make_trainer, world)
        candidates = chooser.search()
        rung, best = candidates[0]
        tried = chooser.learn_from_text(folder / "trial")
        config = chooser.settled(rung, best)
        pretraining, opened = open_pretraining(config)
        trial = rehearse(
            lambda store: make_trainer(pretraining, opened, chooser.machine, store, Reporter()),
            lambda model, progress, place: export(pretraining, opened, model, place),
            folder / "rehearsal",
            min(2.0, chooser.budget / 60),
        )
        gc.collect()
    spent = chooser.spent()
    limit = chooser.budget - spent - trial.build_seconds - _tail(trial, world)
    if limit < LEAST_SHARE * chooser.budget:
        raise UsageError(_too_little_left(chooser.budget, limit))
    steps = chooser.steps_in(limit, trial.seconds_per_step)
    changes: dict[str, Any] = {"time_limit": round(limit, 3)}
    if "training.eval_every" in config.chosen:
        looks = min(10, int(LOOKING_SHARE * limit / max(trial.validation_seconds, 1e-9)))
        # The last look comes with the end, whenever that is; one alone is never due before.
        changes["eval_every"] = max(1, steps // looks) if looks > 1 else 100 * steps
    tokens = steps * trial.tokens_per_step
    loss = chooser.predicted_loss(rung, tokens, trial.tokens_per_step)
    margin = loss * (WRONG_AFTER_TRIAL if tried else WRONG_WITHOUT)
    choice = Choice(
        budget_seconds=chooser.budget,
        predicted_loss=loss,
        predicted_range=(loss - margin, loss + margin),
        steps=steps,
        tokens=tokens,
        training_seconds=limit,
        calibration_seconds=spent,
        others_cores=round(trial.others_cores, 2),
        candidates=[
            replace(c, predicted_loss=chooser.predicted_loss(r, c.tokens, c.tokens / c.steps))
            for r, c in candidates
        ],
    )
    for line in table(choice):
        reporter.note(line)
    return _with_training(config, **changes), choice


def table(choice: Choice) -> list[str]:
    """The candidates by size, the chosen one marked, and what is expected of it."""
    best = choice.candidates[0]
    lines = ["   layers × width  parameters  batch   step, ms   steps   tokens  epochs  loss"]
    for c in sorted(choice.candidates, key=lambda c: c.parameters):
        shape = f"{c.num_layers} × {c.hidden_size}"
        lines.append(
            f" {'›' if c is best else ' '} {shape:>14}  {count(c.parameters):>10}  "
            f"{c.batch_size:>5}  {1000 * c.seconds_per_step:>9.1f}  {c.steps:>6,}  "
            f"{count(c.tokens):>7}  {c.epochs:>6.1f}  {c.predicted_loss:.3f}"
        )
    low, high = choice.predicted_range
    lines.append(
        f"budget {duration(choice.budget_seconds)}: {best.num_layers} layers × {best.hidden_size}, "
        f"{best.batch_size} rows a step, about {choice.steps:,} steps in "
        f"{duration(choice.training_seconds)}; predicted loss {choice.predicted_loss:.2f} "
        f"({low:.2f}–{high:.2f})"
    )
    if is_busy(choice.others_cores):
        lines.append(
            f"other processes used about {choice.others_cores:.1f} cores while models were timed: "
            "the budget's time is kept, but it holds fewer steps than on a quiet machine, and "
            "maybe a smaller model"
        )
    return lines


def _with_training(config: AnyConfig, **changes: Any) -> AnyConfig:
    return config.replace(training=config.training.replace(**changes).model_dump())


def _tail(trial: Rehearsal, world: World) -> float:
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
