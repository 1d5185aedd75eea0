"""Sequence to sequence: a GPT reads the source, a Transformer decoder writes the target.

    P(y | x) = Πₜ P(yₜ | y₁ … yₜ₋₁, H),   H = GPT(x)              (Vaswani et al. 2017, §3.1)

The decoder's initial state is the GPT's hidden state at the last token of the source, projected and
added to the embedding of the target's start; its blocks attend to H, all states of the source
(``cross_attention``), or know the initial state alone. It is trained with the true target as its
past (teacher forcing, Williams and Zipser 1989). Its blocks may start as the GPT's (Rothe et al.
2020), with fresh attention to the source; embeddings are the GPT's own.

As the GPT is causal, padding behind a source changes nothing before it.

B rows, S tokens of a source, T of a target, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.data.packing import pack
from llmctl.errors import InputError
from llmctl.models.layers.attention import initialise
from llmctl.models.layers.cross_attention import Source, source_mask
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.objectives import instruct
from llmctl.objectives.base import IGNORED, LossParts, Ratio, TensorBatch, rounded_up
from llmctl.objectives.causal_lm import CausalLM
from llmctl.objectives.cross_entropy import linear_cross_entropy
from llmctl.objectives.instruct import InstructExample

LENGTH_STEP = 4
"""Rows are as long as a multiple of this: see ``rounded_up``."""


class Seq2SeqShape(Config):
    """The decoder that is attached."""

    decoder_layers: int = Field(0, ge=0)
    """Blocks of the decoder. 0: as many as the GPT has."""
    cross_attention: bool = True
    """Whether the decoder attends to all states of the source, or knows the last one alone."""
    decoder_start: Literal["gpt", "fresh"] = "gpt"
    """Where the decoder's blocks start: gpt, as copies of the GPT's, evenly chosen; fresh, with
    random weights."""


@dataclass(frozen=True)
class Pair:
    """A source and its target as ids, each with the tokens around it."""

    source: NDArray[np.int64]
    """Ends with the end of a document."""
    target: NDArray[np.int64]
    """Begins with the start of a document and ends with its end."""

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.source), len(self.target)

    @property
    def as_prefix(self) -> InstructExample:
        """As one text, start source end target end, of which the target is scored."""
        start, target = self.target[:1], self.target[1:]
        ids = np.concatenate([start, self.source, target])
        return InstructExample(ids, np.arange(len(ids)) >= len(ids) - len(target))


@dataclass(frozen=True)
class Seq2SeqBatch(TensorBatch):
    """Sources, and targets shifted by one."""

    source_ids_BS: Tensor
    source_lengths_B: Tensor
    input_ids_BT: Tensor
    labels_BT: Tensor
    """The next token; IGNORED where there is none."""
    scored_B: NDArray[np.int64]
    """Labels of each row."""

    @property
    def slots(self) -> int:
        return self.source_ids_BS.numel() + self.input_ids_BT.numel()

    @property
    def scored(self) -> int:
        """Labels."""
        return int(self.scored_B.sum())

    @property
    def counts(self) -> dict[str, int]:
        return {"target_loss": self.scored}


class Seq2Seq(nn.Module):
    """The GPT, and the decoder with its output layer."""

    def __init__(self, body: Backbone, decoder: CausalLM, *, smoothing: float = 0.0) -> None:
        """body: the GPT. smoothing: of the labels in the training loss."""
        super().__init__()
        self.body = body
        self.decoder = decoder
        self.smoothing = smoothing
        self.decoder.body.token_embedding = self.body.token_embedding
        # A checkpoint has the shared embedding once.
        self.register_state_dict_post_hook(_without_shared)
        self.register_load_state_dict_pre_hook(_with_shared)
        width = self.body.config.hidden_size
        self.start = nn.Linear(width, width, bias=False)
        initialise(self.start, self.body.config.initializer_range)

    @property
    def reader(self) -> nn.Module:
        """The GPT, which reads the source."""
        assert isinstance(self.body, nn.Module)
        return self.body

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to the source."""
        return any(block.cross_attention is not None for block in self.decoder.body.layers())

    def read(self, source_ids_BS: Tensor, lengths_B: Tensor) -> Source:
        """What the decoder writes from; sources are padded behind their ``lengths_B``."""
        states_BSD = self.body(source_ids_BS)
        rows_B = torch.arange(len(states_BSD), device=states_BSD.device)
        last_BD = states_BSD[rows_B, lengths_B - 1]
        mask = source_mask(lengths_B, source_ids_BS.shape[1]) if self.attends else None
        return Source(states_BSD, mask, self.start(last_BD))

    def loss(self, batch: TensorBatch) -> LossParts:
        """Cross-entropy of the targets' tokens in nats."""
        assert isinstance(batch, Seq2SeqBatch)
        source = self.read(batch.source_ids_BS, batch.source_lengths_B)
        hidden_BTD = self.decoder.body(batch.input_ids_BT, source=source)
        nll, correct = linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            self.decoder.output_weight,
            None,
            batch.labels_BT.flatten(),
            cap=self.decoder.body.config.output_cap(),
            smoothing=self.smoothing if self.training else 0.0,
        )
        return LossParts(
            {"target_loss": Ratio(nll, batch.scored)},
            {"token_accuracy": Ratio(correct, batch.scored)},
        )


