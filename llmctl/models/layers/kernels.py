"""What a device computes fast: which kernels it has, and in which type blocks add up there.

B batch, T tokens, D width, N heads, H head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_capability = (0, 0)


def set_device_capability(device: torch.device) -> None:
    """Let training take the kernels that a GPU has, by its compute capability. To be called before
    a model is compiled, as that can't be asked for in between."""
    global _capability
    if device.type == "cuda":
        _capability = torch.cuda.get_device_capability(device)


def suits_cudnn(q_BNTH: Tensor) -> bool:
    """Whether cuDNN's kernel does it: on a Hopper GPU it takes two thirds of the time of the one
    that PyTorch chooses for training."""
    return (
        q_BNTH.device.type == "cuda"
        and q_BNTH.dtype in (torch.bfloat16, torch.float16)
        and q_BNTH.requires_grad
        and q_BNTH.shape[-1] % 8 == 0
        and q_BNTH.shape[-1] <= 128
        and _capability[0] == 9
    )


def has_varlen_attention(dropout: float) -> bool:
    """Whether a GPU has a kernel that goes by the bounds of texts: a flash one, in bf16, where a
    mask costs the whole square."""
    return torch.is_autocast_enabled("cuda") and not dropout and _capability >= (8, 0)


def cast_residual_stream(x_BTD: Tensor) -> Tensor:
    """What blocks add to, in the type of the products on an accelerator: a block there takes as
    long as its reading and writing between the products, and this is half of that."""
    device = x_BTD.device.type
    if device == "cuda" and torch.is_autocast_enabled(device):
        return x_BTD.to(torch.get_autocast_dtype(device))
    return x_BTD
