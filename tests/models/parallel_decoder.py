"""An architecture as one adds it: attention and feed-forward side by side, as in GPT-J (Wang and
Komatsuzaki 2021). x = x + attention(norm(x)) + feed_forward(norm(x))."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from llmctl.models import llama
from llmctl.models.decoder import HEAD_NAMES, RotaryDecoder, start_decoder
from llmctl.models.layers.context import Context
from llmctl.models.layers.feed_forward import SwiGLU
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.rotary import rotary_table
from llmctl.models.layers.rotary_attention import LlamaAttention
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap


class ParallelConfig(llama.LlamaConfig):
    """The shape of a parallel decoder."""


class Block(nn.Module):
    """One layer, with one normalisation for both parts."""

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = LlamaAttention(config)
        self.feed_forward = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        y_BTD = self.norm(x_BTD)
        return x_BTD + self.attention(y_BTD, context, layer) + self.feed_forward(y_BTD)


class Parallel(RotaryDecoder):
    """The decoder: token ids to hidden states."""

    config: ParallelConfig

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.turn_by(*rotary_table(config.max_positions, config.head_size, config.rope_theta))
        start_decoder(self, config)


FIELDS = replace(llama.FIELDS["llama"], what="a parallel decoder")
WEIGHTS = WeightMap(
    FIELDS.what,
    "transformer.",
    (
        Rename("token_embedding", "transformer.wte"),
        Rename("norm", "transformer.ln_f"),
        Rename("blocks.{}.norm", "transformer.h.{}.ln"),
        Fuse(
            "blocks.{}.attention.query_key_value",
            tuple(f"transformer.h.{{}}.attn.{part}" for part in "qkv"),
            shares=("num_heads", "num_kv_heads", "num_kv_heads"),
        ),
        Rename("blocks.{}.attention.output", "transformer.h.{}.attn.out"),
        Rename("blocks.{}.feed_forward.gate_up", "transformer.h.{}.mlp.gate_up"),
        Rename("blocks.{}.feed_forward.contract", "transformer.h.{}.mlp.down"),
    ),
    HEAD_NAMES,
)
SPEC = ModelSpec(
    name="parallel",
    config=ParallelConfig,
    build=Parallel,
    presets={"nano": {"num_layers": 2, "hidden_size": 32, "num_heads": 2}},
    tasks=("causal_lm",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="parallel",
    class_prefix="Parallel",
    to_hugging_face=lambda config: {**llama.to_hugging_face(config), "model_type": "parallel"},
    from_hugging_face=partial(FIELDS.build, ParallelConfig),
)
