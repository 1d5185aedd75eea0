"""What an architecture is to everything else: a backbone, its shape, and how it is entered.

A **backbone** turns token ids into hidden states. What is done to one from outside (an adapter on
its layers, freezing, sharding, an optimiser by kind of matrix, a plan) asks it for its layers and
for the role of each parameter, and never looks at names. A **ModelSpec** is the entry of an
architecture in the table ``ARCHITECTURES``.

B batch, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.models.layers.norms import RMSNorm, ShiftedRMSNorm
from llmctl.models.layers.quantised_embedding import QuantisedEmbedding
from llmctl.models.layers.virtual_tokens import VirtualTokens
from llmctl.models.scaling import ScalingLaw
from llmctl.models.weight_map import WeightMap

HEAD_SIZE = 64
"""Width of a head where the number of heads isn't given: GPT-2's and Llama's smaller sizes'."""
MOST_LAYERS = 10_000
"""Blocks of a model; more would take minutes to build before anything could be said of them."""
LANGUAGE_MODELS = {"encoder": "masked_lm", "decoder": "causal_lm", "encoder-decoder": "seq2seq"}
"""The head that predicts tokens, by the kind of the backbone."""
VIRTUAL = "virtual_tokens"
"""The name of a backbone's virtual tokens among its modules."""
TOKEN_TABLE = "token_embedding.weight"
"""The name of a backbone's table of token embeddings."""
HUGGING_FACE = "huggingface"
"""The format whose names every architecture has."""


