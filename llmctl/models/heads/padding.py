"""Sizes that vary from batch to batch, and texts that are filled up to one length.

B texts, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rounded_up(size: int, step: int) -> int:
    """The next multiple of ``step``.

    For each new shape of a bf16 product a processor compiles a kernel, which takes longer than
    many products (about 6 ms and 1 MB): sizes that vary from batch to batch are rounded up.
    """
    return -(-size // step) * step


def read_padded(decoder: Any, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """A decoder's hidden states (B, T, D) of texts with padding behind them.

    mask_BT: true where a token is no padding. From left to right no token sees what is behind it;
    where the decoder reads both ways the padding is masked.
    """
    hidden_BTD: Tensor
    if not decoder.config.sees_both_sides() or bool(mask_BT.all()):
        hidden_BTD = decoder(input_ids_BT)
    else:
        T = input_ids_BT.shape[1]
        hidden_BTD = decoder(input_ids_BT, mask_BT[:, None, :].expand(-1, T, -1))
    return hidden_BTD
