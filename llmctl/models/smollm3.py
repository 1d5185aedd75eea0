"""SmolLM3: a Llama in which every fourth layer knows no positions (Bakouch et al. 2025).

Notable: queries and keys of those layers are not turned (NoPE, Kazemnejad et al. 2023,
arXiv:2305.19466; one layer in four as Yang et al. 2025, arXiv:2501.18795), which carries further
in long texts. Left out: attention in windows, which the class in transformers has and no published
model uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmctl.models import llama
from llmctl.models.config_json import FieldError, Only, Read, check_full_attention, shown
from llmctl.models.spec import HUGGING_FACE

PUBLISHED_INTERVAL = 4
PUBLISHED_THETA = 2_000_000.0


class SmolLM3Config(llama.LlamaConfig):
    """The shape of a SmolLM3."""

    model_type: ClassVar[str] = "smollm3"
    layers_differ = True
    qk_norm: Literal[False] = False
    """Normalise each head's queries and keys, which a SmolLM3 does not."""
    rope_theta: float = Field(PUBLISHED_THETA, gt=0.0)
    """Base of the rotary angles; more for longer contexts."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""
    no_rope_every: int = Field(PUBLISHED_INTERVAL, ge=0, strict=True)
    """Every so-manieth layer knows no positions. 0: all know them."""

    def is_turned(self, layer: int) -> bool:
        return not self.no_rope_every or (layer + 1) % self.no_rope_every != 0

    def own_fields(self) -> dict[str, Any]:
        layers = range(self.num_layers)
        return {
            **super().own_fields(),
            "no_rope_layers": [int(self.is_turned(layer)) for layer in layers],
            "no_rope_layer_interval": self.no_rope_every or self.num_layers + 1,
            "use_sliding_window": False,
            "layer_types": ["full_attention"] * self.num_layers,
            "pad_token_id": None,  # else transformers takes the published vocabulary's
        }


FIELDS = llama.field_table(
    "a SmolLM3",
    {
        "num_key_value_heads": Read("num_kv_heads", int, 4, null=0),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
    },
    {**llama.ONLY, "use_sliding_window": Only((None, False), llama.NO_WINDOW)},
    # Of no meaning without use_sliding_window.
    ("max_window_layers", "sliding_window"),
)
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> SmolLM3Config:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what such a model does not have here.
    """
    fields = {"rope_theta": PUBLISHED_THETA, **fields}
    layers = fields.pop("no_rope_layers", None)
    every = fields.pop("no_rope_layer_interval", PUBLISHED_INTERVAL)
    check_full_attention(fields.pop("layer_types", None))
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise FieldError(f"no_rope_layer_interval is {shown(every)}, not a whole number above 0")
    return FIELDS.build(
        SmolLM3Config, fields, no_rope_every=every if layers is None else _period(layers, every)
    )


def _period(layers: Any, usual: int) -> int:
    """Every how manieth layer knows no positions, of a list of 1 where a layer does; 0: none."""
    if not isinstance(layers, list) or any(layer not in (0, 1) for layer in layers):
        raise FieldError(f"no_rope_layers is {shown(layers)}, not a list of 0 and 1")
    for period in (usual, *range(1, len(layers) + 1)):
        if layers == [int((number + 1) % period != 0) for number in range(len(layers))]:
            return period
    if all(layers):
        return 0
    raise FieldError(
        f"no_rope_layers is {shown(layers)}: only every so-manieth layer can be one without "
        "positions"
    )


_LLAMA = llama.SPECS[0]
SPEC = replace(
    _LLAMA,
    name="smollm3",
    config=SmolLM3Config,
    weights={HUGGING_FACE: replace(_LLAMA.weights[HUGGING_FACE], what=FIELDS.what)},
    model_type="smollm3",
    class_prefix="SmolLM3",
    from_hugging_face=from_hugging_face,
    scaling=None,
)
