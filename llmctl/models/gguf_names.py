"""What architectures are called in GGUF files: their fields and their tensors, in both directions.

A field of a file's head stands for one of Hugging Face's config.json, so that the architecture's
own table of fields reads it, or has the one value with which the network is as here. Any other
field of the architecture is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmctl.models import ARCHITECTURES
from llmctl.models.config_json import FieldError, shown
from llmctl.models.heads.embed import Pooling
from llmctl.models.layers.rotary import plain_frequencies
from llmctl.models.spec import ModelSpec
from llmctl.models.weight_map import BOTH, Fuse, Rename, Rule, WeightMap

POOLING_NUMBERS: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}
"""By the number that ``pooling_type`` says; 0 is none, 4 a classifier's."""
CLASSIFIES = 4
OUTPUT_TENSOR = "output.weight"
EMBEDDING_TENSOR = "token_embd.weight"


@dataclass(frozen=True)
class GgufArchitecture:
    """The entry of an architecture."""

    name: str
    """The name that ``general.architecture`` has."""
    spec: ModelSpec
    rules: Callable[[Any], tuple[Rule, ...]]
    """The names of a network's tensors, by its configuration."""
    fields: Mapping[str, str]
    """Fields of config.json by those of the head, the architecture's name left out."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of the head with the values that they may have."""
    needed: Mapping[str, Any] = field(default_factory=dict)
    """What a written file must say of a network, by fields of config.json: what it can't say
    otherwise."""
    known: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda fields: {}
    """Fields of config.json that no head says and all who read such files know, from the others."""
    heads: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """The names of what stands on a network, by what the model does."""

    def weights(self, config: Any) -> WeightMap:
        """The names of its tensors."""
        return WeightMap(f"a {self.name}", "", self.rules(config), self.heads)


