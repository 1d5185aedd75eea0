"""Matrices in whole numbers, in the layout ``pack-quantized`` of compressed-tensors.

In the place of ``X.weight`` (O, I) there are

    X.weight_packed      int32 (O, I · bits / 32): 32 / bits numbers in a word, the first lowest,
                         each with 2^(bits−1) added
    X.weight_scale       (O, G)
    X.weight_zero_point  int32 (O · bits / 32, G), packed along the outputs; none where it is 0
    X.weight_shape       (O, I)

and config.json has a ``quantization_config``. A layer of GPT-2's, which transformers keeps as
(inputs, outputs), is packed as (O, I) like any other: transformers itself opens no such GPT-2.

O outputs, I inputs, G groups.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.formats.huggingface.weights import WEIGHTS_FILE, Weights
from llmctl.models.config_json import FieldError, shown
from llmctl.models.layers.quantised_matrix import QuantisedMatrix
from llmctl.models.spec import TOKEN_TABLE
from llmctl.models.weight_map import Rule, Transpose, WeightMap
from llmctl.parsing import read_json_object
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import MappedFiles, TensorReader, read_tensors, write_tensors

QUANTIZATION = "quantization_config"
"""The field of config.json that says how numbers are packed."""
INTEGER_PARTS = re.compile(r"\.weight_(packed|zero_point|shape)$")
"""What the names of tensors of whole numbers end with."""
PACK_QUANTIZED, QUANT_METHOD = "pack-quantized", "compressed-tensors"
WORD_BITS = 32
"""Bits of a word."""
BITS_READ = (4, 8)
"""Bits of a number that are read here."""


@dataclass(frozen=True)
class Packing:
    """How the numbers of a folder are packed."""

    bits: int
    group: int
    symmetric: bool

    def description(self, ignore: list[str], *, embeddings: bool) -> dict[str, Any]:
        """The field of config.json. ignore: layers that are not packed. embeddings: whether tables
        of embeddings are."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group",
            "group_size": self.group,
            "dynamic": False,
        }
        return {
            "quant_method": QUANT_METHOD,
            "format": PACK_QUANTIZED,
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear", *(["Embedding"] if embeddings else [])],
                    "weights": weights,
                    "input_activations": None,
                }
            },
            "ignore": ignore,
            # Where it doesn't unpack at once, transformers 5 makes no room for packed zero points,
            # and an output layer finds no embedding whose weights it could share.
            **({} if self.symmetric and not embeddings else {"dequantize": True}),
        }


def packing_of(fields: Mapping[str, Any]) -> Packing | None:
    """What a description says of packed numbers; None where it has none. Raises FieldError for
    what is not read here."""
    said = fields.get(QUANTIZATION)
    if said is None:
        return None
    try:
        groups = list(said["config_groups"].values())
        weights = groups[0]["weights"]
        packing = Packing(weights["num_bits"], weights["group_size"], weights["symmetric"])
        supported = (
            said["quant_method"] == QUANT_METHOD
            and said["format"] == PACK_QUANTIZED
            and len(groups) == 1
            and groups[0].get("input_activations") is None
            and weights["type"] == "int"
            and weights["strategy"] == "group"
            and not weights.get("actorder")
            and packing.bits in BITS_READ
            and type(packing.group) is int
            and packing.group > 0
            and type(packing.symmetric) is bool
        )
    except (KeyError, TypeError, AttributeError, IndexError):
        supported = False
    if not supported:
        raise FieldError(
            f"{QUANTIZATION} is {shown(said)}: of quantised weights only those of {QUANT_METHOD} "
            f"are read, {PACK_QUANTIZED}, in 4 or 8 bits by groups; take the full model"
        )
    return packing


def pack(number: Tensor, bits: int) -> Tensor:
    """Numbers (R, I) in −2^(bits−1) … as words (R, ⌈I · bits / 32⌉), filled up with zeros."""
    each = WORD_BITS // bits
    number = number.long() + (1 << (bits - 1))
    number = F.pad(number, (0, -number.shape[1] % each)).unflatten(1, (-1, each))
    word = (number << (torch.arange(each) * bits)).sum(-1)
    # As the same 32 bits with a sign.
    return torch.where(word >= 1 << (WORD_BITS - 1), word - (1 << WORD_BITS), word).int()


