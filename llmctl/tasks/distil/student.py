"""The student that a distillation begins with, where it isn't a model of its own: its teacher with
fewer layers, or a network with random weights that reads its teacher's tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmctl.errors import ConfigError, InputError, UsageError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.models import ARCHITECTURES
from llmctl.tasks.distil.config import DEFAULT_PRESET, DistilConfig

KINDS_OF_BACKBONES = {"masked_lm": ("encoder",), "causal_lm": ("decoder",)}
"""What a student's network is, by what its teacher does; others may be either."""


def student_of(config: DistilConfig, teacher: Pretrained, name: str) -> Pretrained:
    """The student that a configuration asks for. name: the teacher's, for messages.

    Raises UsageError where it asks for none, or for an architecture that is not known; ConfigError
    where the teacher can't have so few or so many layers.
    """
    if config.layers is not None:
        return with_layers(teacher, config.layers, name)
    if config.arch is not None:
        return random_student(config, teacher, name)
    raise UsageError(
        "--from is missing: name the student, a run or a model folder; or take it from its teacher "
        "with --layers N, or with random weights, --arch and --preset"
    )


def kept_layers(count: int, total: int) -> list[int]:
    """Which layers a student of so many takes: evenly, the first and the last among them."""
    if count == 1:
        return [0]
    chosen: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
    return chosen


def with_layers(teacher: Pretrained, count: int, name: str) -> Pretrained:
    """The teacher with so many of its layers. Raises ConfigError where it has fewer, InputError for
    an architecture whose layers differ by their number."""
    shape = teacher.config
    total = int(shape.num_layers)
    if count > total:
        raise ConfigError(f"--layers {count}: {name} has {total}; use at most {total}")
    if shape.layers_differ or getattr(shape, "scale_by_layer", False):
        raise InputError(
            f"--layers: the layers of {name}, a {teacher.spec.name}, differ by their number, so "
            "none can be left out; give --arch and --preset"
        )
    network: Any = teacher.owning().network()
    network.body.keep_layers(kept_layers(count, total))
    return replace(
        teacher,
        config=shape.replace(num_layers=count),
        tensors=network.state_dict(),
        quantised={},
    )


def random_student(config: DistilConfig, teacher: Pretrained, name: str) -> Pretrained:
    """A network of another shape that reads the teacher's tokens; it has no tensors yet."""
    if config.arch not in list(ARCHITECTURES):
        raise UsageError(
            f"--arch {config.arch!r} is not known{did_you_mean(str(config.arch), ARCHITECTURES)}; "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    spec = ARCHITECTURES[str(config.arch)]
    kinds = KINDS_OF_BACKBONES.get(teacher.kind, ("encoder", "decoder"))
    if spec.kind not in kinds:
        raise UsageError(
            f"--arch {config.arch} is of the kind {spec.kind}, and {name} is {teacher.described}: "
            f"its student is of the kind {' or '.join(kinds)}"
        )
    preset = config.preset or DEFAULT_PRESET
    if preset not in list(spec.presets):
        raise UsageError(
            f"--preset {preset!r} is not known{did_you_mean(preset, spec.presets)}; choose one of "
            f"{', '.join(spec.presets)}"
        )
    shape = spec.config(**spec.presets[preset])
    tokenizer = teacher.tokenizer
    shape = shape.with_vocabulary(tokenizer.vocab_size, tokenizer.special)
    fields = {key: value for key, value in teacher.fields.items() if key == MAX_LENGTH}
    return replace(
        teacher,
        architecture=spec,
        config=shape,
        fields=fields,
        tensors={},
        quantised={},
        purpose=teacher.purpose,
    )


def same_pieces(student: Pretrained, teacher: Pretrained) -> bool:
    """Whether both have one vocabulary, so that a number is the same piece to both."""
    return student.tokenizer.pieces_digest() == teacher.tokenizer.pieces_digest()


def check_no_wider(student: Pretrained, teacher: Pretrained, name: str, shown: str) -> None:
    """Raises ConfigError for a student that is wider than its teacher. name: the teacher's. shown:
    the student in words."""
    own, most = (int(one.config.hidden_size) for one in (student, teacher))
    if own > most:
        raise ConfigError(
            f"{shown} is {own} wide, and its teacher {name} is {most}: a student is no wider than "
            "its teacher; give a narrower one with --from, take --layers N of the teacher's, or "
            "--arch with a smaller --preset"
        )