class ModelConfig(Config):
    """The shape that every network has."""

    biases: ClassVar[bool] = True
    """Whether heads that stand on an encoder have biases in their transform and its
    normalisation."""
    pooled_by: ClassVar[Literal["pooler", "transform"]] = "pooler"
    """What a classifier puts between an encoder and its classes: BERT's pooler on [CLS], or the
    transform of masked language modelling on what ``classifier_pooling`` says."""
    layers_differ: ClassVar[bool] = False
    """Whether layers do other things by their number, so that none can be left out."""
    pooler_activation: ClassVar[Literal["tanh", "gelu", "relu"]] = "tanh"
    """The pooler's activation."""

    vocab_size: int = Field(0, ge=0)
    """Pieces of the vocabulary; filled in from the tokenizer."""
    num_layers: int = Field(6, ge=1, le=MOST_LAYERS, strict=True)
    """Blocks."""
    hidden_size: int = Field(192, ge=1, strict=True)
    """Width of the hidden states; a multiple of the heads."""
    num_heads: int = Field(0, ge=0, strict=True)
    """Attention heads. 0: one for each 64 of the width."""
    intermediate_size: int = Field(0, ge=0, strict=True)
    """Width inside the feed-forward network. 0: four times the hidden states'."""
    max_positions: int = Field(1024, ge=8)
    """Tokens that a text may have: the longest context."""
    positions_have_weights: ClassVar[bool] = True
    """Whether some tensor has a row for each position, where positions aren't rotary."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        width = values.get("hidden_size", cls.model_fields["hidden_size"].default)
        if isinstance(width, int) and width > 0:
            values = dict(values)
            values["num_heads"] = values.get("num_heads") or max(1, width // HEAD_SIZE)
            values["intermediate_size"] = values.get("intermediate_size") or cls.inner_width(width)
        return values

    @classmethod
    def inner_width(cls, width: int) -> int:
        """The feed-forward network's width where none is given."""
        return 4 * width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            below = self.hidden_size - self.hidden_size % self.num_heads
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads "
                f"{self.num_heads}; try {below or self.num_heads}"
            )
        return self

    def with_vocabulary(self, size: int, special: Mapping[str, int]) -> Self:
        """The shape for a tokenizer of so many pieces, whose special tokens are known by role.

        Raises ConfigError where the two don't go together."""
        return self.replace(vocab_size=size)

    @property
    def reads_segments(self) -> bool:
        """Whether an encoder is another for another segment."""
        return False

    @property
    def pairs_by_segments(self) -> bool:
        """Whether an encoder's tokenizer tells the two texts of a pair apart by their segments. If
        not, two ends of a text stand between them, as in RoBERTa."""
        return True

    @property
    def attention_width(self) -> int:
        """Width of all heads' queries together."""
        return self.hidden_size

    def attended(self, length: int) -> float:
        """Tokens of a row of ``length`` that a token is compared with where each sees all of
        them, over all layers."""
        return self.num_layers * length

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, and of what an output layer that shares them takes."""
        return self.hidden_size


Part = Literal["embeddings", "attention", "feed-forward", "norms", "heads"]
"""A part of a model, as a plan counts its weights."""


@dataclass(frozen=True)
class Role:
    """What a parameter is in its network."""

    kind: Literal["token-embedding", "embedding", "matrix", "norm", "bias", "head"]
    """Matrix is what hidden states are multiplied with inside the backbone; head: whatever is not
    in a backbone."""
    part: Part
    fused: tuple[int, ...] = ()
    """Rows of the matrices that a fused one holds, one above another; (): it is one."""


class Backbone(nn.Module, ABC):
    """Token ids to hidden states. Each of its layers has its parts under the names ``attention``,
    ``cross_attention`` and ``feed_forward``."""

    kind: ClassVar[Literal["encoder", "decoder", "encoder-decoder"]]
    config: Any
    """A ModelConfig of its own class."""
    target_start: ClassVar[tuple[str, ...]] = ()
    """In an encoder–decoder, the role of the token that a target's writing starts with: the first
    that a tokenizer has."""
    ends_normalised: ClassVar[bool] = False
    """Whether ``norm`` stands behind the highest layer."""
    opens_texts: ClassVar[bool] = False
    """Whether its sources and targets begin with the start of a document, beside ending with its
    end."""
    token_embedding: nn.Embedding
    blocks: nn.ModuleList

    @property
    def virtual_tokens(self) -> VirtualTokens | None:
        """What stands before each text: a soft prompt, or a prefix."""
        virtual = self._modules.get(VIRTUAL)
        assert virtual is None or isinstance(virtual, VirtualTokens)
        return virtual

    def put_before_texts(self, virtual: VirtualTokens | None) -> None:
        """Let these tokens stand before each text from now on."""
        if virtual is None:
            self._modules.pop(VIRTUAL, None)
        else:
            setattr(self, VIRTUAL, virtual)  # which PyTorch puts among the modules

    @property
    def longest_text(self) -> int:
        """Tokens that a text may have, beside virtual ones."""
        virtual = 0 if self.virtual_tokens is None else self.virtual_tokens.count
        return int(self.config.max_positions) - virtual

    @property
    def slots_before(self) -> int:
        """Slots of a cache that virtual tokens take before each text that ``forward`` reads."""
        return 0 if self.virtual_tokens is None else self.virtual_tokens.count

    @abstractmethod
    def forward(self, input_ids_BT: Tensor, *args: Any, **options: Any) -> Tensor:
        """Hidden states (B, T, D) of the last layer."""

    def hidden_at(self, input_ids_BT: Tensor, places_B: Tensor) -> Tensor:
        """Hidden states (B, D) of the last layer at one place of each row, whose other tokens are
        all read."""
        rows = torch.arange(len(input_ids_BT), device=input_ids_BT.device)
        found: Tensor = self(input_ids_BT)[rows, places_B]
        return found

    def finish(self, x_BTD: Tensor) -> Tensor:
        """The highest layer's states as the network gives them."""
        finished: Tensor = self.get_submodule("norm")(x_BTD) if self.ends_normalised else x_BTD
        return finished

    def layers(self) -> Sequence[nn.Module]:
        """What is computed one after another, from the lowest."""
        return list(self.blocks)

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Leave out the other layers, in place."""
        layers = self.layers()
        self.blocks = nn.ModuleList(layers[number] for number in kept)

    def embedding(self) -> nn.Embedding:
        """The tokens', which an output layer may share."""
        return self.token_embedding

    def like_states(self) -> Tensor:
        """No numbers, in the type and on the device of the embeddings: what caches are made
        after."""
        table = self.embedding()
        if isinstance(table, QuantisedEmbedding):
            return table.like()
        return table.weight.new_empty(0)

    def lowest(self, count: int) -> list[nn.Module]:
        """The lowest layers, and what stands before them: embeddings and, in BERT, their norm."""
        before = takewhile(lambda part: not self._holds_layers(part), self.children())
        return [*before, *self.layers()[:count]]

    def start_as(self, other: Self) -> None:
        """Take the weights of one of the same width: evenly chosen ones of its layers, and all that
        is beside them. What the other has nothing of, as attention to a source, stays as it is."""
        for name, part in other.named_children():
            if not other._holds_layers(part):
                self.get_submodule(name).load_state_dict(part.state_dict())
        own, others = self.layers(), other.layers()
        chosen = np.linspace(0, len(others) - 1, len(own)).round().astype(int)
        for layer, number in zip(own, chosen.tolist(), strict=True):
            layer.load_state_dict(others[number].state_dict(), strict=False)

    def _holds_layers(self, part: nn.Module) -> bool:
        lowest = self.layers()[0]
        return any(module is lowest for module in part.modules())

    def role(self, name: str) -> Role:
        """What a parameter is, by its name in this network."""
        path, _, leaf = name.rpartition(".")
        if path.partition(".")[0] == VIRTUAL:
            return Role("embedding", "embeddings")
        module = self.get_submodule(path)
        if isinstance(module, nn.Embedding):
            token = module is self.embedding()
            return Role("token-embedding" if token else "embedding", "embeddings")
        if isinstance(module, nn.LayerNorm | RMSNorm | ShiftedRMSNorm):
            return Role("norm", "norms")
        part: Part = "attention" if "attention." in name else "feed-forward"
        if getattr(module, leaf).dim() < 2:
            return Role("bias", part)
        owner, _, linear = path.rpartition(".")
        # An adapter's matrices in a fused one's place are single.
        fused = getattr(self.get_submodule(owner), "fused_rows", {}) if leaf == "weight" else {}
        return Role("matrix", part, tuple(fused.get(linear, ())))


