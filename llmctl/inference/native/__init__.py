"""Kernels in C for writing with int8 and int4 weights on a processor: products, and all layers of a
Llama in one call. This machine's compiler makes them when they are first asked for."""

from llmctl.inference.native.layers import NativeLinear
from llmctl.inference.native.llama import FusedLlama

__all__ = ["FusedLlama", "NativeLinear"]
