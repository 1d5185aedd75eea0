"""Operations of a network, from its shape: what a training will cost before a step is done.

Each weight that a token is multiplied with costs six, two forward and four backward; attention's
scores and what they mix cost as many for each pair of a token and a token it sees (Kaplan et al.
2020, table 1). A multiplication and an addition are two operations.
"""

from __future__ import annotations

from llmctl.models.spec import Backbone

OPERATIONS = 6.0
"""For a weight and a token, forward and backward."""


def matrix_weights(backbone: Backbone) -> int:
    """Weights of a backbone's matrices; it may be on the meta device."""
    return sum(
        parameter.numel()
        for name, parameter in backbone.named_parameters()
        if backbone.role(name).kind == "matrix"
    )


def multiplied_weights(backbone: Backbone) -> int:
    """Weights that each token is multiplied with: the matrices and the output layer, also where
    that is the token embedding."""
    return matrix_weights(backbone) + backbone.config.hidden_size * backbone.config.vocab_size


def flops_per_token(backbone: Backbone, length: int, head_weights: float) -> float:
    """Operations of a forward and a backward pass for each token of a row of ``length``.

    head_weights: those of the heads that a token is multiplied with, on average.
    """
    config = backbone.config
    # A causal row needs half of the scores.
    seen = config.attended(length) * (1 if backbone.kind == "decoder" else 2)
    attention = seen * config.attention_width
    return OPERATIONS * (matrix_weights(backbone) + attention + head_weights)
