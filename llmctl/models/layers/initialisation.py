"""Fresh weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class Undrawn(TorchFunctionMode):
    """Leaves weights as they are where they would be drawn and made smaller, of a network whose
    weights are read afterwards, or that is built without values: most of the time to build one is
    drawing, and memory that nothing was written to is none. What PyTorch does it with for those
    without values takes a second or two to be imported."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _DRAWING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


_always: ContextVar[bool] = ContextVar("_always", default=False)


@contextmanager
def drawn_as_always() -> Iterator[None]:
    """Draws weights that are read afterwards all the same: what a training draws behind them, with
    the same seed, is then what it has always been."""
    token = _always.set(True)
    try:
        yield
    finally:
        _always.reset(token)


def undrawn() -> AbstractContextManager[object]:
    """``Undrawn``, but within ``drawn_as_always``."""
    return nullcontext() if _always.get() else Undrawn()


_DRAWING = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "div_", "mul_")
"""What that is done with; what a function of torch.nn.init calls is not asked for again."""


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights and zero biases, as BERT and GPT-2 start; to be used with ``apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        with torch.no_grad():
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def start_pre_norm(body: nn.Module, std: float, num_layers: int) -> None:
    """Fresh weights of a pre-norm network as GPT-2's: normal, and smaller by √(2 · layers) where a
    block's result is added to its input, so that the sum does not grow with the depth (Radford et
    al. 2019, §2.3)."""
    body.apply(lambda module: initialise(module, std))
    for name, module in body.named_modules():
        if name.endswith(("attention.output", "feed_forward.contract")):
            assert isinstance(module, nn.Linear)
            module.weight.div_(math.sqrt(2 * num_layers))
