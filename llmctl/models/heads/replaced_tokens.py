"""The head that tells replaced tokens, and the pair of networks that learn it (Clark et al. 2020,
§2): a small generator puts likely tokens in the place of hidden ones, and the discriminator says of
each token whether it is the text's own.

    x̂ₜ ~ softmax(G(x_masked)ₜ)  where t is hidden, else xₜ;     D(x̂)ₜ = P(x̂ₜ ≠ xₜ)

B batch, T tokens, D width, M hidden tokens, R of them at a time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.models.heads.base import Head
from llmctl.models.heads.cross_entropy import rows_at_a_time
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers.feed_forward import ACTIVATIONS
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone


class ReplacedTokenDetector(nn.Module):
    """The discriminator: an encoder with a logit for each token, above 0 where it looks
    replaced."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        width = body.config.hidden_size
        self.transform = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)
        for layer in (self.transform, self.output):
            initialise(layer, body.config.initializer_range)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits (B, T), in fp32, that each token was replaced."""
        activation = ACTIVATIONS[self.body.config.activation]
        return self.output(activation(self.transform(hidden_BTD))).squeeze(-1).float()


class DetectorWithGenerator(ReplacedTokenDetector):
    """The discriminator beside the generator that it learns from, which shares its embeddings."""

    def __init__(self, body: Backbone, generator: MaskedLM) -> None:
        """generator: of embeddings as wide as the body's, which take the place of its own."""
        super().__init__(body)
        self.generator = generator
        self._shared = [name for name, part in body.named_children() if _embeds(body, part)]
        for name in self._shared:
            setattr(generator.body, name, getattr(body, name))
        # A checkpoint has what is shared once.
        self.register_state_dict_post_hook(_without_shared)
        self.register_load_state_dict_pre_hook(_with_shared)

    def alone(self) -> ReplacedTokenDetector:
        """The discriminator with the same weights."""
        detector = ReplacedTokenDetector(self.body)
        detector.transform, detector.output = self.transform, self.output
        return detector


def _embeds(body: Backbone, part: nn.Module) -> bool:
    """Whether a part is applied before the first layer, and as wide as the embeddings."""
    before = body.lowest(0)
    return any(part is one for one in before) and not isinstance(part, nn.Linear)


def _without_shared(
    module: DetectorWithGenerator, state: dict[str, Tensor], prefix: str, metadata: object
) -> None:
    for name, _ in _shared_names(module):
        state.pop(prefix + name, None)


def _with_shared(
    module: DetectorWithGenerator, state: dict[str, Tensor], prefix: str, *rest: object
) -> None:
    for name, own in _shared_names(module):
        if prefix + own in state:
            state[prefix + name] = state[prefix + own]


def _shared_names(module: DetectorWithGenerator) -> list[tuple[str, str]]:
    """The names of shared tensors in the generator, and in the discriminator."""
    return [
        (f"generator.body.{part}.{name}", f"body.{part}.{name}")
        for part in module._shared
        for name, _ in getattr(module.body, part).named_parameters()
    ]


@torch.no_grad()
def sample_tokens(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, drawn_M: Tensor) -> Tensor:
    """A token for each row from softmax(W h + b), (M,) int64, by the number drawn for it.

    drawn_M: uniform in [0, 1). The token is the first that the probabilities up to and with it sum
    to more than that: the distribution is the one of adding Gumbel noise to all V logits and taking
    the largest, by one number for a token instead of V, which is what makes it cheap to draw each
    by its place, however a batch is divided. A few rows' logits are there at a time.
    """
    device = hidden_MD.device.type
    low = torch.is_autocast_enabled(device)
    product_type = torch.get_autocast_dtype(device) if low else hidden_MD.dtype
    sampled_M = torch.empty(len(hidden_MD), dtype=torch.int64, device=hidden_MD.device)
    rows = rows_at_a_time(hidden_MD.device, len(weight_VD))
    low_DV = weight_VD.to(product_type).T
    with torch.autocast(device, enabled=False):
        for begin in range(0, len(hidden_MD), rows):
            part = slice(begin, begin + rows)
            z_RV = (hidden_MD[part].to(product_type) @ low_DV).float().add_(bias_V)
            z_RV.sub_(z_RV.amax(1, keepdim=True)).exp_()
            sampled_M[part] = _pick(z_RV, drawn_M[part])
    return sampled_M


COLUMNS_SUMMED = 64
"""Weights that are summed before the running sum, which a processor takes one after another."""


def _pick(weight_RV: Tensor, drawn_R: Tensor) -> Tensor:
    """The first column of each row up to which its weights sum to more than the share drawn."""
    R, V = weight_RV.shape
    whole = V - V % COLUMNS_SUMMED
    sums_RK = weight_RV[:, :whole].view(R, -1, COLUMNS_SUMMED).sum(2)
    rest_R1 = weight_RV[:, whole:].sum(1, keepdim=True)
    running_RK = torch.cat([sums_RK, rest_R1], 1).cumsum(1, dtype=torch.float64)
    wanted_R1 = drawn_R[:, None].double() * running_RK[:, -1:]
    block_R1 = torch.searchsorted(running_RK, wanted_R1, right=True)
    # Rounding may leave the last share wanting: then it is the last block that weighs anything.
    block_R1 = torch.minimum(block_R1, (running_RK < running_RK[:, -1:]).sum(1, keepdim=True))
    before_R1 = running_RK.gather(1, (block_R1 - 1).clamp(min=0)) * (block_R1 > 0)
    places_RS = block_R1 * COLUMNS_SUMMED + torch.arange(COLUMNS_SUMMED, device=weight_RV.device)
    inside_RS = places_RS < V
    own_RS = weight_RV.gather(1, places_RS.clamp(max=V - 1)).double() * inside_RS
    within_RS = before_R1 + own_RS.cumsum(1)
    column_R1 = torch.searchsorted(within_RS, wanted_R1, right=True)
    heaviest_R1 = (within_RS < within_RS[:, -1:]).sum(1, keepdim=True)
    return (block_R1 * COLUMNS_SUMMED + torch.minimum(column_R1, heaviest_R1))[:, 0]


class ReplacedTokensHead(Head):
    """That of a discriminator."""

    kind, described = "electra", "a detector of replaced tokens"
    network = ReplacedTokenDetector
    endings = ("ForPreTraining",)

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> ReplacedTokenDetector:
        if "output.weight" not in tensors:
            raise InputError(
                "the model has no head that tells replaced tokens; give --from a run of llmctl "
                "pretrain --task electra, or a discriminator"
            )
        return ReplacedTokenDetector(body)