_EMBEDDING = "token_embedding.weight"


def _without_shared(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object
) -> None:
    del state[f"{prefix}decoder.body.{_EMBEDDING}"]


def _with_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    if f"{prefix}body.{_EMBEDDING}" in state:
        state[f"{prefix}decoder.body.{_EMBEDDING}"] = state[f"{prefix}body.{_EMBEDDING}"]


def encode(
    source: Sequence[int],
    target: Sequence[int],
    *,
    start: int,
    end: int,
    max_source: int,
    max_target: int,
) -> Pair:
    """A pair of ids with the tokens around them, cut to so many with the end's."""
    return Pair(
        np.asarray(ended(source, end, max_source), dtype=np.int64),
        np.asarray([start, *ended(target, end, max_target)], dtype=np.int64),
    )


def ended(ids: Sequence[int], end: int, most: int) -> list[int]:
    """A text with its end, cut to so many tokens with that."""
    return [*ids[: most - 1], end]


PREFIX_ROW = 256
"""Tokens of a row that prefixed pairs are packed into where they are shorter."""


def collated(
    pairs: Sequence[Pair], style: str | None, token_bytes: NDArray[np.int64]
) -> TensorBatch:
    """Pairs as a batch for a decoder, or as prefixes for a language model.

    token_bytes: (V,), bytes of text of each token.
    """
    if style == "decoder":
        return collate(pairs)
    examples = [pair.as_prefix for pair in pairs]
    lengths = np.asarray([example.slots for example in examples])
    rows = pack(lengths, max(int(lengths.max()), PREFIX_ROW))
    return instruct.collate([[examples[n] for n in row] for row in rows], token_bytes=token_bytes)


def collate(pairs: Sequence[Pair]) -> Seq2SeqBatch:
    """Pairs as a batch, padded behind."""
    lengths = [(source, target - 1) for source, target in (pair.lengths for pair in pairs)]
    S, T = (rounded_up(max(sizes), LENGTH_STEP) for sizes in zip(*lengths, strict=True))
    sources_BS = np.zeros((len(pairs), S), dtype=np.int64)
    inputs_BT = np.zeros((len(pairs), T), dtype=np.int64)
    labels_BT = np.full((len(pairs), T), IGNORED, dtype=np.int64)
    for row, (pair, (source, target)) in enumerate(zip(pairs, lengths, strict=True)):
        sources_BS[row, :source] = pair.source
        inputs_BT[row, :target] = pair.target[:-1]
        labels_BT[row, :target] = pair.target[1:]
    return Seq2SeqBatch(
        tokens_B=np.asarray([source + target for source, target in lengths]),
        source_ids_BS=torch.from_numpy(sources_BS),
        source_lengths_B=torch.tensor([source for source, _ in lengths]),
        input_ids_BT=torch.from_numpy(inputs_BT),
        labels_BT=torch.from_numpy(labels_BT),
        scored_B=np.asarray([target for _, target in lengths]),
    )