def backbones(model: nn.Module) -> dict[str, Backbone]:
    """The backbones of a model by what the names of their parameters begin with."""
    return {
        f"{name}." if name else "": module
        for name, module in model.named_modules()
        if isinstance(module, Backbone)
    }


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model's backbones."""
    return [layer for backbone in backbones(model).values() for layer in backbone.layers()]


def roles_of(model: nn.Module) -> dict[str, Role]:
    """The role of each of a model's parameters, by its name."""
    bodies = backbones(model)
    roles = {}
    for name, _ in model.named_parameters():
        prefix = next((prefix for prefix in bodies if name.startswith(prefix)), None)
        if prefix is not None:
            roles[name] = bodies[prefix].role(name.removeprefix(prefix))
        else:
            module = model.get_submodule(name.rpartition(".")[0])
            roles[name] = Role("head", "norms" if isinstance(module, nn.LayerNorm) else "heads")
    return roles


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The entry of an architecture: how to build its networks, and what others call them."""

    name: str
    """The name that ``--arch`` takes."""
    config: type[ModelConfig]
    build: type[Backbone]
    """From the configuration; a decoder's takes ``cross_attention`` too."""
    presets: Mapping[str, Mapping[str, Any]]
    tasks: tuple[str, ...]
    """What it can be pretrained on, the first by default."""
    weights: Mapping[str, WeightMap]
    """The names of its tensors, by format."""
    model_type: str
    """In a config.json of Hugging Face's."""
    class_prefix: str
    """What the names of Hugging Face's classes begin with."""
    lm_class: str = "ForCausalLM"
    """What the name of the class with a language model's output layer ends with, of a decoder."""
    to_hugging_face: Callable[[Any], dict[str, Any]]
    """Our configuration as the fields of a config.json."""
    from_hugging_face: Callable[[Mapping[str, Any]], Any]
    complete: Callable[[Any, Mapping[str, Tensor]], Any] = lambda config, tensors: config
    """The configuration with what not its fields but the tensors say, in Hugging Face's names.
    Raises ValueError for tensors that aren't of such a network."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of llmctl/training/config.py that its fresh weights ask for."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its tasks' objectives, as it was published."""
    detector: str | None = None
    """The architecture that it becomes where it learns to tell replaced tokens: of the same blocks,
    with embeddings of a width of their own (``embedding_size``). None: it can't."""
    scaling: ScalingLaw | None = None
    """How its loss falls with weights and tokens; None: that has not been measured."""

    @property
    def kind(self) -> str:
        """``encoder``, ``decoder`` or ``encoder-decoder``, as its backbone says."""
        return self.build.kind

    @property
    def usual_head(self) -> str:
        """The head that pretraining leaves: its task's own, or the one that predicts tokens."""
        own = self.tasks[0] in self.weights[HUGGING_FACE].heads
        return self.tasks[0] if own else LANGUAGE_MODELS[self.build.kind]

    @property
    def class_layer(self) -> str | None:
        """What Hugging Face calls the matrix that gives classes; None: it has no classifiers."""
        names = self.head_names("classify")
        return next((name for name, ours in names.items() if ours == "output.weight"), None)

    @property
    def judges_pairs(self) -> bool:
        """Whether there is a head for it in masked pretraining: does B follow A?"""
        return "next_sentence.weight" in self.head_names("masked_lm").values()

    @property
    def task(self) -> str:
        """What pretraining teaches it where nothing else is asked for."""
        return self.tasks[0]

    def export_tensors(self, state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """A backbone's state dict in Hugging Face's names."""
        return self.weights[HUGGING_FACE].export_tensors(state, config)

    def import_tensors(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The inverse of ``export_tensors``. Raises InputError naming a tensor that is missing."""
        return self.weights[HUGGING_FACE].import_tensors(tensors, config)

    def export_head(self, task: str, model: Any) -> dict[str, Tensor]:
        """What stands on the backbone of a model of a task, in Hugging Face's names."""
        names = self.weights[HUGGING_FACE]
        return names.export_head(task, model.state_dict(), model.body.config)

    def head_names(self, task: str) -> dict[str, str]:
        """Our names of the tensors that may stand beside a backbone, by Hugging Face's."""
        return self.weights[HUGGING_FACE].head_names(task)
