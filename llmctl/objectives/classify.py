"""Classification: dropout and a linear layer with softmax on what a body says of a text.

A BERT says it at [CLS], whose hidden state goes through the pooler first (a tanh layer, pretrained
by next-sentence prediction; Devlin et al. 2018, §4.1); a causal body at the last token, the only
one that has seen all of them (Radford et al. 2018, §3.2). The loss is cross-entropy with the true
class.

B examples, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.models.layers.attention import initialise
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.objectives.base import LossParts, Ratio, TensorBatch, rounded_up
from llmctl.tokenizers import Layout, Tokenizer

LENGTH_STEP = 8
"""The longest example of a batch is padded too, to a multiple of this: see ``rounded_up``."""


@dataclass(frozen=True)
class EncodedExample:
    """A text, or two, as ids with special tokens; ``second`` is where the second text starts."""

    ids: NDArray[np.int64]
    second: int
    label: int
    cut: bool = False
    """Whether it was longer."""


@dataclass(frozen=True)
class ExampleBatch(TensorBatch):
    """Padded examples."""

    input_ids_BT: Tensor
    segment_ids_BT: Tensor
    mask_BT: Tensor
    labels_B: Tensor

    @property
    def slots(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def counts(self) -> dict[str, int]:
        return {"classification_loss": len(self)}


class Classifier(nn.Module):
    """A body with a linear layer to the classes, and a BERT's pooler between."""

    def __init__(
        self,
        body: Backbone,
        num_classes: int,
        *,
        dropout: float = 0.1,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        config: Any = body.config
        width = config.hidden_size
        self.causal = self.body.kind == "decoder"
        self.pooler = None if self.causal else nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        # Without a bias: so Hugging Face has it for every decoder.
        self.output = nn.Linear(width, num_classes, bias=not self.causal)
        for head in (self.pooler, self.output):
            if head is not None:
                initialise(head, config.initializer_range)
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
        if self.pooler is None:
            # Padding is on the right, where a causal token can't see it.
            hidden_BTD = self.body(ids_BT)
            last_B = mask_BT.sum(1) - 1
            summary_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        else:
            mask = None if bool(mask_BT.all()) else mask_BT
            hidden_BTD = self.body(ids_BT, segments_BT, mask)
            summary_BD = torch.tanh(self.pooler(hidden_BTD[:, 0]))
        return self.output(self.dropout(summary_BD))

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
        tokens_B=mask.sum(1),
        input_ids_BT=torch.from_numpy(ids),
        segment_ids_BT=torch.from_numpy(segments),
        mask_BT=torch.from_numpy(mask),
        labels_B=torch.tensor([example.label for example in examples]),
    )


def laid_out(
    first: Sequence[int],
    second: Sequence[int] | None,
    layout: Layout,
    *,
    max_length: int,
    label: int = 0,
    pad: int | None = None,
    cuts_left: bool = False,
) -> EncodedExample:
    """A text, or two, with the special tokens around, cut to ``max_length``: see ``fitted``.

    cuts_left: whether what is too long loses its beginning, not its end.
    pad: at the end of a decoder's text this token is padding, as transformers sees it.
    Raises ValueError if not even the special tokens fit.
    """
    before, between, after = layout.before, layout.between, layout.after
    if second is None:
        between = ()
    else:
        before, after = layout.pair_before, layout.pair_after
    special = len(before) + len(between) + len(after)
    a, b = fitted(len(first), len(second or ()), max_length - special)
    cut = a < len(first) or b < len(second or ())
    if cuts_left:
        first, second = first[len(first) - a :], second and second[len(second) - b :]
    head = [*before, *first[:a], *between]
    ids = [*head, *(second or ())[:b], *after]
    begin = len(ids)
    if second is not None and layout.first_segment is not None:
        begin = len(head) - len(between) + layout.first_segment
    while pad is not None and len(ids) > 1 and ids[-1] == pad:
        ids.pop()
    return EncodedExample(np.asarray(ids, dtype=np.int64), begin, label, cut)