def attach(
    gpt: CausalLM, shape: Seq2SeqShape, architecture: ModelSpec, *, smoothing: float
) -> Seq2Seq:
    """A GPT with a new decoder of its own architecture, width and output layer behind it."""
    model = build(gpt.body.config, shape, architecture, smoothing=smoothing)
    model.body.load_state_dict(gpt.body.state_dict())
    if model.decoder.output is not None:
        model.decoder.output.load_state_dict(gpt.output.state_dict())  # type: ignore[union-attr]
    if shape.decoder_start == "gpt":
        model.decoder.body.start_as(gpt.body)
    return model


def build(
    config: Any, shape: Seq2SeqShape, architecture: ModelSpec, *, smoothing: float = 0.0
) -> Seq2Seq:
    """The network with fresh weights."""
    layers = shape.decoder_layers or config.num_layers
    body = architecture.build(config)
    decoder = architecture.build(
        config.replace(num_layers=layers), cross_attention=shape.cross_attention
    )
    return Seq2Seq(body, CausalLM(decoder), smoothing=smoothing)


ENCODER, DECODER, START = "encoder.", "decoder.", "start.weight"
_CROSS = "cross_attention."
_OUTPUT = "lm_head.weight"


def to_tensors(model: Seq2Seq, architecture: ModelSpec) -> dict[str, Tensor]:
    """Tensors by name: the two networks in Hugging Face's names behind ``encoder.`` and
    ``decoder.``, and what others don't have in ours. The embedding is the encoder's."""
    encoder = architecture.export_tensors(
        model.body.state_dict(),
        model.body.config,
    )
    state = model.decoder.body.state_dict()
    shared = state[_EMBEDDING]
    decoder = architecture.export_tensors(state, model.decoder.body.config)
    tensors = {ENCODER + name: tensor for name, tensor in encoder.items()}
    tensors |= {DECODER + name: tensor for name, tensor in decoder.items() if tensor is not shared}
    tensors |= {DECODER + name: tensor for name, tensor in state.items() if _CROSS in name}
    if model.decoder.output is not None:
        tensors[DECODER + _OUTPUT] = model.decoder.output.weight.detach()
    tensors[START] = model.start.weight.detach()
    return tensors


def from_tensors(model: Seq2Seq, tensors: Mapping[str, Tensor], architecture: ModelSpec) -> None:
    """The inverse of ``to_tensors``: fill a network. Raises InputError for one that is missing."""
    parts = {
        part: {name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}
        for part in (ENCODER, DECODER)
    }
    body = architecture.import_tensors(parts[ENCODER], model.body.config)
    model.body.load_state_dict(body)
    names = _embedding_name(architecture, model)
    decoder = architecture.import_tensors(
        {**parts[DECODER], names: parts[ENCODER][names]}, model.decoder.body.config
    )
    decoder |= {name: tensor for name, tensor in parts[DECODER].items() if _CROSS in name}
    model.decoder.body.load_state_dict(decoder)
    for name, module in ((DECODER + _OUTPUT, model.decoder.output), (START, model.start)):
        if module is not None:
            if name not in tensors:
                raise InputError(f"the model file has no tensor {name}; copy the folder again")
            module.load_state_dict({"weight": tensors[name]})


def _embedding_name(architecture: ModelSpec, model: Seq2Seq) -> str:
    """What Hugging Face calls the token embedding."""
    state = model.body.state_dict()
    named = architecture.export_tensors(state, model.body.config)
    return next(name for name, tensor in named.items() if tensor is state[_EMBEDDING])
