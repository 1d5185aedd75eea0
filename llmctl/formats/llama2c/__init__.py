"""Models of llama2.c (Karpathy 2023): a Llama's weights in one ``.bin`` file, and its pieces with
their scores in another beside it.

The file is seven whole numbers (width, feed-forward width, layers, heads, key/value heads, pieces,
negative where the output layer is its own, and positions), then fp32 matrices in a fixed order,
each of all layers together. Heads are laid out as Meta has them: see ``Interleaved``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmctl.errors import InputError, read_errors_naming
from llmctl.formats.base import Pretrained
from llmctl.formats.description import Purpose
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models.gguf_names import EMBEDDING_TENSOR, GGUF_ARCHITECTURES, OUTPUT_TENSOR
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.scored_pieces import build_scored
from llmctl.tokenizers.token_bytes import SPACE_MARK

SUFFIX = ".bin"
NUMBERS_OF_HEAD = 7
FIRST_PIECES = ("<unk>", "<s>", "</s>")
"""The pieces of the ids 0 to 2; files have line ends around two of them."""
EPSILON = 1e-5
"""What is added to the mean square in every normalisation there."""
MOST = 1 << 20
"""Sides beyond this are no model's, so that other ``.bin`` files aren't taken for one."""


class _Shape(NamedTuple):
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    pieces: int
    positions: int


class Llama2c:
    """What llama2.c's export.py writes as version 0, and its run.c runs."""

    name = "llama2.c"

    def recognises(self, path: Path) -> bool:
        """Whether a file begins with seven numbers of whose model it has just the size."""
        return path.suffix == SUFFIX and path.is_file() and _shape_in(path) is not None

    def open(self, path: Path) -> Pretrained:
        """The model of a file. Raises InputError where its tokenizer isn't beside it."""
        shape = _shape_in(path)
        if shape is None:
            raise InputError(f"{path} is no model of llama2.c, whose size its first numbers tell")
        entry = GGUF_ARCHITECTURES["llama"]
        places = {name: place for name, place in _places(shape) if name}
        kind: Any = entry.spec.config
        try:
            config = kind(
                vocab_size=abs(shape.pieces),
                hidden_size=shape.width,
                intermediate_size=shape.inner,
                num_layers=shape.layers,
                num_heads=shape.heads,
                num_kv_heads=shape.kv_heads,
                max_positions=shape.positions,
                norm_epsilon=EPSILON,
                tie_embeddings=OUTPUT_TENSOR not in places,
            )
        except ValueError as error:
            raise InputError(f"{path} describes no Llama: {error}") from None
        data = np.memmap(path, dtype="<f4", mode="r")
        tensors = LazyTensors(
            {name: partial(_read, path, data, name, *place) for name, place in places.items()}
        )
        names = entry.weights(config)
        beside = _tokenizer_beside(path, abs(shape.pieces))
        return Pretrained(
            path=path,
            files=(path, beside),
            fields={},
            config=config,
            tokenizer=_read_tokenizer(beside, abs(shape.pieces)),
            purpose=Purpose("causal_lm"),
            tensors=LazyTensors(names.model_readers("causal_lm", tensors, config)),
            architecture=entry.spec,
        )

    def save(
        self, folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Raises InputError: such files are only read."""
        raise InputError("models are not written as llama2.c's; export to gguf, onnx or hf")


def _shape_in(path: Path) -> _Shape | None:
    """The shape that a file begins with; None where the file isn't as long as that asks for."""
    with read_errors_naming(path), path.open("rb") as stream:
        head = stream.read(4 * NUMBERS_OF_HEAD)
    if len(head) < 4 * NUMBERS_OF_HEAD:
        return None
    shape = _Shape(*struct.unpack(f"<{NUMBERS_OF_HEAD}i", head))
    sides = (*shape[:5], abs(shape.pieces), shape.positions)
    if not all(0 < side < MOST for side in sides) or shape.width % shape.heads:
        return None
    *_, (_, (begin, sides_of_last)) = _places(shape)
    expected = 4 * (begin + prod(sides_of_last))
    return shape if path.stat().st_size == expected else None


def _places(shape: _Shape) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    """The name, as GGUF has it, of each tensor, with where it begins in numbers of the file and its
    shape; the last has the end of the file."""
    D, F, V = shape.width, shape.inner, abs(shape.pieces)
    head_size = D // shape.heads
    K = shape.kv_heads * head_size
    begin = NUMBERS_OF_HEAD
    yield EMBEDDING_TENSOR, (begin, (V, D))
    begin += V * D
    of_layers: dict[str, tuple[int, ...]] = {
        "attn_norm": (D,), "attn_q": (D, D), "attn_k": (K, D), "attn_v": (K, D),
        "attn_output": (D, D), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_down": (D, F),
        "ffn_up": (F, D),
    }  # fmt: skip
    for name, sides in of_layers.items():
        for layer in range(shape.layers):
            yield f"blk.{layer}.{name}.weight", (begin, sides)
            begin += prod(sides)
    yield "output_norm.weight", (begin, (D,))
    begin += D
    # Tables of the rotary angles, which are made anew.
    begin += shape.positions * head_size
    last = (V, D) if shape.pieces < 0 else (0,)
    yield (OUTPUT_TENSOR if shape.pieces < 0 else ""), (begin, last)


def _read(path: Path, data: np.ndarray, name: str, begin: int, sides: tuple[int, ...]) -> Tensor:
    tensor = torch.from_numpy(np.array(data[begin : begin + prod(sides)])).view(sides)
    if not torch.isfinite(tensor).all():
        raise InputError(
            f"{path}: the tensor {name} has numbers that are not finite; the file is damaged: take "
            "another"
        )
    return tensor


def _tokenizer_beside(path: Path, pieces: int) -> Path:
    """The file of a model's pieces: tokenizer.bin, or the one that is called tok….bin."""
    found = sorted(other for other in path.parent.glob(f"tok*{SUFFIX}") if other != path)
    named = [other for other in found if other.name in ("tokenizer.bin", f"tok{pieces}.bin")]
    if len(named or found) != 1:
        raise InputError(
            f"{path} needs its tokenizer beside it, tokenizer.bin or tok{pieces}.bin: there "
            f"{'are several' if found else 'is none'}; copy the one that belongs to it there"
        )
    return (named or found)[0]


def _read_tokenizer(path: Path, count: int) -> Tokenizer:
    """The tokenizer of a file with so many pieces: the longest one's length, and of each its score,
    its length and its bytes."""
    with read_errors_naming(path):
        data = path.read_bytes()
    pieces: list[str | None] = []
    scores: list[float] = []
    at = 4
    for number in range(count):
        if at + 8 > len(data):
            raise InputError(
                f"{path} has {number} pieces, and the model {count}; take its own file"
            )
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        if length < 0 or at > len(data):
            raise InputError(f"{path} ends within piece {number}; copy it again")
        text = data[at - length : at].decode("utf-8", errors="replace")
        pieces.append(text.replace(" ", SPACE_MARK))
        scores.append(score)
    if at != len(data):
        raise InputError(f"{path} has more than the {count} pieces of the model; take its own file")
    pieces[: len(FIRST_PIECES)] = FIRST_PIECES
    tokenizer = build_scored(
        pieces,
        scores,
        special=FIRST_PIECES,
        unknown=FIRST_PIECES[0],
        space_first=True,
        begins=FIRST_PIECES[1],
    )
    # Texts follow one another there with a start between them and no end.
    tokenizer.further_ends = frozenset({1, 2})
    return tokenizer
