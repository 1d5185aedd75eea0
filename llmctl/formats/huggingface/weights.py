"""The weights of a model folder: one file of tensors, or several that an index names.

Safetensors, or the pickled files of older models, of which nothing but tensors is read. Names,
types and shapes are compared with what config.json describes before anything is computed with
them, and before anything of such a size is made: a description may say what it likes.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.filling import sides
from llmctl.models.layers.initialisation import Undrawn
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import WeightMap
from llmctl.parsing import read_json_object
from llmctl.workspace.tensors import FLOATS, MappedFiles, TensorReader, read_tensor, tensor_heads

WEIGHTS_FILE = "model.safetensors"
PICKLED = "pytorch_model.bin"
"""The name of older models' files, with numbers where there are several."""
PICKLED_ENDINGS = (".bin", ".pt", ".pth")
"""Endings of files that PyTorch pickled."""
INDEX = ".index.json"
"""Behind the name of the one file: which of several holds which tensor."""
AGAIN = "copy it again from where it was made"

SIZES = ("vocab_size", "hidden_size", "intermediate_size")
"""Fields of every configuration that some tensor has as a side."""
ROTARY_BYTES = 1 << 30
"""Bytes of the tables of rotary angles at most: half a million positions of heads 128 wide."""

_BUFFERS = re.compile(
    r"(^|\.)(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq|position_ids|token_type_ids)$"
)
"""What classes of transformers once kept beside their weights, and make anew."""


