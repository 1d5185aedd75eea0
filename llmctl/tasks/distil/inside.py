"""What a network is like inside while it reads: its layers' hidden states, and the queries, keys
and values of one of them.

B texts, T tokens, D width, P width of queries, keys or values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.models.spec import Backbone
from llmctl.tasks.distil.config import DistilObjective
from llmctl.tasks.distil.losses import hidden_distance, relation_distance

FUSED_LAYER = "query_key_value"
"""What the layer that makes queries, keys and values is called in every architecture here."""


@dataclass
class Inside:
    """What was seen of a network in one reading."""

    hidden_BTD: list[Tensor] = field(default_factory=list)
    """Those of each layer, from the lowest."""
    parts_BTP: dict[str, Tensor] = field(default_factory=dict)
    """``q``, ``k`` and ``v`` of one layer."""


def fused_layer(layer: nn.Module) -> tuple[nn.Module, list[int]]:
    """What makes the queries, keys and values of a layer, and the width of each. Raises InputError
    for an architecture that has them otherwise."""
    for module in layer.modules():
        rows = getattr(module, "fused_rows", {})
        if FUSED_LAYER in rows:
            return module.get_submodule(FUSED_LAYER), list(rows[FUSED_LAYER])
    raise InputError(
        "objective.attention: this architecture does not make its queries, keys and values "
        "together; leave it out, and take objective.hidden"
    )


@contextmanager
def looked_inside(body: Backbone, *, hidden: bool, layer: int | None) -> Iterator[Inside]:
    """Keep hidden states, and what a layer's attention is made of, of what is read meanwhile.
    layer: its number from 0; None: of none."""
    seen = Inside()
    handles = []
    layers = list(body.layers())

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.hidden_BTD.append(output)

    if hidden:
        handles = [part.register_forward_hook(keep) for part in layers]
    if layer is not None:
        fused, widths = fused_layer(layers[layer])

        def divide(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.parts_BTP = dict(zip("qkv", output.split(widths, -1), strict=True))

        handles.append(fused.register_forward_hook(divide))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Projections(nn.Module):
    """Hidden states of a student as wide as its teacher's: learned with it, and left out of the
    model that is written."""

    def __init__(self, width: int, teacher_width: int, layers: int) -> None:
        super().__init__()
        parts = [nn.Linear(width, teacher_width, bias=False) for _ in range(layers)]
        for part in parts:
            nn.init.orthogonal_(part.weight)
        self.parts = nn.ModuleList(parts)

    def forward(self, hidden_BTD: Tensor, layer: int) -> Tensor:
        projected_BTD: Tensor = self.parts[layer](hidden_BTD)
        return projected_BTD


def layer_as_far_up(layer: int, layers: int, teacher_layers: int) -> int:
    """The teacher's layer that a student's is to be like: the last is like the last."""
    return -(-(layer + 1) * teacher_layers // layers) - 1


class InsideLoss:
    """Compares a student with its teacher inside."""

    def __init__(self, objective: DistilObjective, student: Any, teacher: Any) -> None:
        """student: the configuration of its backbone. teacher: that of its teacher's. Raises
        InputError for a layer that the teacher doesn't have."""
        self.objective = objective
        self.layers, self.teacher_layers = student.num_layers, teacher.num_layers
        self.projects = objective.hidden > 0 and student.hidden_size != teacher.hidden_size
        self.widths = (student.hidden_size, teacher.hidden_size)
        self.teacher_heads = int(teacher.num_heads)
        if objective.relation_layer > teacher.num_layers:
            raise InputError(
                f"objective.relation_layer {objective.relation_layer}: the teacher has "
                f"{teacher.num_layers} layers; use at most that, or 0 for its last"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses."""
        weights = {"hidden_loss": self.objective.hidden, "attention_loss": self.objective.attention}
        return tuple(name for name, weight in weights.items() if weight)

    def projections(self) -> Projections | None:
        """What makes a student's hidden states as wide as its teacher's, where it is narrower."""
        return Projections(*self.widths, self.layers) if self.projects else None

    def watching(self, body: Backbone, *, teacher: bool) -> Any:
        """Looks inside while a model reads."""
        objective = self.objective
        number = (objective.relation_layer or self.teacher_layers) - 1 if teacher else -1
        layer = number % len(body.layers()) if objective.attention else None
        return looked_inside(body, hidden=objective.hidden > 0, layer=layer)

    def __call__(
        self, student: Inside, teacher: Inside, mask_BT: Tensor, model: Any, *, causal: bool
    ) -> dict[str, Tensor]:
        """Each loss, summed over the texts. model: the student, with its projections."""
        found: dict[str, Tensor] = {}
        if self.objective.hidden:
            apart = torch.zeros((), device=mask_BT.device)
            for layer, hidden_BTD in enumerate(student.hidden_BTD):
                target_BTD = teacher.hidden_BTD[
                    layer_as_far_up(layer, self.layers, self.teacher_layers)
                ]
                if self.projects:
                    hidden_BTD = model.distil_projections(hidden_BTD, layer)
                apart = apart + hidden_distance(hidden_BTD, target_BTD, mask_BT).sum()
            found["hidden_loss"] = apart / self.layers
        if self.objective.attention:
            apart = torch.zeros((), device=mask_BT.device)
            for first, second in self.objective.relations:
                ours = student.parts_BTP[first], student.parts_BTP[second]
                theirs = teacher.parts_BTP[first], teacher.parts_BTP[second]
                heads = self._heads(f"{first}{second}", *ours, *theirs)
                for pair in (ours, theirs):
                    _check_shared(pair)
                apart = (
                    apart
                    + relation_distance(ours, theirs, mask_BT, heads=heads, causal=causal).sum()
                )
            found["attention_loss"] = apart / len(self.objective.relations)
        return found

    def _heads(self, relation: str, *parts_BTP: Tensor) -> int:
        widths = {part.shape[-1] for part in parts_BTP}
        most = self.objective.relation_heads or self.teacher_heads
        fitting = [n for n in range(1, most + 1) if not any(width % n for width in widths)]
        if self.objective.relation_heads and fitting[-1] != most:
            raise InputError(
                f"objective.relation_heads {most} does not divide the widths of {relation} "
                f"({', '.join(map(str, sorted(widths)))}); take {fitting[-1]}, or leave it out"
            )
        return fitting[-1]


def _check_shared(parts_BTP: tuple[Tensor, Tensor]) -> None:
    """Raises InputError where several heads share their keys, which then have no partner each."""
    if parts_BTP[0].shape[-1] != parts_BTP[1].shape[-1]:
        raise InputError(
            "objective.relations qk: heads of this model share their keys; take qq, kk and vv"
        )
