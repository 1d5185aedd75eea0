"""Masked language modelling with next-sentence prediction (Devlin et al. 2018, §3.1).

15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a random ordinary token, 10 %
stay; a softmax over the vocabulary predicts them. A second softmax on [CLS] tells whether B
follows A. The two losses are added. What is chosen is drawn anew each epoch, never a special
token. The head runs at the chosen positions only: elsewhere its output would be thrown away, and
with a small body it is half of the cost.

B rows, T tokens in a row, D width, M masked tokens, S texts (pairs) in the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.config import Config
from llmctl.data.keyed import integers, key_of, uniform
from llmctl.data.shards.chunks import ChunkRefs, Chunks
from llmctl.data.shards.pairs import TextPair, draw_pairs
from llmctl.errors import InputError
from llmctl.models.layers.attention import ACTIVATIONS, Texts, initialise
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.objectives.base import IGNORED, LossParts, Ratio, TensorBatch, rounded_up
from llmctl.objectives.cross_entropy import linear_cross_entropy

PUBLISHED_MASK_RATE = 0.15

MASKED_STEP, TEXTS_STEP = 64, 32
"""Masked tokens and texts of a batch are filled up to multiples of these: see ``rounded_up``."""


class MaskedLMConfig(Config):
    """How tokens are hidden, and whether pairs are judged."""

    mask_rate: float = Field(PUBLISHED_MASK_RATE, gt=0.0, lt=1.0)
    """Share of the tokens to predict."""
    mask_share: float = Field(0.8, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes [MASK]."""
    random_share: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the tokens to predict that becomes a random token; the rest stays."""
    whole_word: bool = False
    """Choose words, not pieces (Devlin's update of 2019)."""
    next_sentence: bool = True
    """Whether sentence pairs are made and judged: next sentence prediction."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    cls: int
    sep: int
    mask: int
    pad: int
    ordinary: NDArray[np.int64]
    """Every id that is not special: what random replacements are drawn from."""
    continuation: NDArray[np.bool_]
    """(V,): whether the token continues a word."""

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """(V,): whether the token is special; [UNK], which text may hold, is."""
        table = np.ones(len(self.continuation), dtype=bool)
        table[self.ordinary] = False
        return table


@dataclass(frozen=True)
class MaskedBatch(TensorBatch):
    """Packed rows with their hidden tokens."""

    input_ids_BT: Tensor
    segment_ids_BT: Tensor
    position_ids_BT: Tensor
    texts: Texts | None
    """What attention stays inside of; None if every row is one full text."""
    masked_M: Tensor
    """Flat places (b · T + t) of the tokens to predict."""
    labels_M: Tensor
    cls_S: Tensor
    """Flat place of each text's [CLS]."""
    next_labels_S: Tensor
    """0 where B follows A, 1 where it is random: Hugging Face's convention."""
    next_sentence: bool
    """Whether that is judged."""

    @property
    def slots(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def counts(self) -> dict[str, int]:
        counts = {"mlm_loss": len(self.labels_M)}
        return {**counts, "nsp_loss": len(self.next_labels_S)} if self.next_sentence else counts

    def rows(self, begin: int, stop: int) -> Self:
        T = self.input_ids_BT.shape[1]
        part: dict[str, Any] = {
            "tokens_B": self.tokens_B[begin:stop],
            "input_ids_BT": self.input_ids_BT[begin:stop],
            "segment_ids_BT": self.segment_ids_BT[begin:stop],
            "position_ids_BT": self.position_ids_BT[begin:stop],
            "texts": self.texts and self.texts.rows(begin, stop),
        }
        for places, labels in (("masked_M", "labels_M"), ("cls_S", "next_labels_S")):
            flat = getattr(self, places)  # ascending
            here = slice(*torch.searchsorted(flat, torch.tensor([begin * T, stop * T])).tolist())
            part |= {places: flat[here] - begin * T, labels: getattr(self, labels)[here]}
        return replace(self, **part)


class MaskedLM(nn.Module):
    """BERT's body with the two heads of its pretraining."""

    def __init__(self, body: Backbone, *, next_sentence: bool = True) -> None:
        super().__init__()
        self.body = body
        width, config = body.config.hidden_size, body.config
        self.transform = nn.Linear(width, width)
        self.transform_norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = nn.Linear(width, width) if next_sentence else None
        self.next_sentence = nn.Linear(width, 2) if next_sentence else None
        for head in (self.transform, self.output, self.pooler, self.next_sentence):
            if head is not None:
                initialise(head, config.initializer_range)

    @property
    def output_weight(self) -> Tensor:
        """The matrix from what is transformed to logits: the token embedding, or one of its own."""
        return (self.output or self.body.embedding()).weight

    def token_logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits (M, V): a transform, then the output layer and a bias."""
        return F.linear(self.transformed(hidden_MD), self.output_weight, self.output_bias)

    def transformed(self, hidden_MD: Tensor) -> Tensor:
        """The transform between the body and the output layer, (M, D)."""
        activation = ACTIVATIONS[self.body.config.activation]
        return self.transform_norm(activation(self.transform(hidden_MD)))

    def next_logits(self, cls_SD: Tensor) -> Tensor:
        """Logits (S, 2) from the hidden states of [CLS]: is next, is random."""
        assert self.pooler is not None
        assert self.next_sentence is not None
        return self.next_sentence(torch.tanh(self.pooler(cls_SD)))

    def loss(self, batch: TensorBatch) -> LossParts:
        """Cross-entropy of the hidden tokens and of the pair labels, in nats."""
        assert isinstance(batch, MaskedBatch)
        hidden_BTD = self.body(
            batch.input_ids_BT, batch.segment_ids_BT, batch.texts, batch.position_ids_BT
        )
        flat_D = hidden_BTD.flatten(0, 1)
        places_M, labels_M = _in_steps(batch.masked_M, batch.labels_M, MASKED_STEP)
        nll, correct = linear_cross_entropy(
            self.transformed(flat_D.index_select(0, places_M)),
            self.output_weight,
            self.output_bias,
            labels_M,
        )
        count = len(batch.labels_M)
        losses = {"mlm_loss": Ratio(nll, count)}
        metrics = {"mlm_accuracy": Ratio(correct, count)}
        if self.next_sentence is not None:
            count = len(batch.next_labels_S)
            places_S, labels_S = _in_steps(batch.cls_S, batch.next_labels_S, TEXTS_STEP)
            logits_S2 = self.next_logits(flat_D.index_select(0, places_S)).float()
            losses["nsp_loss"] = Ratio(F.cross_entropy(logits_S2, labels_S, reduction="sum"), count)
            metrics["nsp_accuracy"] = Ratio((logits_S2.argmax(-1) == labels_S).sum(), count)
        return LossParts(losses, metrics)


def _in_steps(places: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Filled up to a multiple of ``step`` with a place that is not scored."""
    missing = rounded_up(len(labels), step) - len(labels)
    return F.pad(places, (0, missing)), F.pad(labels, (0, missing), value=IGNORED)


def collate(
    chunks: Chunks,
    refs: ChunkRefs,
    rows: Sequence[Sequence[int]],
    *,
    config: MaskedLMConfig,
    vocabulary: Vocabulary,
    sequence_length: int,
    seed: int,
) -> MaskedBatch:
    """Packed, masked rows; a pure function of its arguments.

    refs: the batch's chunks. rows: for each row, which of them it holds, in order.
    """
    pairs: Sequence[TextPair | None]
    if config.next_sentence:
        pairs = draw_pairs(chunks, refs, key_of(seed, "pairs"))
    else:
        pairs = [None] * len(refs)
    shape = (len(rows), sequence_length)
    ids = np.full(shape, vocabulary.pad, dtype=np.int64)
    segments, places, texts, draws = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    special = np.ones(shape, dtype=bool)
    cls, labels = [], []
    for row, members in enumerate(rows):
        end = 0
        for number, member in enumerate(members, 1):
            begin, pair = end, pairs[member]
            if pair is None:
                spans = [
                    chunks.reader.tokens(
                        int(refs.document[member]), int(refs.start[member]), int(refs.stop[member])
                    )
                ]
            else:
                spans = [pair.first, pair.second]
            ids[row, end] = vocabulary.cls
            end += 1
            for segment, span in enumerate(spans):
                stop = end + len(span)
                ids[row, end:stop] = span
                special[row, end:stop] = vocabulary.is_special[span]
                ids[row, stop] = vocabulary.sep
                segments[row, end : stop + 1] = segment
                end = stop + 1
            places[row, begin:end] = np.arange(end - begin)
            texts[row, begin:end] = number
            draws[row, begin:end] = refs.position[member]
            cls.append(row * sequence_length + begin)
            labels.append(0 if pair is None or pair.is_next else 1)
    chosen = choose(ids, special, places, draws, config, vocabulary, seed)
    hidden = hide(ids, chosen, places, draws, config, vocabulary, seed)
    packed = texts.max() > 1 or not texts.all()
    flat_chosen = np.flatnonzero(chosen)
    return MaskedBatch(
        tokens_B=np.count_nonzero(texts, axis=1),
        input_ids_BT=torch.from_numpy(hidden),
        segment_ids_BT=torch.from_numpy(segments),
        position_ids_BT=torch.from_numpy(places),
        texts=Texts.of(texts) if packed else None,
        masked_M=torch.from_numpy(flat_chosen),
        labels_M=torch.from_numpy(ids.reshape(-1)[flat_chosen]),
        cls_S=torch.tensor(cls),
        next_labels_S=torch.tensor(labels),
        next_sentence=config.next_sentence,
    )


def choose(
    ids_BT: NDArray[np.int64],
    special_BT: NDArray[np.bool_],
    places_BT: NDArray[np.int64],
    draws_BT: NDArray[np.int64],
    config: MaskedLMConfig,
    vocabulary: Vocabulary,
    seed: int,
) -> NDArray[np.bool_]:
    """Which tokens to predict: each with probability ``mask_rate``, whole words together.

    places_BT: each token's place in its text; draws_BT: its text's position in the stream.
    """
    units = places_BT
    if config.whole_word:
        # Special tokens are boundaries too: a piece after one, cut off its word, starts a unit.
        starts = ~vocabulary.continuation[ids_BT] | special_BT
        starts[:, 1:] |= special_BT[:, :-1]
        starts[:, 0] = True
        columns = np.where(starts, np.arange(ids_BT.shape[1]), 0)
        units = np.take_along_axis(places_BT, np.maximum.accumulate(columns, axis=1), axis=1)
    drawn = uniform(key_of(seed, "mask"), draws_BT, units)
    return (drawn < config.mask_rate) & ~special_BT


def hide(
    ids_BT: NDArray[np.int64],
    chosen_BT: NDArray[np.bool_],
    places_BT: NDArray[np.int64],
    draws_BT: NDArray[np.int64],
    config: MaskedLMConfig,
    vocabulary: Vocabulary,
    seed: int,
) -> NDArray[np.int64]:
    """The ids with chosen tokens hidden: 80 % [MASK], 10 % any ordinary token, 10 % as they are."""
    result = ids_BT.copy()
    draws, places = draws_BT[chosen_BT], places_BT[chosen_BT]
    kind = uniform(key_of(seed, "hide"), draws, places)
    random = integers(key_of(seed, "random"), len(vocabulary.ordinary), draws, places)
    result[chosen_BT] = np.select(
        [kind < config.mask_share, kind < config.mask_share + config.random_share],
        [np.int64(vocabulary.mask), vocabulary.ordinary[random]],
        ids_BT[chosen_BT],
    )
    return result


_HEAD_NAMES = {
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "pooler": "bert.pooler.dense",
    "next_sentence": "cls.seq_relationship",
}
_BIAS, _OUTPUT = "cls.predictions.bias", "cls.predictions.decoder"


def to_hugging_face(model: MaskedLM, architecture: ModelSpec) -> dict[str, Tensor]:
    """Tensors in the names of BertForPreTraining, or of BertForMaskedLM without pair judging."""
    state = model.state_dict()
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    tensors = architecture.export_tensors(body, model.body.config)
    for ours, theirs in _HEAD_NAMES.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in state:
                tensors[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    tensors[_BIAS] = state["output_bias"]
    if model.output is not None:
        # Where they are not tied, transformers adds the layer's own bias, and keeps both.
        tensors[f"{_OUTPUT}.weight"] = state["output.weight"]
        tensors[f"{_OUTPUT}.bias"] = state["output_bias"].clone()
    return tensors


def from_hugging_face(
    body: Backbone, tensors: Mapping[str, Tensor], architecture: ModelSpec
) -> MaskedLM:
    """The inverse of ``to_hugging_face``; the given body is filled.

    Raises InputError if the heads of pretraining are not there.
    """
    if _BIAS not in tensors:
        raise InputError(
            "the model has no masked-language-model head; give --from a pretrained run"
        )
    model = MaskedLM(body, next_sentence="cls.seq_relationship.weight" in tensors)
    state: dict[str, Any] = {
        f"body.{k}": v for k, v in architecture.import_tensors(tensors, body.config).items()
    }
    for ours, theirs in _HEAD_NAMES.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in tensors:
                state[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    state["output_bias"] = tensors[_BIAS]
    if model.output is not None:
        if f"{_OUTPUT}.weight" not in tensors:
            raise InputError(
                f"the model file has no tensor {_OUTPUT}.weight, though config.json says that "
                "tie_word_embeddings is false; copy the model's folder again"
            )
        state["output.weight"] = tensors[f"{_OUTPUT}.weight"]
        state["output_bias"] = tensors.get(f"{_OUTPUT}.bias", tensors[_BIAS])
    model.load_state_dict(state)
    return model
