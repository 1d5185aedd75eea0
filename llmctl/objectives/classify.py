"""Classification: dropout and a linear layer with softmax on [CLS] (Devlin et al. 2018, §4.1).

As in BERT's own code, [CLS]'s hidden state goes through the pooler (a tanh layer, pretrained by
next-sentence prediction) first; the loss is cross-entropy with the true class.

B examples, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.data.tables import Example
from llmctl.errors import InputError
from llmctl.models.bert import Bert, export_tensors, import_tensors
from llmctl.models.layers import initialise
from llmctl.objectives.base import LossParts, Ratio, TensorBatch, rounded_up
from llmctl.tokenizers import Tokenizer

LENGTH_STEP = 8
"""The longest example of a batch is padded too, to a multiple of this: see ``rounded_up``."""


@dataclass(frozen=True)
class EncodedExample:
    """A text, or two, as ids with special tokens; ``second`` is where the second text starts."""

    ids: NDArray[np.int64]
    second: int
    label: int


@dataclass(frozen=True)
class ExampleBatch(TensorBatch):
    """Padded examples."""

    input_ids_BT: Tensor
    segment_ids_BT: Tensor
    mask_BT: Tensor
    labels_B: Tensor


class Classifier(nn.Module):
    """BERT's body with a pooler and a linear layer to the classes."""

    def __init__(
        self,
        body: Bert,
        num_classes: int,
        *,
        dropout: float = 0.1,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        width = body.config.hidden_size
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_classes)
        for head in (self.pooler, self.output):
            initialise(head, body.config.initializer_range)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None

    def forward(self, batch: ExampleBatch) -> Tensor:
        """Logits (B, C)."""
        T = batch.input_ids_BT.shape[1]
        length = min(rounded_up(T, LENGTH_STEP), self.body.config.max_positions)
        ids_BT, segments_BT, mask_BT = (
            F.pad(part, (0, length - T))
            for part in (batch.input_ids_BT, batch.segment_ids_BT, batch.mask_BT)
        )
        mask = None if bool(mask_BT.all()) else mask_BT
        hidden_BTD = self.body(ids_BT, segments_BT, mask)
        pooled_BD = torch.tanh(self.pooler(hidden_BTD[:, 0]))
        return self.output(self.dropout(pooled_BD))

    def loss(self, batch: TensorBatch) -> LossParts:
        """Cross-entropy in nats, each example weighted by its class where weights are given."""
        assert isinstance(batch, ExampleBatch)
        logits_BC = self(batch).float()
        nll = F.cross_entropy(logits_BC, batch.labels_B, weight=self.class_weights, reduction="sum")
        count = len(batch.labels_B)
        correct = (logits_BC.detach().argmax(-1) == batch.labels_B).sum()
        return LossParts(
            {"classification_loss": Ratio(nll, count)}, {"accuracy": Ratio(correct, count)}
        )

    def freeze_layers(self, count: int) -> None:
        """Keep the embeddings and the lowest ``count`` blocks as they are."""
        body = self.body
        frozen: list[nn.Module] = [
            body.token_embedding,
            body.position_embedding,
            body.segment_embedding,
            body.norm,
            *list(body.blocks)[:count],
        ]
        for module in frozen:
            module.requires_grad_(False)


def collate(examples: Sequence[EncodedExample], pad: int) -> ExampleBatch:
    """Examples padded to the longest of them."""
    longest = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), longest), pad, dtype=np.int64)
    segments = np.zeros_like(ids)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = example.ids
        segments[row, example.second : length] = 1
        mask[row, :length] = True
    return ExampleBatch(
        real_tokens=int(mask.sum()),
        slots=mask.size,
        input_ids_BT=torch.from_numpy(ids),
        segment_ids_BT=torch.from_numpy(segments),
        mask_BT=torch.from_numpy(mask),
        labels_B=torch.tensor([example.label for example in examples]),
    )


def with_special_tokens(
    first: Sequence[int],
    second: Sequence[int] | None,
    *,
    cls: int,
    sep: int,
    max_length: int,
    label: int = 0,
) -> EncodedExample:
    """[CLS] first [SEP] second [SEP], cut to ``max_length``: the longer text loses first.

    Raises ValueError if not even the special tokens fit.
    """
    a, b = len(first), 0 if second is None else len(second)
    special = 2 if second is None else 3
    if max_length < special:
        raise ValueError(f"max_length {max_length} has no room for {special} special tokens")
    excess = a + b + special - max_length
    while excess > 0:
        if a >= b:
            a, excess = a - 1, excess - 1
        else:
            b, excess = b - 1, excess - 1
    head = [cls, *first[:a], sep]
    tail = [*second[:b], sep] if second is not None else []
    return EncodedExample(np.asarray([*head, *tail], dtype=np.int64), len(head), label)


def encode_examples(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    number_of: dict[str, int] | None = None,
) -> list[EncodedExample]:
    """Examples as ids with special tokens; their labels by number where the names are given."""
    texts = [example.text for example in examples]
    pairs = [example.text_pair or "" for example in examples]
    ids, lengths = tokenizer.encode_batch([*texts, *pairs])
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return [
        with_special_tokens(
            parts[row],  # type: ignore[arg-type]
            parts[row + len(examples)] if example.text_pair is not None else None,  # type: ignore[arg-type]
            cls=tokenizer.special["cls"],
            sep=tokenizer.special["sep"],
            max_length=max_length,
            label=number_of[example.label or ""] if number_of else 0,
        )
        for row, example in enumerate(examples)
    ]


_HEAD_NAMES = {"pooler": "bert.pooler.dense", "output": "classifier"}


def to_hugging_face(model: Classifier) -> dict[str, Tensor]:
    """Tensors in the names of BertForSequenceClassification."""
    state = model.state_dict()
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    tensors = export_tensors(body, model.body.config.num_layers)
    for ours, theirs in _HEAD_NAMES.items():
        for kind in ("weight", "bias"):
            tensors[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    return tensors


def from_hugging_face(body: Bert, tensors: Mapping[str, Tensor]) -> Classifier:
    """The inverse of ``to_hugging_face``; the given body is filled.

    Raises InputError if the model is not a classifier.
    """
    if "classifier.weight" not in tensors:
        raise InputError("the model is not a classifier; give --from a finetuned run")
    model = Classifier(body, len(tensors["classifier.weight"]))
    model.load_state_dict(
        {
            **{f"body.{k}": v for k, v in import_tensors(tensors, body.config.num_layers).items()},
            **{
                f"{ours}.{kind}": tensors[f"{theirs}.{kind}"]
                for ours, theirs in _HEAD_NAMES.items()
                for kind in ("weight", "bias")
            },
        }
    )
    return model


def start_from(
    body: Bert,
    tensors: Mapping[str, Tensor] | None,
    num_classes: int,
    *,
    dropout: float,
    class_weights: Sequence[float] | None = None,
) -> Classifier:
    """A classifier whose body, and pooler where it was trained, come from a pretrained model."""
    model = Classifier(body, num_classes, dropout=dropout, class_weights=class_weights)
    if tensors is not None:
        body.load_state_dict(import_tensors(tensors, body.config.num_layers))
        if "bert.pooler.dense.weight" in tensors:
            model.pooler.load_state_dict(
                {kind: tensors[f"bert.pooler.dense.{kind}"] for kind in ("weight", "bias")}
            )
    return model
