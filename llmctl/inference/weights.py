"""A model's weights in the form in which writing reads them fastest.

Each new token of a text reads every weight once, so on a processor speed is memory bandwidth: what
counts is the bytes and the order they lie in. Training's layers (F.linear on row-major weights)
reach the full bandwidth for none of the products of writing: with one row the longer side should
lie contiguously; with several oneDNN's own packing is twice as fast. ``int8`` is in quantised.py,
``int4`` in int4.py; both by kernels of our own, where a compiler is there to make them, in native/.

M rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.errors import UsageError
from llmctl.inference.int4 import INT4_GROUPS, Int4Linear
from llmctl.inference.native import NativeLinear
from llmctl.inference.native.library import NoKernelsError, are_made_for_this, library
from llmctl.inference.quantised import Int8Linear, OneRowInt8Linear
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.layers.feed_forward import ACTIVATIONS, FeedForward
from llmctl.models.layers.quantised_embedding import QuantisedEmbedding
from llmctl.models.layers.quantised_matrix import READ_QUANTISED, QuantisedMatrix
from llmctl.models.spec import Backbone
from llmctl.workspace.tensors import aligned

WeightType = Literal["fp32", "bf16", "int8", "int4"]
Kernels = Literal["auto", "torch", "native"]
"""Whose products int8 and int4 weights are multiplied by: PyTorch's, or those that this machine's C
compiler makes of our own; auto: see ``chosen_kernels``."""

FEWEST_ROWS, MOST_ROWS = 8, 256
"""For which oneDNN packs; either serves any number, and a few per cent to a half slower."""

Layer = Callable[[Tensor, Tensor | None], nn.Module]
"""From a weight (O, I) and a bias to a layer."""


class OneRowLinear(nn.Module):
    """For products with one row: the weight's longer side lies contiguously."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        O, I = weight_OI.shape  # noqa: E741
        weight_OI = weight_OI.detach()
        self.weight_OI = aligned(
            weight_OI.t().contiguous().t() if O > I else weight_OI.contiguous()
        )
        self.bias_O = None if bias_O is None else bias_O.detach()

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[-1]:
            return F.linear(x, self.weight_OI, self.bias_O)
        x_I = x.reshape(-1)
        if self.bias_O is None:
            y_O = torch.mv(self.weight_OI, x_I)
        else:
            y_O = torch.addmv(self.bias_O, self.weight_OI, x_I)
        return y_O.view(*x.shape[:-1], -1)


FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
"""Activations that oneDNN applies within a product: their names there."""


class PackedLinear(nn.Module):
    """For products with several rows: oneDNN's packing, in the weight's type."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, rows: int) -> None:
        super().__init__()
        self.dtype = weight_OI.dtype
        self.fused_activation: tuple[str, str] | None = None
        """An activation of the result, which then stays in the weight's type: see ``FUSED``."""
        rows = min(max(rows, FEWEST_ROWS), MOST_ROWS)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), rows)
        self.bias_O = None if bias_O is None else bias_O.detach().to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        name, form = self.fused_activation or ("none", "")
        y = torch.ops.mkldnn._linear_pointwise.default(
            x.to(self.dtype), self.packed, self.bias_O, name, [], form
        )
        return y if self.fused_activation else y.float()