class _Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    name: str
    """The name as the file has it."""
    shape: tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """The tensors of some files by name, buffers left out; each is read when it is looked up.

    A tensor that nobody holds any more takes no memory: safetensors are read where they lie.
    """

    def __init__(self, files: Sequence[Path], integers: re.Pattern[str] | None = None) -> None:
        """integers: names of the tensors that may hold whole numbers."""
        self.files, self._integers = tuple(files), integers
        self._unpickled: dict[Path, dict[str, Tensor]] = {}

    @classmethod
    def of_checkpoint(cls, path: Path, tensors: object) -> Weights:
        """Those that a checkpoint has beside other things, as ``load_pickled`` gave them. What
        torch.compile puts into their names is taken out. Raises InputError for what is no tensor
        by its name."""
        weights = cls([path])
        named = _tensors_of(path, tensors)
        plain = {name.replace(COMPILED, ""): tensor for name, tensor in named.items()}
        if len(plain) < len(named):
            raise InputError(f"{path} has tensors twice, before and after torch.compile; {AGAIN}")
        weights._unpickled[path] = plain
        return weights

    @cached_property
    def _places(self) -> dict[str, _Place]:
        """Raises InputError for a tensor that holds no floating-point numbers."""
        places = {}
        for path in self.files:
            for inner, (dtype, shape) in self._head(path).items():
                name = current_name(inner)
                if _BUFFERS.search(name):
                    continue
                whole = self._integers is not None and self._integers.search(name)
                if dtype not in (WHOLE_NUMBERS if whole else FLOATS):
                    raise InputError(
                        f"{path}: the tensor {name} is of type {dtype.lower()}, and weights are "
                        "fp64, fp32, fp16 or bf16; take the model in one of these"
                    )
                places[name] = _Place(path, inner, shape)
        return places

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, read from the files' heads."""
        return {name: place.shape for name, place in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor. Raises InputError where its numbers are not finite."""
        path, inner, _ = self._places[name]
        pickled = path.suffix in PICKLED_ENDINGS
        tensor = self._pickled(path)[inner] if pickled else read_tensor(path, inner)
        if tensor.is_floating_point():
            _check_finite(path, name, tensor)
        return tensor

    def into(self, name: str, place: Tensor, files: dict[Path, TensorReader]) -> None:
        """Read a tensor into one of its shape. files: those that are open already; its own becomes
        one of them. Raises InputError as ``__getitem__``."""
        path, inner, _ = self._places[name]
        if path.suffix in PICKLED_ENDINGS:
            place.copy_(self[name])
            return
        if path not in files:
            files[path] = TensorReader(path)
        _check_finite(path, name, files[path].into(inner, place))

    def mapped(self, names: Sequence[str], dtype: torch.dtype, files: MappedFiles) -> Tensor | None:
        """The numbers of tensors of a type that lie one behind another in a file of safetensors, as
        a vector in the file's own pages; None where they don't lie so, or are not read as they lie.

        Raises InputError as ``__getitem__``.
        """
        places = [self._places[name] for name in names]
        path = places[0].file
        if path.suffix in PICKLED_ENDINGS or any(place.file != path for place in places):
            return None
        tensor = files[path].together([place.name for place in places], dtype)
        if tensor is not None:
            _check_finite(path, " and ".join(names), tensor)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def repeats(self, name: str, other: str) -> bool:
        """Whether a tensor says nothing that another doesn't: it is the same, or not there."""
        if name not in self or other not in self:
            return name not in self
        return torch.equal(self[name], self[other])

    def _head(self, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each tensor of a file."""
        if path.suffix in PICKLED_ENDINGS:
            return {
                name: (_DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
                for name, tensor in self._pickled(path).items()
            }
        return tensor_heads(path)

    def _pickled(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a pickled file, mapped where they can be."""
        if path not in self._unpickled:
            self._unpickled[path] = _tensors_of(path, load_pickled(path))
        return self._unpickled[path]


def weights_of(folder: Path, integers: re.Pattern[str] | None = None) -> Weights:
    """The weights of a folder. integers: names of the tensors that may hold whole numbers.

    Raises InputError if there are none, or an index is damaged.
    """
    for name in (WEIGHTS_FILE, PICKLED):
        if (folder / name).exists():
            return Weights([folder / name], integers)
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            return Weights([folder / file for file in _named_in(index)], integers)
    raise InputError(f"{folder / WEIGHTS_FILE} is missing; {AGAIN}")


def _named_in(index: Path) -> list[str]:
    files = read_json_object(index, AGAIN).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} is damaged: it has no weight_map; {AGAIN}")
    for name in files.values():
        # An index may not reach out of its folder.
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names the file {name!r}, which is no plain name")
    return sorted(set(files.values()))


WHOLE_NUMBERS = ("I32", "I64")
"""Types of whole numbers."""
_DTYPE_NAMES = {getattr(torch, ours): name for name, ours in FLOATS.items()}


COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a module's tensors."""


def load_pickled(path: Path, instead: str = "take the model as safetensors") -> Any:
    """What a pickled file holds, which can be a program: whatever isn't a tensor or a plain value
    is refused unread, and ``instead`` says what to do then. Raises InputError."""
    try:
        # Mapped, tensors are read when they are looked at; files of before 2020 can't be.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {AGAIN}") from None
    except Exception as error:  # a damaged file fails in any of a dozen ways
        if type(error).__name__ == "UnpicklingError":
            raise InputError(
                f"{path} is damaged, or holds more than tensors, which is not read; {instead}"
            ) from None
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{path} can't be read as a file of PyTorch: {reason}; {AGAIN}") from None


def _tensors_of(path: Path, value: object) -> dict[str, Tensor]:
    """The tensors of a file. Raises InputError for anything else."""
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no tensors by name; {AGAIN}")
    for name, tensor in value.items():
        if (
            not isinstance(name, str)
            or not isinstance(tensor, Tensor)
            or (tensor.layout != torch.strided)
        ):
            raise InputError(f"{path} holds something at {name!r} that is no tensor; {AGAIN}")
        if tensor.is_meta:
            raise InputError(f"{path}: the tensor {name!r} has a shape and no numbers; {AGAIN}")
    return dict(value)


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises InputError where a tensor has a number that is not finite."""
    if not is_finite(tensor):
        raise InputError(
            f"{path}: the tensor {name} has numbers that are not finite; the model diverged, or "
            "its file is damaged: take another"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers are finite."""
    # Their sum is not if one is not; where it overflows each is asked.
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return math.isfinite(tensor.sum(dtype=wide).item()) or bool(torch.isfinite(tensor).all())


def current_name(name: str) -> str:
    """The first BERTs' files say gamma and beta, as TensorFlow does."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def check_sizes(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for a size that no tensor has, before a network of such a size is made."""
    sides = [side for shape in shapes.values() for side in shape]
    largest = max(sides, default=0)
    layers = max(config.num_layers, getattr(config, "decoder_layers", 0))
    if layers > len(shapes):
        raise ValueError(f"{layers:,} blocks, and {len(shapes):,} tensors")
    sizes = {name: getattr(config, name) for name in SIZES}
    head = getattr(config, "head_size", 0) or config.hidden_size // config.num_heads
    sizes["num_heads times head_size"] = config.num_heads * head
    rotary = hasattr(config, "rope_theta")
    if not rotary and config.positions_have_weights:
        sizes["max_positions"] = config.max_positions
    for name, size in sizes.items():
        if size > largest:
            raise ValueError(f"{name} {size:,}, and the largest side of a tensor is {largest:,}")
    table = 4 * config.max_positions * head
    if rotary and table > ROTARY_BYTES:
        raise ValueError(
            f"{config.max_positions:,} positions, whose rotary angles alone take "
            f"{table / 2**30:,.0f} GB; write the longest text that is needed in its place"
        )


def check_body(
    spec: ModelSpec,
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    heads: Collection[str],
    names_there: WeightMap | None = None,
) -> None:
    """Compare the tensors of a network's body with what a configuration describes.

    heads: names of tensors that may stand beside the body. names_there: those of the format, by
    default Hugging Face's. Raises ValueError for a tensor that is
    missing, has another shape, or is one too many.
    """
    with torch.device("meta"), Undrawn():
        body = spec.build(config)
    names_there = names_there or spec.weights[HUGGING_FACE]
    expected = names_there.export_tensors(body.state_dict(), config)
    prefix = names_there.prefix
    names = {name if name in expected else prefix + name: name for name in shapes}
    for name, tensor in expected.items():
        if name not in names:
            raise ValueError(f"there is no tensor {name}")
        shape = shapes[names[name]]
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name} is {sides(shape)}, not {sides(tensor.shape)}")
    for canonical, name in names.items():
        if canonical not in expected and not {name, canonical} & {*heads, *names_there.repeated}:
            raise ValueError(f"the tensor {name} has no place in it")
