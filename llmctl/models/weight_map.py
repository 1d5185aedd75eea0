"""What tensors are called elsewhere: rules that work in both directions.

A rule names modules of ours and of theirs, ``{}`` standing for a layer's number, and how the one's
tensors become the other's. From a table of such rules follow the export of a network's tensors, the
import of theirs, and their exact inverse relation.

    Rename("norm", "model.norm")                         the same under another name
    Transpose("blocks.{}.mlp", "h.{}.mlp")               matrices kept as (inputs, outputs)
    Fuse("blocks.{}.qk", ("h.{}.q", "h.{}.k"))           theirs lie one above another in ours
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from llmctl.errors import InputError

BOTH = ("weight", "bias")
"""The tensors of a module with a bias."""
Reader = Callable[[], Tensor]
"""Reads a tensor when it is called."""


@dataclass(frozen=True)
class Rule(ABC):
    """One module of ours and what it is elsewhere."""

    ours: str
    """The module's name; ``{}`` for the layer's number."""
    theirs: str | tuple[str, ...]
    """The name elsewhere, or the names of several modules."""
    parts: tuple[str, ...] = ("weight",)
    """The tensors of the module; (): the names are those of tensors."""
    where: str = ""
    """A field of the configuration that is true where there is such a module, or "not " and one
    that is false; "": always."""
    layers: str = "num_layers"
    """The field of the configuration with the number of such layers."""
    first: int = field(default=0, kw_only=True)
    """The lowest layer that has such a module."""

    def holds(self, config: Any) -> bool:
        """Whether there is such a module in networks of a configuration."""
        field = self.where.removeprefix("not ")
        return not field or bool(getattr(config, field)) == (field == self.where)

    def tensors(self, num_layers: int) -> Iterator[tuple[str, list[str]]]:
        """The name of each tensor of ours, and its names elsewhere."""
        theirs = (self.theirs,) if isinstance(self.theirs, str) else self.theirs
        for layer in range(self.first, num_layers) if "{}" in self.ours else (0,):
            for part in [f".{part}" for part in self.parts] or [""]:
                names = [name.format(layer) + part for name in theirs]
                yield self.ours.format(layer) + part, names

    in_place: ClassVar[bool] = False
    """Whether ``split`` gives views of the tensor, so that theirs can be copied into ours."""
    is_concatenation: ClassVar[bool] = False
    """Whether these views lie one behind another: ours is then the numbers of theirs as they lie in
    a file, where they lie so there, too."""

    @abstractmethod
    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        """Their tensors from ours."""

    @abstractmethod
    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Our tensor from theirs."""


class Rename(Rule):
    """A rule by which tensors have another name."""

    in_place = is_concatenation = True

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        return [tensor]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0]


class Copy(Rename):
    """A rule by which tensors are there once more."""

    in_place = False

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        return [tensor.clone()]


class Row(Rename):
    """A rule by which a vector is the one row of a matrix elsewhere."""

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        return [tensor[None]]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].squeeze(0)


class Transpose(Rule):
    """Matrices are kept as (inputs, outputs) elsewhere; vectors are the same."""

    in_place = True

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        return [tensor.mT if tensor.dim() > 1 else tensor]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.split(tensors[0], None)[0]


@dataclass(frozen=True)
class Fuse(Rule):
    """One module of ours holds several of theirs, one above another."""

    in_place = is_concatenation = True
    shares: tuple[str, ...] = ()
    """Fields of the configuration that their rows are in proportion to; none: as many each."""

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        shares = [getattr(config, field) for field in self.shares] or [1] * len(self.theirs)
        unit, rest = divmod(len(tensor), sum(shares))
        assert not rest, (self.ours, len(tensor), shares)
        return tensor.split([unit * share for share in shares])

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))


