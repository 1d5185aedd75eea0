"""Each field of the configuration classes of transformers: the same logits, or refused by name."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.filling import fill
from llmctl.formats.huggingface.tensors import import_model
from llmctl.models import BY_MODEL_TYPE
from llmctl.models.config_json import FieldError
from llmctl.models.encoder_decoder import EncoderDecoder
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.masked_lm import MaskedLM

V, T = 24, 8
SHAPE = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "initializer_range": 0.2, "pad_token_id": None,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", {"intermediate_size": 24}),
    "roberta": ("RobertaForMaskedLM", {"intermediate_size": 24, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {"intermediate_size": 24, "pad_token_id": 1}),
    "distilbert": ("DistilBertForMaskedLM", {"hidden_dim": 24}),
    "electra": ("ElectraForMaskedLM", {"intermediate_size": 24, "embedding_size": 12}),
    "modernbert": ("ModernBertForMaskedLM", {"intermediate_size": 24, "local_attention": 4}),
    "gpt2": ("GPT2LMHeadModel", {"n_inner": 24}),
    "llama": ("LlamaForCausalLM", {"intermediate_size": 24, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", {"intermediate_size": 24, "num_key_value_heads": 1}),
    "mistral": (
        "MistralForCausalLM",
        {"intermediate_size": 24, "num_key_value_heads": 1, "sliding_window": 3},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {"intermediate_size": 24, "head_dim": 8, "num_key_value_heads": 2},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"intermediate_size": 24, "num_key_value_heads": 1, "no_rope_layer_interval": 2},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            "intermediate_size": 24,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 3,
            "query_pre_attn_scalar": 6,
            "sliding_window_pattern": 2,
        },
    ),
    "nanochat": ("NanoChatForCausalLM", {"intermediate_size": 24, "num_key_value_heads": 2}),
}
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
         "decoder_start_token_id": 0, "initializer_factor": 0.5},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {"vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
         "decoder_ffn_dim": 24, "max_position_embeddings": 16, "init_std": 0.2},
    ),
}  # fmt: skip
"""Encoder–decoders, with their shape."""
KINDS |= PAIRS
ACTIVATIONS = [
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "silu",
    "tanh",
    "quick_gelu",
]
TRAINING = ("dropout", "pdrop")
"""What these change is not seen in a finished model."""


@cache
def config_class(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return type(transformers.AutoConfig.for_model(kind))


def shape_of(kind: str) -> dict[str, Any]:
    """The fields of a small model, each by the name that the class itself has for it."""
    if kind in PAIRS:
        return dict(PAIRS[kind][1])
    own = config_class(kind).attribute_map
    return {own.get(name, name): value for name, value in {**SHAPE, **KINDS[kind][1]}.items()}


def other_values(name: str, value: Any, annotation: Any) -> Iterator[Any]:
    """Values of a field that differ from the one it has, by its type."""
    choices = [
        choice
        for part in (annotation, *typing.get_args(annotation))
        if typing.get_origin(part) is typing.Literal
        for choice in typing.get_args(part)
    ]
    if choices:
        yield from (choice for choice in choices if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value, value // 2, 0)
    elif isinstance(value, float):
        yield from (value * 1.5 + 0.01, value / 2, 0.0)
    elif "act" in name and (value is None or isinstance(value, str)):
        yield from (choice for choice in ACTIVATIONS if choice != value)
    elif name == "feed_forward_proj":
        yield from ("gelu", "gelu_new", "gated-gelu", "gated-relu", "gated-silu", "silu")
    elif isinstance(value, str):
        yield f"another {value}"
    elif isinstance(value, list) and isinstance(value[0], int):
        yield from ([0] * len(value), [1] * len(value), [0, *[1] * (len(value) - 1)])
    elif isinstance(value, list):
        yield ["full_attention"] * len(value)
        yield from (["sliding_attention", *value[1:]], ["chunked_attention"] * len(value))
    elif name == "rope_parameters" and isinstance(value, dict) and "full_attention" in value:
        for angles in other_values(name, None, None):
            yield {**value, "full_attention": angles}
            yield {**value, "sliding_attention": angles}
    elif name == "rope_parameters":
        yield {"rope_type": "default", "rope_theta": 500.0}
        yield {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        yield {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        longer = {"factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 8}
        yield {"rope_type": "yarn", **longer}
        yield {"rope_type": "yarn", **longer, "attention_factor": 0.7}
        yield {"rope_type": "llama3", **longer, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        yield {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    elif value is None:
        for part in (annotation, *typing.get_args(annotation)):
            yield from {bool: [True], int: [1, 2, 3], float: [0.5], str: ["another"]}.get(part, [])
        if isinstance(annotation, types.UnionType) and dict in typing.get_args(annotation):
            yield {"another": 1}


def variations(kind: str) -> Iterator[tuple[str, Any]]:
    """Each field of a configuration class with each other value."""
    made = config_class(kind)(**shape_of(kind))
    annotations = {n: f.type for n, f in getattr(type(made), "__dataclass_fields__", {}).items()}
    seen = json.loads(made.to_json_string(use_diff=False))
    for name, value in {**dict.fromkeys(annotations), **seen}.items():
        if name not in ("model_type", "transformers_version"):
            for other in other_values(name, value, annotations.get(name)):
                yield name, other
    yield "use_magic", True


def theirs(kind: str, changes: dict[str, Any]) -> tuple[dict[str, Any], Any] | None:
    """A model of transformers and its config.json; None where there is none with such fields."""
    import transformers

    torch.manual_seed(0)
    try:
        config = config_class(kind)(**{**shape_of(kind), **changes})
        model = getattr(transformers, KINDS[kind][0])(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            answer = model(ids(), **({"decoder_input_ids": ids()} if kind in PAIRS else {}))
            logits = answer.logits if kind != "bert" else answer.prediction_logits
    except Exception:  # whatever such a value leads to
        return None
    fields = json.loads(model.config.to_json_string(use_diff=False))
    return fields, (dict(model.state_dict()), logits)


def ids() -> torch.Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    architecture = BY_MODEL_TYPE[fields["model_type"]]
    config = architecture.complete(architecture.from_hugging_face(fields), tensors)
    body = architecture.build(config)
    if isinstance(body, EncoderDecoder):
        pair = EncoderDecoderLM(body)
        fill(pair.state_dict(), import_model(tensors, "seq2seq", architecture, config))
        return pair.logits(pair.eval()(ids(), None, ids()))
    model: MaskedLM | CausalLM = (
        MaskedLM(body, next_sentence=architecture.judges_pairs)
        if architecture.kind == "encoder"
        else CausalLM(body)
    )
    does = "masked_lm" if architecture.kind == "encoder" else "causal_lm"
    fill(model.state_dict(), import_model(tensors, does, architecture, body.config))
    hidden = model.eval().body(ids())
    return model.token_logits(hidden) if isinstance(model, MaskedLM) else model.logits(hidden)


def refusal_of(fields: dict[str, Any]) -> str | None:
    try:
        BY_MODEL_TYPE[fields["model_type"]].from_hugging_face(fields)
    except FieldError as error:
        return str(error)
    return None


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_each_field_gives_the_same_logits_or_is_refused_by_name(kind: str):
    """fp32 sums in another order: 1e-5."""
    base = theirs(kind, {})
    assert base is not None
    plain = base[1][1]
    honoured, refused = set(), set()
    for name, value in variations(kind):
        made = theirs(kind, {name: value})
        if made is None:
            continue
        fields, (tensors, expected) = made
        refusal = refusal_of(fields)
        if refusal is not None:
            # Without layers transformers writes no kinds of them, and angles of another shape.
            assert name in refusal or (name, value) == ("num_hidden_layers", 0), refusal
            refused.add(name)
            continue
        logits = ours(fields, tensors)
        torch.testing.assert_close(
            logits, expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name, v=value: f"{n}={v}: {m}"
        )
        if expected.shape != plain.shape or not torch.allclose(expected, plain, atol=1e-3):
            honoured.add(name)
    assert {"use_magic", "is_encoder_decoder", "add_cross_attention"} & refused >= {"use_magic"}
    assert honoured >= EXPECTED[kind], (honoured, refused)
    assert not any(part in name for name in honoured for part in TRAINING)


EXPECTED = {
    "t5": {"vocab_size", "num_layers", "num_decoder_layers", "num_heads", "d_kv",
           "feed_forward_proj", "relative_attention_num_buckets", "layer_norm_epsilon",
           "relative_attention_max_distance", "tie_word_embeddings", "scale_decoder_outputs"},
    "bart": {"vocab_size", "encoder_layers", "decoder_layers", "encoder_attention_heads",
             "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim",
             "activation_function", "scale_embedding"},
    "bert": {"vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
             "layer_norm_eps", "tie_word_embeddings"},
    "roberta": {"vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                "layer_norm_eps", "tie_word_embeddings", "pad_token_id", "type_vocab_size"},
    "xlm-roberta": {"vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                    "layer_norm_eps", "tie_word_embeddings", "pad_token_id", "type_vocab_size"},
    "distilbert": {"vocab_size", "n_layers", "n_heads", "hidden_dim", "activation",
                   "tie_word_embeddings"},
    "electra": {"vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                "layer_norm_eps", "tie_word_embeddings", "embedding_size"},
    "modernbert": {"vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_activation",
                   "local_attention", "norm_eps", "classifier_activation",
                   "tie_word_embeddings"},
    "gpt2": {"n_layer", "n_head", "activation_function", "layer_norm_epsilon",
             "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"},
    "llama": {"num_hidden_layers", "num_key_value_heads", "head_dim", "rms_norm_eps",
              "rope_parameters", "tie_word_embeddings"},
    "qwen2": {"num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters"},
    "mistral": {"num_hidden_layers", "num_key_value_heads", "head_dim", "rms_norm_eps",
                "rope_parameters", "sliding_window"},
    "qwen3": {"num_hidden_layers", "head_dim", "rms_norm_eps", "rope_parameters"},
    "smollm3": {"num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters",
                "no_rope_layers", "tie_word_embeddings"},
    "gemma3_text": {"num_hidden_layers", "num_key_value_heads", "head_dim", "rms_norm_eps",
                    "hidden_activation", "query_pre_attn_scalar", "sliding_window",
                    "rope_parameters", "layer_types", "final_logit_softcapping",
                    "tie_word_embeddings"},
    "nanochat": {"num_hidden_layers", "rms_norm_eps", "rope_parameters",
                 "final_logit_softcapping"},
}  # fmt: skip
"""Fields that change the logits, among others."""


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "nanochat"])
def test_rotary_positions_in_both_dialects(kind: str):
    """rope_theta beside rope_scaling before version 5 of transformers, rope_parameters since."""
    made = theirs(kind, {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}})
    assert made is not None
    fields, (tensors, expected) = made
    del fields["rope_parameters"]
    old = [
        {"rope_theta": 300.0, "rope_scaling": None},
        {"rope_theta": 300},
        {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 300.0}},
        {"rope_theta": 300.0, "rope_scaling": {"type": "default"}},
    ]
    for dialect in old:
        found = ours({**fields, **dialect}, tensors)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert config_class(kind)(**{**fields, **dialect}).rope_parameters["rope_theta"] == 300
    for refused, says in [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.*'dynamic'"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, r"rope_scaling\.factor is 2\.0"),
        ({"rope_theta": "300"}, 'rope_theta is "300", not a number'),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], not an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ]:
        with pytest.raises(InputError, match=says):
            ours({**fields, **refused}, tensors)


@pytest.mark.reference
def test_a_gemma_s_angles_in_the_older_dialect():
    """Fields by which version 4 of transformers told the two kinds of layers apart."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    }
    made = theirs("gemma3_text", {"rope_parameters": rope})
    assert made is not None
    fields, (tensors, expected) = made
    for name in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        fields.pop(name, None)
    old = {
        "rope_theta": 900.0, "rope_local_base_freq": 30.0, "sliding_window_pattern": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }  # fmt: skip
    torch.testing.assert_close(ours({**fields, **old}, tensors), expected, rtol=1e-5, atol=1e-5)
    again = config_class("gemma3_text")(**{**fields, **old})
    assert again.rope_parameters == rope
    with pytest.raises(FieldError, match=r"rope_parameters.sliding_attention .*only plain rotary"):
        ours({**fields, "rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, tensors)


BERT = {
    "model_type": "bert", "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("vocab_size", "24", 'vocab_size is "24", not a whole number'),
        ("vocab_size", True, "vocab_size is true, not a whole number"),
        ("num_hidden_layers", 1.0, "num_hidden_layers is 1.0, not a whole number"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, not a whole number above 0"),
        ("hidden_size", [16], r"hidden_size is \[16\]"),
        ("hidden_dropout_prob", "0.1", "hidden_dropout_prob"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps is NaN, not a number"),
        ("layer_norm_eps", 0.0, "layer_norm_eps: "),
        ("layer_norm_eps", 10**400, "layer_norm_eps is 10"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1, not true or false"),
        ("hidden_act", 3, "hidden_act is 3"),
        ("is_decoder", True, "is_decoder is true: a BERT that reads from left to right"),
        ("is_decoder", 0, "is_decoder is 0"),
        ("quantization_config", {"bits": 4}, "quantization_config .*quantised weights"),
        ("auto_map", {"AutoModel": "a--b.C"}, "auto_map .*code of its own"),
        ("embedding_size", 128, "embedding_size is 128, and what it changes in a BERT"),
    ],
)
def test_a_field_that_can_not_be_used_is_named_with_its_value(field: str, value: Any, says: str):
    with pytest.raises(FieldError, match=says) as error:
        BY_MODEL_TYPE["bert"].from_hugging_face({**BERT, field: value})
    assert len(str(error.value)) < 300


def test_metadata_and_what_is_null_are_no_obstacle():
    config = BY_MODEL_TYPE["bert"].from_hugging_face(BERT)
    for field in ("_name_or_path", "task_specific_params", "directionality", "unsloth_version"):
        more = {**BERT, field: "bidi", "whatever": None}
        assert BY_MODEL_TYPE["bert"].from_hugging_face(more) == config
    # What the files of well-known models have beside that: FinBERT and the first Llama, TinyBERT,
    # GPT-2 medium.
    more = {**BERT, "eos_token_ids": 0, "max_sequence_length": 2048, "cell": {}, "emb_size": 312,
            "pre_trained": "", "structure": [], "training": ""}  # fmt: skip
    assert BY_MODEL_TYPE["bert"].from_hugging_face(more) == config
    medium = {"model_type": "gpt2", **shape_of("gpt2")}
    more = {**medium, "n_special": 0, "predict_special_tokens": True, "n_ctx": 1024}
    gpt = BY_MODEL_TYPE["gpt2"].from_hugging_face
    assert gpt(more) == gpt(medium)
    again = {"model_type": "gpt2", "n_embd": 16, "hidden_size": 17}
    with pytest.raises(FieldError, match="hidden_size is 17 and n_embd, which is the same, 16"):
        BY_MODEL_TYPE["gpt2"].from_hugging_face(again)
