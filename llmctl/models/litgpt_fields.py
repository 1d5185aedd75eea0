"""LitGPT's ``model_config.yaml``: one table of fields for every kind of network that it has.

Which kind it is follows from the fields together: a Llama, a Qwen2 (biases of queries, keys and
values), a Qwen3 (normalised queries and keys), a Mistral (a window) or a Gemma 3 (whose norms
LitGPT tells by the model's name). The fields become those of that architecture's config.json, which
has its own table; a field that would make another network is refused by its name. What the file
leaves out has LitGPT's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.errors import did_you_mean
from llmctl.models.config_json import FieldError, shown
from llmctl.models.gemma3 import FULL, SLIDING
from llmctl.models.spec import MOST_LAYERS

NUMBERS: Mapping[str, Any] = {
    "n_layer": 16, "n_embd": 4096, "n_head": 32, "block_size": 4096, "vocab_size": 50254,
    "padding_multiple": 512, "padded_vocab_size": None, "head_size": None, "n_query_groups": None,
    "intermediate_size": None, "sliding_window_size": None, "attention_scores_scalar": None,
}  # fmt: skip
"""Whole numbers that are read, with what LitGPT takes where the file leaves them out; None: it
computes them from others, or there is no such thing."""
SETTINGS: Mapping[str, Any] = {
    "name": "", "norm_eps": 1e-5, "norm_qk": False, "attn_bias": False, "rope_base": 10000,
    "rope_condense_ratio": 1, "rope_adjustments": None, "rope_local_base_freq": None,
    "rope_indices": None, "sliding_window_indices": None, "mlp_class_name": "GptNeoxMLP",
    "gelu_approximate": "none", "post_attention_norm": False, "post_mlp_norm": False,
    "scale_embeddings": False, "final_logit_softcapping": None,
}  # fmt: skip
"""What else is read, likewise."""
_ABSENT = (None, False, 0)
ONLY_SO: Mapping[str, tuple[Any, ...]] = {
    "norm_class_name": ("RMSNorm",), "parallel_residual": (False,), "rotary_percentage": (1.0,),
    "bias": (False,), "norm_qk_type": ("default", None), "norm_1": (True,), "norm_2": (True,),
    "routed_scaling_factor": (1.0, None),
    # How windows were described until 2025: here in every layer.
    "sliding_window_layer_placing": (None, "all", 1), "sliding_window_layer_stride": (None, 1),
    **dict.fromkeys(
        ("shared_attention_norm", "attention_logit_softcapping", "rope_interleave",
         "moe_intermediate_size", "n_expert", "n_shared_expert", "n_expert_groups",
         "n_topk_groups", "n_topk_scores_per_group", "n_expert_per_token",
         "first_k_dense_replace", "norm_topk_prob", "lm_head_bias", "latent_attention",
         "sliding_window_offset"),
        _ABSENT,
    ),
}  # fmt: skip
"""Fields with the values with which a network is as here."""
ALWAYS_CHECKED = ("norm_class_name", "parallel_residual", "rotary_percentage", "bias")
"""Those of them that LitGPT takes for something else where the file leaves them out."""
ORIGIN = ("hf_config", "org")
"""Where a model is from."""
GEMMA = "Gemma"
"""What LitGPT looks for in a name to keep the gains of norms as 1 + w."""
GEMMAS_OWN = ("post_attention_norm", "post_mlp_norm", "scale_embeddings")
"""What a Gemma 3 has and no other network here."""
LLAMA3_FIELDS = {
    "factor": "factor", "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}  # fmt: skip
"""Fields of scaled rotary angles by those of ``rope_adjustments``."""


def described_by(said: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The fields of a config.json that a ``model_config.yaml`` describes. tied: whether the output
    layer is the embedding, which its tensors say.

    Raises FieldError for one that can't be used.
    """
    _check(said)
    fields = {**NUMBERS, **SETTINGS, **{n: value for n, value in said.items() if value is not None}}
    heads, width = fields["n_head"], fields["n_embd"]
    head_size = fields["head_size"] or width // heads
    if fields["intermediate_size"] is None:
        raise FieldError(
            "there is no field intermediate_size; copy the folder again from where it was made"
        )
    multiple = fields["padding_multiple"]
    shape = {
        "vocab_size": fields["padded_vocab_size"]
        or -(-fields["vocab_size"] // multiple) * multiple,
        "hidden_size": width,
        "intermediate_size": fields["intermediate_size"],
        "num_hidden_layers": fields["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["n_query_groups"] or heads,
        "head_dim": head_size,
        "max_position_embeddings": fields["block_size"],
        "rms_norm_eps": fields["norm_eps"],
        "rope_theta": fields["rope_base"],
        "tie_word_embeddings": tied,
        **_scaled_angles(fields),
    }
    own = _of_a_gemma if GEMMA in str(fields["name"]) else _of_a_llama
    return {**shape, **own(fields, head_size)}


def _check(said: Mapping[str, Any]) -> None:
    """Raises FieldError for a field that isn't known, or says what no network here has."""
    known = [*NUMBERS, *SETTINGS, *ONLY_SO, *ORIGIN]
    for name, value in said.items():
        if name not in known and value is not None:
            raise FieldError(
                f"{name} is {_brief(value)}, and what it changes in a network is not known here"
                f"{did_you_mean(name, known)}; give a model without it"
            )
    for name, allowed in ONLY_SO.items():
        if name not in said and name not in ALWAYS_CHECKED:
            continue
        value = said.get(name)
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in allowed):
            raise FieldError(f"{name} is {_brief(value)}: only {shown(allowed[0])} is supported")
    for name, default in NUMBERS.items():
        value = said.get(name, default)
        if value is not None and (type(value) is not int or value < 1):
            raise FieldError(f"{name} is {_brief(value)}, not a whole number above 0")


def _of_a_llama(fields: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    """The fields that a Llama has and its kin differ by."""
    absent = (*GEMMAS_OWN, "final_logit_softcapping", "rope_local_base_freq", "rope_indices")
    for name in absent:
        if fields[name] not in (None, False):
            raise FieldError(
                f"{name} is {_brief(fields[name])}, which only a Gemma 3 may have here"
            )
    inner, scalar = fields["mlp_class_name"], fields["attention_scores_scalar"]
    if inner != "LLaMAMLP":
        raise FieldError(
            f"mlp_class_name is {_brief(inner)}: only LLaMAMLP is supported, and GemmaMLP of a "
            "Gemma 3"
        )
    if scalar not in (None, head_size):
        raise FieldError(
            f"attention_scores_scalar is {scalar}: only the heads' width is supported, {head_size}"
        )
    window = fields["sliding_window_size"]
    kinds = {
        "qwen2": fields["attn_bias"], "qwen3": fields["norm_qk"], "mistral": window is not None,
    }  # fmt: skip
    found = [kind for kind, has in kinds.items() if has]
    if len(found) > 1:
        raise FieldError(
            "attn_bias, norm_qk and sliding_window_size: only one of these is supported at a time"
        )
    if window is not None and not all(_per_layer(fields, "sliding_window_indices")):
        raise FieldError("sliding_window_indices: only a window in every layer is supported")
    return {
        "model_type": found[0] if found else "llama",
        **({} if window is None else {"sliding_window": window}),
    }


def _of_a_gemma(fields: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    """The fields that only a Gemma 3 has."""
    needed = {
        **dict.fromkeys((*GEMMAS_OWN, "norm_qk"), True),
        "attn_bias": False, "mlp_class_name": "GemmaMLP", "rope_condense_ratio": 1,
    }  # fmt: skip
    for name, value in needed.items():
        if fields[name] != value:
            raise FieldError(
                f"{name} is {_brief(fields[name])}: of Gemmas only Gemma 3 is supported, where it "
                f"is {shown(value)}"
            )
    if fields["sliding_window_size"] is None:
        raise FieldError("there is no sliding_window_size: of Gemmas only Gemma 3 is supported")
    activations = {"tanh": "gelu_pytorch_tanh", "none": "gelu"}
    if fields["gelu_approximate"] not in list(activations):
        raise FieldError(
            f"gelu_approximate is {_brief(fields['gelu_approximate'])}, not tanh or none"
        )
    windows, local = _per_layer(fields, "sliding_window_indices"), fields["rope_local_base_freq"]
    if local is not None and _per_layer(fields, "rope_indices") != windows:
        raise FieldError("rope_indices are not those of sliding_window_indices, as a Gemma 3's are")
    return {
        "model_type": "gemma3_text",
        "hidden_activation": activations[fields["gelu_approximate"]],
        "query_pre_attn_scalar": fields["attention_scores_scalar"] or head_size,
        "sliding_window": fields["sliding_window_size"],
        "layer_types": [SLIDING if window else FULL for window in windows],
        "rope_local_base_freq": fields["rope_base"] if local is None else local,
        "final_logit_softcapping": fields["final_logit_softcapping"],
    }


def _per_layer(fields: Mapping[str, Any], name: str) -> list[bool]:
    """A list of 0 and 1 by layer; where it isn't said every layer has 1. Raises FieldError for
    anything else."""
    layers, value = fields["n_layer"], fields[name]
    if value is None:
        return [True] * min(layers, MOST_LAYERS)
    if not isinstance(value, list) or len(value) < layers or not {*map(repr, value)} <= {"0", "1"}:
        raise FieldError(f"{name} is {_brief(value)}, not 0 or 1 for each of {layers} layers")
    return [number == 1 for number in value[:layers]]


def _scaled_angles(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``rope_scaling`` of angles that are scaled for longer texts."""
    ratio, adjusted = fields["rope_condense_ratio"], fields["rope_adjustments"]
    if adjusted is None:
        return {} if ratio == 1 else {"rope_scaling": {"rope_type": "linear", "factor": ratio}}
    if ratio != 1:
        raise FieldError("rope_condense_ratio beside rope_adjustments is not supported")
    names = set(adjusted) if isinstance(adjusted, dict) else set()
    if names == {"factor"}:
        return {"rope_scaling": {"rope_type": "linear", **adjusted}}
    if names != set(LLAMA3_FIELDS):
        raise FieldError(
            f"rope_adjustments is {_brief(adjusted)}: only factor alone (linear), or "
            f"{', '.join(LLAMA3_FIELDS)} (llama3), are supported"
        )
    scaled = {theirs: adjusted[ours] for ours, theirs in LLAMA3_FIELDS.items()}
    return {"rope_scaling": {"rope_type": "llama3", **scaled}}


def _brief(value: Any) -> str:
    """A value as a person reads it, whatever YAML made of it."""
    return "missing" if value is None else repr(value)[:60]