@dataclass(frozen=True)
class WeightMap:
    """The tensors of an architecture's networks in the names of a format."""

    what: str
    """What is described, for messages: "a BERT"."""
    prefix: str
    """What the names begin with where heads stand beside the network; a bare one's don't."""
    rules: tuple[Rule, ...]
    heads: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """By what a model does: the names of what stands on the network, as far as it has it."""
    repeated: tuple[str, ...] = ()
    """Names of tensors that others' files may have too, and that say nothing new."""

    def export_tensors(self, state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """A network's state dict, or a part of it, in the format's names."""
        return {
            name: tensor
            for rule, ours, theirs in _tensors(self.rules, config)
            if ours in state
            for name, tensor in zip(theirs, rule.split(state[ours], config), strict=True)
        }

    def import_tensors(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The inverse of ``export_tensors``. Each tensor is read once, and others are left.

        Raises InputError naming a tensor that is missing.
        """
        return {name: read() for name, read in self.readers(tensors, config).items()}

    def readers(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Reader]:
        """What makes each tensor of a network of theirs when it is called; that raises InputError
        naming one that is missing."""
        return {
            ours: PartsReader(self, rule, config, tensors, theirs)
            for rule, ours, theirs in _tensors(self.rules, config)
        }

    def model_readers(
        self, task: str, tensors: Mapping[str, Tensor], config: Any
    ) -> dict[str, Reader]:
        """What makes each tensor of a whole model of theirs, by its name in ours: of the network
        under ``body``, and of what there is beside it for a task."""
        body = self.readers(tensors, config)
        return {
            **{f"body.{name}": read for name, read in body.items()},
            **self.head_readers(task, tensors, config),
        }

    def tensors(self, config: Any) -> Iterator[tuple[Rule, str, list[str]]]:
        """Each tensor of a network with its rule and its names in the format."""
        return _tensors(self.rules, config)

    def head_tensors(self, task: str, config: Any) -> Iterator[tuple[Rule, str, list[str]]]:
        """Each tensor that stands beside a network of a task with its rule and its names in the
        format."""
        return _tensors(self.heads.get(task, ()), config)

    def export_head(self, task: str, state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """What a model's state dict has beside the network, in the format's names."""
        return {
            name: tensor
            for rule, ours, theirs in _tensors(self.heads.get(task, ()), config)
            if ours in state
            for name, tensor in zip(theirs, rule.split(state[ours], config), strict=True)
        }

    def head_readers(
        self, task: str, tensors: Mapping[str, Tensor], config: Any
    ) -> dict[str, Reader]:
        """What makes each tensor beside a network of theirs, of what there is: the inverse
        of ``export_head``."""
        return {
            ours: PartsReader(self, rule, config, tensors, theirs)
            for rule, ours, theirs in _tensors(self.heads.get(task, ()), config)
            if all(name in tensors for name in theirs)
        }

    def head_names(self, task: str) -> dict[str, str]:
        """Ours by each name that may stand beside a network of a task."""
        return {
            name: ours
            for rule in self.heads.get(task, ())
            for ours, theirs in rule.tensors(0)
            for name in theirs
        }

    def take(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """A tensor of theirs, with the prefix of its name or without. Raises InputError where there
        is none."""
        return tensors[self.name_in(tensors, name)]

    def name_in(self, tensors: Container[str], name: str) -> str:
        """A name as it is there, with its prefix or without. Raises InputError where there is
        none."""
        for candidate in (name, name.removeprefix(self.prefix)):
            if candidate in tensors:
                return candidate
        raise InputError(
            f"the model file has no tensor {name}; it is not {self.what} of this shape"
        )


@runtime_checkable
class TensorFiles(Protocol):
    """Tensors in files, each read where it is wanted; several threads may read at once."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name."""
        ...

    def into(self, name: str, place: Tensor, files: dict[Path, Any]) -> None:
        """Read a tensor into one of its shape. files: those that a thread has open already."""
        ...

    def mapped(self, names: Sequence[str], dtype: torch.dtype, files: Any) -> Tensor | None:
        """The numbers of tensors that lie one behind another, as a vector in their file's pages, if
        they can be had so. files: those that are mapped."""
        ...


@dataclass(frozen=True)
class PartsReader:
    """Makes a tensor of ours of theirs, when it is called."""

    names: WeightMap
    rule: Rule
    config: Any
    tensors: Mapping[str, Tensor]
    theirs: Sequence[str]

    def __call__(self) -> Tensor:
        return self.rule.join([self.names.take(self.tensors, name) for name in self.theirs])

    def mapped_for(self, own: Tensor, files: Any) -> Tensor | None:
        """Ours where theirs lie in a file, if they have the type of a tensor of ours and lie there
        as in it; else None. files: those that are mapped, a ``MappedFiles``."""
        joined = self.rule.in_place and self.rule.is_concatenation
        if not joined or not isinstance(self.tensors, TensorFiles):
            return None
        parts = self.rule.split(own, self.config)
        names = [self.names.name_in(self.tensors, name) for name in self.theirs]
        shapes = self.tensors.shapes
        if [part.shape for part in parts] != [shapes[name] for name in names]:
            return None
        numbers = self.tensors.mapped(names, own.dtype, files)
        return None if numbers is None else numbers.view(own.shape)

    def into(self, own: Tensor, files: dict[Path, Any]) -> bool:
        """Read theirs into a tensor of ours, one after another, where each has its place in it;
        returns whether that could be. Without it theirs are held beside ours while it is made.
        files: what is open already."""
        if not self.rule.in_place:
            return False
        places = self.rule.split(own, self.config)
        names = [self.names.name_in(self.tensors, name) for name in self.theirs]
        in_files = self.tensors if isinstance(self.tensors, TensorFiles) else None
        for place, name in zip(places, names, strict=True):
            if in_files is not None:
                if place.shape != in_files.shapes[name]:
                    return False
                in_files.into(name, place, files)
            else:
                part = self.tensors[name]
                if place.shape != part.shape:
                    return False
                place.copy_(part)
        return True


def _tensors(rules: Iterable[Rule], config: Any) -> Iterator[tuple[Rule, str, list[str]]]:
    """Each tensor of ours with its rule and its names elsewhere."""
    for rule in rules:
        if rule.holds(config):
            for ours, theirs in rule.tensors(getattr(config, rule.layers)):
                yield rule, ours, theirs