@dataclass(frozen=True)
class Interleaved(Fuse):
    """Queries, keys and values, the rows of each head of the first two in another order: what is
    turned together lies side by side, where here it lies in the two halves of a head."""

    in_place = False
    head_size: int = 0

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        q, k, v = super().split(tensor, config)
        return [self._turn(q, 2), self._turn(k, 2), v]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        q, k, v = tensors
        return torch.cat(
            [self._turn(q, self.head_size // 2), self._turn(k, self.head_size // 2), v]
        )

    def _turn(self, rows: Tensor, first: int) -> Tensor:
        heads = rows.reshape(-1, first, self.head_size // first, *rows.shape[1:])
        return heads.transpose(1, 2).reshape(rows.shape)


class PlusOne(Rename):
    """A rule by which gains are kept as 1 + w."""

    in_place = False

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        return [1.0 + tensor.float()]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] - 1.0


def _llama_rules(config: Any, *, interleaved: bool) -> tuple[Rule, ...]:
    shares = ("num_heads", "num_kv_heads", "num_kv_heads")
    ours, theirs = "blocks.{}.attention.query_key_value", tuple(f"blk.{{}}.attn_{p}" for p in "qkv")
    fuse: Callable[..., Fuse] = Fuse
    more = {}
    if interleaved:
        fuse, more = Interleaved, {"head_size": config.head_size}
    return (
        Rename("token_embedding", "token_embd"),
        Rename("norm", "output_norm"),
        Rename("blocks.{}.norm_1", "blk.{}.attn_norm"),
        fuse(ours, theirs, shares=shares, **more),
        Fuse(ours, theirs, ("bias",), "qkv_bias", shares=shares),
        Rename("blocks.{}.attention.query_norm", "blk.{}.attn_q_norm", where="qk_norm"),
        Rename("blocks.{}.attention.key_norm", "blk.{}.attn_k_norm", where="qk_norm"),
        Rename("blocks.{}.attention.output", "blk.{}.attn_output"),
        Rename("blocks.{}.norm_2", "blk.{}.ffn_norm"),
        Fuse("blocks.{}.feed_forward.gate_up", ("blk.{}.ffn_gate", "blk.{}.ffn_up")),
        Rename("blocks.{}.feed_forward.contract", "blk.{}.ffn_down"),
    )


def _gemma3_rules(config: Any) -> tuple[Rule, ...]:
    norms = {
        "norm_1": "attn_norm", "attention.query_norm": "attn_q_norm",
        "attention.key_norm": "attn_k_norm", "norm_after_1": "post_attention_norm",
        "norm_2": "ffn_norm", "norm_after_2": "post_ffw_norm",
    }  # fmt: skip
    return (
        *(
            rule
            for rule in _llama_rules(config, interleaved=False)
            if "norm" not in rule.ours and rule.parts == ("weight",)
        ),
        PlusOne("norm", "output_norm"),
        *(PlusOne(f"blocks.{{}}.{o}", f"blk.{{}}.{t}") for o, t in norms.items()),
    )


LARGEST_GEMMA_LAYERS = 62
"""Layers of Gemma 3 27B, the only one whose scores aren't scaled by its heads' width."""


def _gemma3_known(fields: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = fields.get("num_attention_heads") or 1, fields.get("hidden_size", 0)
    shared = width // heads if {type(heads), type(width)} == {int} else 0
    size = fields.get("head_dim", shared)
    largest = fields.get("num_hidden_layers") == LARGEST_GEMMA_LAYERS
    return {
        "head_dim": size, "num_key_value_heads": fields.get("num_key_value_heads", heads),
        "query_pre_attn_scalar": shared if largest else size, "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": None,
    }  # fmt: skip


def _gpt2_rules(config: Any) -> tuple[Rule, ...]:
    layer = {
        "norm_1": "attn_norm", "attention.query_key_value": "attn_qkv",
        "attention.output": "attn_output", "norm_2": "ffn_norm",
        "feed_forward.expand": "ffn_up", "feed_forward.contract": "ffn_down",
    }  # fmt: skip
    return (
        Rename("token_embedding", "token_embd"),
        Rename("position_embedding", "position_embd"),
        Rename("norm", "output_norm", BOTH),
        *(Rename(f"blocks.{{}}.{o}", f"blk.{{}}.{t}", BOTH) for o, t in layer.items()),
    )


def _bert_rules(config: Any) -> tuple[Rule, ...]:
    layer = {
        "attention.output": "attn_output", "norm_1": "attn_output_norm",
        "feed_forward.expand": "ffn_up", "feed_forward.contract": "ffn_down",
        "norm_2": "layer_output_norm",
    }  # fmt: skip
    return (
        Rename("token_embedding", "token_embd"),
        Rename("position_embedding", "position_embd"),
        Rename("segment_embedding", "token_types"),
        Rename("norm", "token_embd_norm", BOTH),
        Fuse(
            "blocks.{}.attention.query_key_value",
            tuple(f"blk.{{}}.attn_{part}" for part in "qkv"),
            BOTH,
        ),
        *(Rename(f"blocks.{{}}.{o}", f"blk.{{}}.{t}", BOTH) for o, t in layer.items()),
    )


_DECODER_HEADS = {"causal_lm": (Rename("output", "output", where="not tie_embeddings"),)}
_SHAPE = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size",
          "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
          "context_length": "max_position_embeddings"}  # fmt: skip
_LLAMA_FIELDS = {
    **_SHAPE,
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_NONE = (None, 0, False)
_ONLY_VALUES = {
    "attention.causal": (True,),
    "attention.sliding_window": _NONE,
    "attention.scale": _NONE,
    "expert_count": _NONE,
    "expert_used_count": _NONE,
    "use_parallel_residual": _NONE,
}


def _of_llamas(name: str, *, interleaved: bool, **known: Any) -> GgufArchitecture:
    return GgufArchitecture(
        name,
        ARCHITECTURES[name],
        lambda config: _llama_rules(config, interleaved=interleaved),
        _LLAMA_FIELDS,
        _ONLY_VALUES,
        {"is_causal": True, "sliding_window": None},
        lambda fields: known,
        _DECODER_HEADS,
    )


_ENTRIES = (
    _of_llamas("llama", interleaved=True),
    _of_llamas("qwen2", interleaved=False),
    _of_llamas("qwen3", interleaved=False),
    _of_llamas("smollm3", interleaved=True, no_rope_layer_interval=4),
    GgufArchitecture(
        "gemma3",
        ARCHITECTURES["gemma3"],
        _gemma3_rules,
        {**_LLAMA_FIELDS, "attention.sliding_window": "sliding_window"},
        {
            **{n: v for n, v in _ONLY_VALUES.items() if n != "attention.sliding_window"},
            "attention.sliding_window_pattern": (6,), "rope.freq_base_swa": (10000.0,),
            "final_logit_softcapping": _NONE, "attn_logit_softcapping": _NONE,
        },
        known=_gemma3_known,
        heads=_DECODER_HEADS,
    ),
    GgufArchitecture(
        "gpt2",
        ARCHITECTURES["gpt"],
        _gpt2_rules,
        {
            "block_count": "n_layer", "embedding_length": "n_embd", "context_length": "n_positions",
            "feed_forward_length": "n_inner", "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        _ONLY_VALUES,
        {
            "activation_function": "gelu_new", "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
        heads=_DECODER_HEADS,
    ),
    GgufArchitecture(
        "bert",
        ARCHITECTURES["bert"],
        _bert_rules,
        {**_SHAPE, "attention.layer_norm_epsilon": "layer_norm_eps"},
        {"attention.causal": (False,)},
        {"hidden_act": "gelu"},
        heads={"classify": (Rename("pooler", "cls", BOTH), Rename("output", "cls.output", BOTH))},
    ),
)  # fmt: skip
GGUF_ARCHITECTURES = {entry.name: entry for entry in _ENTRIES}
"""By ``general.architecture``."""
ALSO_AS = {"mistral": "llama", "gpt": "gpt2"}
"""Architectures that are another's there."""


def entry_of(spec: ModelSpec) -> GgufArchitecture | None:
    """The entry that holds networks of an architecture; None: there is none."""
    return GGUF_ARCHITECTURES.get(ALSO_AS.get(spec.name, spec.name))


def config_fields(
    entry: GgufArchitecture,
    values: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    divisors: Tensor | None = None,
) -> dict[str, Any]:
    """The fields of a config.json that a head describes. Raises FieldError for one that isn't
    known."""
    behind = f"{entry.name}."
    said = {n.removeprefix(behind): v for n, v in values.items() if n.startswith(behind)}
    fields: dict[str, Any] = {"model_type": entry.spec.model_type}
    for name, theirs in entry.fields.items():
        if name in said:
            fields[theirs] = _plain(said.pop(name))
    fields.update(entry.known(fields))
    fields.update(rope_fields(entry, said, divisors))
    width = fields.get("hidden_size", 0)
    heads = fields.get("num_attention_heads") or 1
    head = fields.get("head_dim", width // heads if {type(heads), type(width)} == {int} else 0)
    rows = shapes.get(EMBEDDING_TENSOR, (0,))[0]
    only = {
        **entry.only,
        "attention.value_length": (head,),
        "rope.dimension_count": (head,),
        "vocab_size": (rows,),
        "pooling_type": (0, *POOLING_NUMBERS, CLASSIFIES),
        "classifier.output_labels": None,
        "tensor_data_layout": None,
    }
    for name, value in said.items():
        if name not in only:
            raise FieldError(
                f"{behind}{name} is {shown(_plain(value))}, and what it changes in a network is "
                "not known here; take a model without it"
            )
        allowed = only[name]
        if allowed is not None and _plain(value) not in allowed:
            raise FieldError(
                f"{behind}{name} is {shown(_plain(value))}: only {shown(allowed[-1])} is supported"
            )
    fields["vocab_size"] = rows
    if entry.spec.kind == "decoder":
        fields["tie_word_embeddings"] = OUTPUT_TENSOR not in shapes
    return fields


def head_values(entry: GgufArchitecture, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``config_fields``: what a head says of a network. Raises FieldError for one
    that no such file can describe."""
    for name, value in {**entry.needed, **entry.known(fields)}.items():
        if fields.get(name, value) != value:
            raise FieldError(
                f"{name} is {shown(fields[name])}, and a GGUF file of the architecture "
                f"{entry.name} can't say so: there it is {shown(value)}"
            )
    values = {
        f"{entry.name}.{ours}": fields[theirs]
        for ours, theirs in entry.fields.items()
        if fields.get(theirs) is not None
    }
    if "head_dim" in fields:
        values[f"{entry.name}.attention.value_length"] = fields["head_dim"]
        values[f"{entry.name}.rope.dimension_count"] = fields["head_dim"]
    values[f"{entry.name}.vocab_size"] = fields["vocab_size"]
    rope = fields.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type") in SAID_SCALINGS:
        for ours, theirs in ROPE_VALUES.items():
            if theirs in rope:
                values[f"{entry.name}.rope.scaling.{ours}"] = rope[theirs]
    return values


ROPE_FREQUENCIES = "rope_freqs.weight"
"""The tensor by whose numbers the frequencies of rotary angles are divided, as by llama3."""
SAID_SCALINGS = ("linear", "yarn")
"""Scaled angles that a head describes."""
ROPE_VALUES = {
    "type": "rope_type", "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
}  # fmt: skip
"""Fields of rope_parameters by what a head says behind ``rope.scaling.``."""
LLAMA3_ANGLES = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
"""What Llama 3.1 and its kin say of their angles, but for the factor."""


def rope_divisors(config: Any) -> Tensor | None:
    """The tensor ``ROPE_FREQUENCIES`` of a network; None where it has none."""
    scaling = config.rope_scaling() if hasattr(config, "rope_scaling") else None
    if scaling is None or scaling.kind in SAID_SCALINGS:
        return None
    plain = plain_frequencies(config.head_size, config.rope_theta)
    return torch.from_numpy(plain / scaling.frequencies(plain, config.rope_theta))


def rope_fields(
    entry: GgufArchitecture, said: dict[str, Any], divisors: Tensor | None
) -> dict[str, Any]:
    """The field rope_scaling that a head, or its tensor of divisors, describes; what is read is
    taken out of ``said``."""
    type_name = "rope.scaling.type"
    kind = said.pop(type_name, None)
    if kind in (None, "none", "linear") and divisors is None:
        said.pop("rope.scaling.original_context_length", None)
    if divisors is not None:
        if kind not in (None, "none"):
            raise FieldError(f"{entry.name}.{type_name} is {shown(kind)} beside a tensor of it")
        return {"rope_scaling": {**LLAMA3_ANGLES, "factor": round(float(divisors.max()), 4)}}
    if kind in (None, "none"):
        return {}
    rope: dict[str, Any] = {"rope_type": kind}
    for ours, theirs in ROPE_VALUES.items():
        if f"rope.scaling.{ours}" in said:
            rope[theirs] = _plain(said.pop(f"rope.scaling.{ours}"))
    return {"rope_scaling": rope}


def _plain(value: Any) -> Any:
    """A value as JSON would have it: floats of 32 bits as they were written."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return value.tolist() if isinstance(value, np.ndarray) else value
