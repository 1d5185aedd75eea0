"""All layers of a Llama, or of its kin, in one call of the compiled kernels.

A token that is written alone costs its products little more than the memory's time; some thousand
small operations between them, one by one from Python, cost as much again. Here there is one call
for all tokens of a step, of however many texts.

T tokens, D width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.inference.native.layers import MatrixStruct, NativeLinear
from llmctl.inference.native.library import library
from llmctl.models.decoder import Block, RotaryDecoder
from llmctl.models.layers.feed_forward import SwiGLU
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.rotary_attention import LlamaAttention
from llmctl.models.layers.sequences import SequenceCache
from llmctl.models.spec import Backbone


class LayerStruct(ctypes.Structure):
    """``Layer`` of llama.c."""

    _fields_ = (
        ("norm_1", ctypes.c_void_p),
        ("norm_2", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("query_key_value", MatrixStruct),
        ("output", MatrixStruct),
        ("gate_up", MatrixStruct),
        ("contract", MatrixStruct),
        ("is_turned", ctypes.c_int64),
    )


class ModelStruct(ctypes.Structure):
    """``Model`` of llama.c."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


class FusedLlama:
    """What reads the next tokens of several texts, each at a place of its own."""

    def __init__(self, body: RotaryDecoder) -> None:
        """body: one that ``suits``. Its weights stay its own."""
        blocks: list[Any] = list(body.layers())
        self._embedding = body.embedding()
        self._kept = [body.cos.contiguous(), body.sin.contiguous()]
        """What the addresses below are those of."""
        self._read = library().llmctl_read
        self._layers = (LayerStruct * len(blocks))(*map(self._layer, blocks))
        self._model = ModelStruct(
            layers=ctypes.addressof(self._layers),
            norm=self._address(body.norm),
            cosines=self._kept[0].data_ptr(),
            sines=self._kept[1].data_ptr(),
            num_layers=len(blocks),
            width=blocks[0].attention.query_key_value.taken,
            heads=blocks[0].attention.num_heads,
            kv_heads=blocks[0].attention.num_kv_heads,
            head_size=blocks[0].attention.head_size,
            inner=blocks[0].feed_forward.contract.taken,
            window=body.config.window(),
            epsilon=blocks[0].norm_1.epsilon,
            scale=blocks[0].attention.head_size ** -0.5,
        )

    @staticmethod
    def suits(body: Backbone) -> TypeGuard[RotaryDecoder]:
        """Whether a network is one that is read here: all its linear layers native, and the rest a
        Llama's, whatever it is called."""
        kind = body.__class__
        if any(getattr(kind, name, None) is not getattr(RotaryDecoder, name) for name in _OWN):
            return False
        if body.config.sees_both_sides() or body.config.wide_layers():
            return False
        blocks: list[Any] = list(body.layers())
        modules = [body.get_submodule("norm"), *(part for one in blocks for part in one.modules())]
        if any(type(module) not in _PLAIN for module in modules):
            return False
        if any(block.attention.scale is not None for block in blocks):
            return False
        shapes = {_shape_of(block) for block in blocks}
        epsilons = {module.epsilon for module in modules if isinstance(module, RMSNorm)}
        return len(shapes) == len(epsilons) == 1

    def read(self, ids: Sequence[int], parts: Sequence[tuple[SequenceCache, int]]) -> Tensor:
        """Read the next tokens of texts, end to end; their keys and values are kept and counted.

        parts: a text's cache, with room, and its number of new tokens. Returns the hidden states
        (T, D) that the output layer takes.
        """
        longest = max(cache.before + cache.length + tokens for cache, tokens in parts)
        assert longest <= len(self._kept[0])
        x_TD = self._embedding(torch.tensor(ids)).float().contiguous()
        table = np.array(
            [
                (
                    cache.keys_LKSH.data_ptr(),
                    cache.values_LKSH.data_ptr(),
                    cache.keys_LKSH.shape[2],
                    cache.before + cache.length,
                    tokens,
                )
                for cache, tokens in parts
            ],
            dtype=np.int64,
        )
        failed = self._read(
            ctypes.addressof(self._model),
            x_TD.data_ptr(),
            table.ctypes.data,
            len(parts),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError
        for cache, tokens in parts:
            cache.length += tokens
        return x_TD

    def _layer(self, block: Any) -> LayerStruct:
        attention, feed_forward = block.attention, block.feed_forward
        return LayerStruct(
            norm_1=self._address(block.norm_1),
            norm_2=self._address(block.norm_2),
            query_norm=self._address(attention.query_norm),
            key_norm=self._address(attention.key_norm),
            query_key_value=attention.query_key_value.struct,
            output=attention.output.struct,
            gate_up=feed_forward.gate_up.struct,
            contract=feed_forward.contract.struct,
            is_turned=attention.is_turned,
        )

    def _address(self, norm: Any) -> int | None:
        """Where a norm's gains lie; None: it does nothing."""
        if isinstance(norm, nn.Identity):
            return None
        self._kept.append(norm.weight.detach().float().contiguous())
        return self._kept[-1].data_ptr()


_PLAIN = {Block, LlamaAttention, NativeLinear, RMSNorm, SwiGLU, nn.Identity}
"""All that there is in the layers of what is read here."""
_OWN = ("forward", "embed", "normalised", "finish")
"""What such a network does as every one with rotary positions."""


def _shape_of(block: Any) -> tuple[Any, ...]:
    attention = block.attention
    heads = attention.num_heads, attention.num_kv_heads, attention.head_size
    return *heads, block.feed_forward.contract.taken