def unpack(word: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of ``pack``: the first ``count`` numbers of each row, int8."""
    shift = torch.arange(WORD_BITS // bits, dtype=torch.int32) * bits
    number = (word.int()[..., None] >> shift) & ((1 << bits) - 1)
    return (number.flatten(1)[:, :count] - (1 << (bits - 1))).to(torch.int8)


class PackedWeights(Weights):
    """The tensors of a folder as if no matrix were packed: each becomes fp32 when it is looked up.

    Raises ValueError where the parts of a matrix don't fit one another.
    """

    def __init__(self, weights: Weights, packing: Packing, names: WeightMap) -> None:
        super().__init__(weights.files)
        self._weights, self._packing, self._names = weights, packing, names
        parts = weights.shapes
        self._packed = {
            name.removesuffix("_packed") for name in parts if name.endswith(".weight_packed")
        }
        self._shapes: dict[str, tuple[int, ...]] = {
            name: shape
            for name, shape in parts.items()
            if not INTEGER_PARTS.search(name) and name.removesuffix("_scale") not in self._packed
        }
        self._turned = _turned(names)
        for name in self._packed:
            sides = self._sides(name)
            self._shapes[name] = sides[::-1] if self._turned.fullmatch(name) else sides

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, as if no matrix were packed."""
        return self._shapes

    def into(self, name: str, place: Tensor, files: dict[Path, TensorReader]) -> None:
        if name in self._packed:
            place.copy_(self[name])
        else:
            self._weights.into(name, place, files)

    def mapped(self, names: Sequence[str], dtype: torch.dtype, files: MappedFiles) -> Tensor | None:
        """The numbers of tensors that are not packed, as ``Weights`` gives them."""
        unchanged = self._packed.isdisjoint(names)
        return self._weights.mapped(names, dtype, files) if unchanged else None

    def _sides(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a matrix, after the heads of its parts."""
        bits, shapes = self._packing.bits, self._weights.shapes
        packed, scale = shapes[f"{name}_packed"], shapes.get(f"{name}_scale", ())
        if len(packed) != 2 or len(scale) != 2:
            raise ValueError(f"{name} has no numbers and scales in rows")
        outputs, inputs = packed[0], scale[1] * self._packing.group
        zero = shapes.get(f"{name}_zero_point")
        expected = (
            None if self._packing.symmetric else (math.ceil(outputs * bits / WORD_BITS), scale[1])
        )
        if (
            packed[1] != math.ceil(inputs * bits / WORD_BITS)
            or scale[0] != outputs
            or zero != expected
        ):
            raise ValueError(f"the parts of {name} don't fit one another")
        if shapes.get(f"{name}_shape") != (2,):
            raise ValueError(f"{name}_shape is missing, or has not two sides")
        return outputs, inputs

    def matrix(self, name: str) -> QuantisedMatrix:
        """A packed matrix, (O, I)."""
        outputs, inputs = self._sides(name)
        if self._weights[f"{name}_shape"].tolist() != [outputs, inputs]:
            raise ValueError(f"{name}_shape is not that of its numbers")
        bits, scale_OG = self._packing.bits, self._weights[f"{name}_scale"].float()
        zero_OG = torch.zeros(scale_OG.shape, dtype=torch.int8)
        if not self._packing.symmetric:
            zero_OG = unpack(self._weights[f"{name}_zero_point"].T, bits, outputs).T.contiguous()
        numbers_OI = unpack(self._weights[f"{name}_packed"], bits, inputs)
        return QuantisedMatrix(numbers_OI, scale_OG, zero_OG, bits)

    def matrices(self, config: Any, kind: str) -> dict[str, Callable[[], QuantisedMatrix]]:
        """What reads each matrix of a model whose parts are all packed, by our name of it. kind:
        what the model does."""
        return {
            ours: partial(self._joined, rule, theirs)
            for rule, ours, theirs in _all_tensors(self._names, config, kind)
            if self._packed.issuperset(theirs)
        }

    def _joined(self, rule: Rule, theirs: list[str]) -> QuantisedMatrix:
        parts = [self.matrix(name) for name in theirs]
        if isinstance(rule, Transpose):  # packed in our order
            return parts[0]
        numbers, scales, zeros = (
            rule.join([getattr(part, kind) for part in parts])
            for kind in ("numbers_OI", "scale_OG", "zero_OG")
        )
        return QuantisedMatrix(numbers, scales, zeros, parts[0].bits)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._packed:
            return self._weights[name]
        weight_OI = self.matrix(name).dequantised()
        return weight_OI.T if self._turned.fullmatch(name) else weight_OI

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _all_tensors(names: WeightMap, config: Any, kind: str) -> Iterator[tuple[Rule, str, list[str]]]:
    """Each tensor of a model by our name, those of the backbone behind ``body.``."""
    for rule, ours, theirs in names.tensors(config):
        yield rule, f"body.{ours}", theirs
    yield from names.head_tensors(kind, config)


def _turned(names: WeightMap) -> re.Pattern[str]:
    """The matrices that a format keeps as (inputs, outputs)."""
    modules = [str(rule.theirs) for rule in names.rules if isinstance(rule, Transpose)]
    either = "|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in modules)
    return re.compile(rf"(?:{either})\.weight" if modules else r"(?!)")


def pack_folder(
    folder: Path,
    matrices: Mapping[str, QuantisedMatrix],
    packing: Packing,
    names: WeightMap,
    config: Any,
    *,
    kind: str,
    rest: torch.dtype,
) -> None:
    """Pack matrices of a folder that was just written, in place.

    matrices: by our names in the model. config: the backbone's. kind: what the model does. rest:
    the type of all other tensors.
    """
    tensors = {
        name: tensor.to(rest) for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()
    }
    tables: set[str] = set()
    for rule, ours, theirs in _all_tensors(names, config, kind):
        if ours not in matrices:
            continue
        if ours == f"body.{TOKEN_TABLE}":
            tables.update(theirs)
        for name, part in zip(theirs, _split(rule, matrices[ours], config), strict=True):
            del tensors[name]
            tensors |= _parts_of(name, part, packing, rest)
    packed = {name.removesuffix(".weight_shape") for name in tensors if name.endswith("_shape")}
    matrices_left = {
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.dim() == 2
    }
    # A layer that shares the embedding's weights is in no file, and is there all the same.
    heads = {str(rule.theirs) for rules in names.heads.values() for rule in rules}
    path = folder / "config.json"
    fields = read_json_object(path)
    fields |= {
        "dtype": str(rest).removeprefix("torch."),
        QUANTIZATION: packing.description(
            sorted((matrices_left | heads) - packed), embeddings=bool(tables)
        ),
    }
    path.write_text(to_json(fields, indent=2) + "\n", encoding="utf-8")
    hidden = folder / f".{WEIGHTS_FILE}"
    write_tensors(hidden, tensors)
    os.replace(hidden, folder / WEIGHTS_FILE)


def _split(rule: Rule, matrix: QuantisedMatrix, config: Any) -> list[QuantisedMatrix]:
    if isinstance(rule, Transpose):
        return [matrix]
    parts = (
        rule.split(part, config) for part in (matrix.numbers_OI, matrix.scale_OG, matrix.zero_OG)
    )
    return [
        QuantisedMatrix(numbers, scale, zero, matrix.bits)
        for numbers, scale, zero in zip(*parts, strict=True)
    ]


def _parts_of(
    name: str, matrix: QuantisedMatrix, packing: Packing, rest: torch.dtype
) -> dict[str, Tensor]:
    parts = {
        f"{name}_packed": pack(matrix.numbers_OI, matrix.bits),
        # In the type of the rest, in which transformers then unpacks.
        f"{name}_scale": matrix.scale_OG.to(rest),
        f"{name}_shape": torch.tensor(matrix.numbers_OI.shape),
    }
    if not packing.symmetric:
        parts[f"{name}_zero_point"] = pack(matrix.zero_OG.T, matrix.bits).T.contiguous()
    return parts
