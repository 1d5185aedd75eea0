"""What nanoGPT calls the arguments and the tensors of its GPT-2: as Hugging Face's classes,
with matrices as ``nn.Linear`` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.models.gpt import FIELDS
from llmctl.models.weight_map import BOTH, Rename, WeightMap

SIZES_BY_ARGUMENT = {
    "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "vocab_size": "vocab_size",
    "block_size": "n_positions",
}  # fmt: skip
"""Fields of a GPT-2's config.json by those of ``model_args``."""
ARGUMENTS = (*SIZES_BY_ARGUMENT, "bias", "dropout")
WITHOUT_BIAS = ("transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight")
OUTPUT_MATRIX, EMBEDDING_MATRIX = "lm_head.weight", "transformer.wte.weight"

_IN_LAYER = {
    "norm_1": "ln_1", "attention.query_key_value": "attn.c_attn", "attention.output": "attn.c_proj",
    "norm_2": "ln_2", "feed_forward.expand": "mlp.c_fc", "feed_forward.contract": "mlp.c_proj",
}  # fmt: skip
NAMES = WeightMap(
    FIELDS.what,
    "transformer.",
    (
        Rename("token_embedding", "transformer.wte"),
        Rename("position_embedding", "transformer.wpe"),
        Rename("norm", "transformer.ln_f", BOTH),
        *(
            Rename(f"blocks.{{}}.{o}", f"transformer.h.{{}}.{t}", BOTH)
            for o, t in _IN_LAYER.items()
        ),
    ),
    {"causal_lm": (Rename("output", "lm_head", where="not tie_embeddings"),)},
)


def described_by(arguments: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The fields of a config.json that ``model_args`` describe. tied: whether the output layer is
    the embedding, which the tensors say."""
    return {
        **{theirs: arguments[ours] for ours, theirs in SIZES_BY_ARGUMENT.items()},
        "activation_function": "gelu" if "bias" in arguments else "gelu_new",
        "resid_pdrop": arguments.get("dropout", 0.0),
        "tie_word_embeddings": tied,
    }