class Bf16Linear(nn.Module):
    """A layer with bf16 weights where oneDNN has no products for them."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight_OI = weight_OI.detach().bfloat16()
        self.bias_O = None if bias_O is None else bias_O.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight_OI, self.bias_O).to(x.dtype)


def chosen_kernels(
    kernels: Kernels,
    dtype: WeightType,
    device: torch.device,
    note: Callable[[str], None] | None = None,
) -> Kernels:
    """Whose products weights of a type are multiplied by, where that was left open: ours, on a
    processor that they are made for and with a compiler that makes them, else PyTorch's.

    note: told where a compiler is all that lacks.
    """
    if kernels != "auto":
        return kernels
    if dtype not in _NATIVE or device.type != "cpu" or not are_made_for_this():
        return "torch"
    try:
        library()
    except NoKernelsError as error:
        if note is not None:
            note(f"{dtype} by PyTorch's kernels, which write more slowly than ours: {error.said}")
        return "torch"
    return "native"


def prepare(
    model: CausalLM | EncoderDecoderLM,
    dtype: WeightType,
    *,
    rows: int,
    reader: nn.Module | None = None,
    kernels: Kernels = "torch",
) -> Callable[[Tensor], Tensor] | None:
    """Put a model's linear layers into another form, in place, for writing alone; returns its
    output layer, or None where that stays.

    rows: how many are written at once. reader: what reads its sources. Weights may lie anywhere in
    a file before; afterwards no matrix of a product does. On a processor norms, what lies between
    the layers and embeddings that the folder has in full stay fp32. Raises UsageError for a type
    that the device can't do, or kernels that it can't have.
    """
    device = model.body.like_states().device
    kernels = chosen_kernels(kernels, dtype, device)
    if kernels == "native":
        _check_native(device, dtype)
    if device.type != "cpu":
        if dtype in ("int8", "int4"):
            raise UsageError(
                f"--dtype {dtype} is for processors, and the model is on {device.type}; use bf16, "
                "or --device cpu"
            )
        if dtype == "bf16":
            for network in (model, reader):
                if network is not None:
                    network.to(torch.bfloat16)
        return None
    layer = _NATIVE[dtype] if kernels == "native" else _layer(dtype, rows)
    assert isinstance(model.body, nn.Module)
    bodies = [model.body] if reader is None else [model.body, reader]
    if layer is None:
        for network in (model, *bodies[1:]):
            _align(network, tables=True)
        return None
    table: nn.Linear | nn.Embedding = model.output or model.body.embedding()
    head = _in_form(table, layer)
    for network in bodies:
        _replace_linears(network, layer)
        _align(network, tables=False)
    if dtype in ("int8", "int4"):
        keep_table_quantised(model.body)
    return head


@torch.no_grad()
def _align(network: nn.Module, *, tables: bool) -> None:
    """Copy weights that lie in a file where PyTorch would have put none, in place. tables: those
    of embeddings, too, which are not looked up alone."""
    for module in network.modules():
        if tables or not isinstance(module, nn.Embedding):
            for own in module.parameters(recurse=False):
                own.data = aligned(own.data)


def keep_table_quantised(body: Backbone) -> None:
    """Keep the token embeddings in whole numbers, in place, where the model's folder has them so;
    else they stay fp32."""
    table = body.embedding()
    matrix = _kept_numbers(table)
    if matrix is None:
        return
    factor = getattr(table, "factor", 1.0)
    for parent in body.modules():
        for name, child in list(parent.named_children()):
            if child is table:
                setattr(parent, name, QuantisedEmbedding(matrix, factor=factor))


def prepare_reader(network: nn.Module, dtype: WeightType, *, rows: int) -> None:
    """Put a network that reads whole texts, on a processor, into another form, in place.

    rows: tokens of a batch. fp32 stays as it is.
    """
    layer = None if dtype == "fp32" else _layer(dtype, rows)
    if layer is not None:
        _replace_linears(network, layer)
    if dtype in ("int8", "int4") and isinstance(network, Backbone):
        keep_table_quantised(network)


def _replace_linears(network: nn.Module, layer: Layer) -> None:
    linears = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                linears.append((parent, name))
            elif isinstance(child, nn.Dropout):  # nothing here, but ten microseconds a call
                setattr(parent, name, nn.Identity())

    def replace(place: tuple[nn.Module, str]) -> None:
        parent, name = place
        setattr(parent, name, _in_form(getattr(parent, name), layer))

    # To turn a matrix keeps one core busy; other forms are made by all of them already.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list((pool.map if layer is OneRowLinear else map)(replace, linears))
    for parent in network.modules():
        if isinstance(parent, FeedForward) and isinstance(parent.expand, PackedLinear):
            _fuse_activation(parent, parent.expand)


def _in_form(part: nn.Linear | nn.Embedding, layer: Layer) -> nn.Module:
    """A layer with the weights of another, or of embeddings, in another form."""
    bias = part.bias if isinstance(part, nn.Linear) else None
    of = _OF_NUMBERS.get(layer)
    kept = _kept_numbers(part) if of else None
    if of is None or kept is None or kept.bits != 4 or kept.group not in INT4_GROUPS:
        return layer(part.weight, bias)
    return of(kept, bias)


_NATIVE: dict[str, Layer] = {"int8": NativeLinear.int8, "int4": NativeLinear.int4}
_OF_NUMBERS: dict[Layer, Callable[[QuantisedMatrix, Tensor | None], nn.Module]] = {
    Int4Linear: Int4Linear.of,
    NativeLinear.int4: NativeLinear.of,
}
"""The layers with 4 bits that take the numbers of a folder as they are."""


def _check_native(device: torch.device, dtype: WeightType) -> None:
    if device.type != "cpu":
        raise UsageError(
            f"--kernels native is for processors, and the model is on {device.type}; leave it out, "
            "or add --device cpu"
        )
    if dtype not in _NATIVE:
        raise UsageError(
            f"--kernels native multiplies int8 and int4, not {dtype}; add --dtype int8 or int4, or "
            "leave it out"
        )


def _kept_numbers(part: nn.Linear | nn.Embedding) -> QuantisedMatrix | None:
    """The whole numbers that a layer's folder has, as long as its weights are these."""
    read = getattr(part, READ_QUANTISED, None)
    matrix: QuantisedMatrix | None = read() if read is not None else None
    return matrix if matrix and torch.equal(matrix.dequantised(), part.weight) else None


def _fuse_activation(feed_forward: FeedForward, expand: PackedLinear) -> None:
    for name, activation in FUSED.items():
        if feed_forward.activation is ACTIVATIONS[name]:
            expand.fused_activation, feed_forward.activation = activation, nn.Identity()


def _layer(dtype: WeightType, rows: int) -> Layer | None:
    packs = torch.backends.mkldnn.is_available()
    if dtype == "int8":
        if not packs:
            raise UsageError("--dtype int8 needs PyTorch with oneDNN, which this one has not")
        one_row = rows == 1 and OneRowInt8Linear.is_available()
        return OneRowInt8Linear if one_row else Int8Linear
    if dtype == "int4":
        return Int4Linear
    if dtype == "bf16":
        if packs and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return lambda weight, bias: PackedLinear(weight.bfloat16(), bias, rows)
        return Bf16Linear
    if rows == 1:
        return OneRowLinear
    return partial(PackedLinear, rows=rows) if packs else None