def fitted(a: int, b: int, room: int) -> tuple[int, int]:
    """The lengths of two texts cut to fit into a room together as the `tokenizers` library does it
    (``longest_first``): the longer loses until both are as long; what is odd then stays with the
    longer one, or the second.

    Raises ValueError if there is no room at all.
    """
    if room < 0:
        raise ValueError(f"the special tokens alone are longer than max_length by {-room}")
    if a + b <= room:
        return a, b
    short, long = min(a, b), max(a, b)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if a > b else (short, long)


def encode_examples(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    number_of: dict[str, int] | None = None,
    *,
    pad: int | None = None,
) -> list[EncodedExample]:
    """Examples as ids with the special tokens that the tokenizer puts around them; their labels by
    number where the names are given.

    pad: see ``laid_out``. Raises InputError for a text of which nothing is left to look at.
    """
    texts = [example.text for example in examples]
    pairs = [example.text_pair or "" for example in examples]
    ids, lengths = tokenizer.encode_batch([*texts, *pairs])
    parts: list[list[int]] = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    encoded = []
    for row, example in enumerate(examples):
        one = laid_out(
            parts[row],
            parts[row + len(examples)] if example.text_pair is not None else None,
            tokenizer.layout,
            max_length=max_length,
            label=number_of[example.label or ""] if number_of else 0,
            pad=pad,
            cuts_left=tokenizer.cuts_left,
        )
        if not len(one.ids):
            raise InputError(
                f"{example.source} is empty, and the tokenizer puts no token around a text that "
                "could be looked at instead; leave it out"
            )
        encoded.append(one)
    return encoded


def pad_token(tokenizer: Tokenizer) -> int:
    """The token that fills short rows: the end of a document where there is none for padding, as
    with GPT-2's. Raises InputError if there is neither."""
    for role in ("pad", "eos"):
        if role in tokenizer.special:
            return tokenizer.special[role]
    raise InputError(
        "the tokenizer has no token for padding, nor for a document's end; use a model that has one"
    )


CLASS_HEADS = ("classifier.weight", "score.weight")
"""In Hugging Face's names, the last layer of an encoder's and of a decoder's classifier."""
_ENCODER_HEAD = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {"pooler": "bert.pooler.dense", "output": "classifier"}.items()
    for kind in ("weight", "bias")
}
_DECODER_HEAD = {"output.weight": "score.weight"}


def to_hugging_face(model: Classifier, architecture: ModelSpec) -> dict[str, Tensor]:
    """Tensors in the names of Hugging Face's class for sequence classification."""
    body = model.body.state_dict()
    return {**architecture.export_tensors(body, model.body.config), **head_tensors(model)}


def head_tensors(model: Classifier) -> dict[str, Tensor]:
    """What stands on the body, in the same names."""
    state = model.state_dict()
    head = _DECODER_HEAD if model.causal else _ENCODER_HEAD
    return {theirs: state[ours] for ours, theirs in head.items()}


def from_hugging_face(
    body: Backbone, tensors: Mapping[str, Tensor], architecture: ModelSpec
) -> Classifier:
    """The inverse of ``to_hugging_face``; the given body is filled.

    Raises InputError if the model is not a classifier.
    """
    last = next((name for name in CLASS_HEADS if name in tensors), None)
    if last is None:
        raise InputError("the model is not a classifier; give --from a finetuned run")
    model = Classifier(body, len(tensors[last]))
    imported = architecture.import_tensors(tensors, model.body.config)
    head = _DECODER_HEAD if model.causal else _ENCODER_HEAD
    model.load_state_dict(
        {
            **{f"body.{name}": tensor for name, tensor in imported.items()},
            **{ours: tensors[theirs] for ours, theirs in head.items()},
        }
    )
    return model


def start_from(
    body: Backbone,
    tensors: Mapping[str, Tensor] | None,
    num_classes: int,
    architecture: ModelSpec,
    *,
    dropout: float,
    class_weights: Sequence[float] | None = None,
) -> Classifier:
    """A classifier whose body, and pooler where it was trained, come from a pretrained model."""
    model = Classifier(body, num_classes, dropout=dropout, class_weights=class_weights)
    if tensors is not None:
        body.load_state_dict(architecture.import_tensors(tensors, model.body.config))
        if model.pooler is not None and "bert.pooler.dense.weight" in tensors:
            model.pooler.load_state_dict(
                {kind: tensors[f"bert.pooler.dense.{kind}"] for kind in ("weight", "bias")}
            )
    return model
