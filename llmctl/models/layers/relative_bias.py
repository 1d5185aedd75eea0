"""Relative positions as a learned addition to attention's scores (Raffel et al. 2020, §2.1).

    scores = Q Kᵀ + b,   bₙₜₛ = w[bucket(s − t), n]

Distances share a weight by buckets: half of these hold one distance each, the others ranges that
grow with its logarithm, and the last holds all from a largest distance on. An encoder has buckets
for both directions; a decoder looks back only, so it has twice as many for that. The bias is made
once for all layers.

T queries, S keys, N heads, L distances, K buckets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBias(nn.Embedding):
    """The weight of each bucket and head, (K, N)."""

    buckets: Tensor

    def __init__(
        self, num_buckets: int, num_heads: int, *, max_distance: int, bidirectional: bool
    ) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance, self.bidirectional = max_distance, bidirectional
        far = torch.arange(-max_distance, max_distance + 1)
        table = bucket_of(far, num_buckets, max_distance, bidirectional=bidirectional)
        self.register_buffer("buckets", table, persistent=False)

    def forward(self, queries: int, keys: int) -> Tensor:  # type: ignore[override]
        """The bias (1, N, T, S) of the last ``queries`` of ``keys`` tokens; −∞ where a decoder's
        token would see a later one."""
        device = self.weight.device
        first = keys - queries
        distances_L = torch.arange(1 - keys, queries, device=device)
        if not self.bidirectional:
            distances_L = distances_L.clamp(max=0)
        near_L = distances_L.clamp(-self.max_distance, self.max_distance) + self.max_distance
        bias_NL = super().forward(self.buckets[near_L]).T
        if queries == 1:
            return bias_NL[None, :, None]
        # Row t has the distances from −(first + t) on: a window that moves down by one.
        bias_NTS = bias_NL.unfold(1, keys, 1).flip(1)
        if not self.bidirectional:
            later_TS = torch.ones(queries, keys, dtype=torch.bool, device=device).triu_(first + 1)
            bias_NTS = bias_NTS.masked_fill(later_TS, -math.inf)
        return bias_NTS[None]


def bucket_of(
    distances: Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool
) -> Tensor:
    """The bucket of each distance s − t, int64. Without ``bidirectional`` later tokens are in that
    of the token itself.

    In fp32 and in this order, so that what is between two buckets falls as everywhere else.
    """
    buckets = torch.zeros_like(distances)
    if bidirectional:
        num_buckets //= 2
        buckets += (distances > 0) * num_buckets
        distances = distances.abs()
    else:
        distances = -distances.clamp(max=0)
    exact = num_buckets // 2
    ratio = distances.clamp(min=1).float() / exact
    far = exact + (torch.log(ratio) / math.log(max_distance / exact) * (num_buckets - exact)).to(
        torch.int64
    )
    return buckets + torch.where(distances < exact, distances, far.clamp(max=num_buckets - 1))
