"""Causal language modelling: each token from those before it (Radford et al. 2018, eq. 1).

    loss = −Σₜ log P(xₜ | x₁ … xₜ₋₁)

Documents lie end to end in rows without padding. Their end is predicted too, the start of the next
is not. With ``document_mask`` attention stays inside a document and positions start anew in each.

B rows, T tokens in a row, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.config import Config
from llmctl.data.shards.windows import Rows
from llmctl.errors import InputError
from llmctl.models.layers.attention import Texts, initialise
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.objectives.base import IGNORED, LossParts, Ratio, TensorBatch
from llmctl.objectives.cross_entropy import linear_cross_entropy


class CausalLMConfig(Config):
    """The loss."""

    z_loss: float = Field(0.0, ge=0.0)
    """Weight of the squared logarithm of the softmax's normaliser, which keeps logits from
    drifting in long runs; PaLM has 1e-4. In the training loss only."""


@dataclass(frozen=True)
class CausalBatch(TensorBatch):
    """Rows of tokens and what follows each."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    """The next token; IGNORED where it is not scored."""
    scored_B: NDArray[np.int64]
    """Labels of each row that are scored …"""
    bytes_B: NDArray[np.int64]
    """… and their bytes of text."""
    texts: Texts | None = None
    """What attention stays inside of; None: causal over the row."""
    position_ids_BT: Tensor | None = None

    @property
    def slots(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def scored(self) -> int:
        """Labels that are scored …"""
        return int(self.scored_B.sum())

    @property
    def scored_bytes(self) -> int:
        """… and the bytes of text that they stand for."""
        return int(self.bytes_B.sum())

    @property
    def counts(self) -> dict[str, int]:
        return {"lm_loss": self.scored}


class CausalLM(nn.Module):
    """A decoder's body with its output layer: the token embedding, or one of its own."""

    def __init__(self, body: Backbone, *, z_loss: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.z_loss = z_loss
        config = self.body.config
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            initialise(self.output, config.output_std())

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits."""
        return (self.output or self.body.embedding()).weight

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits (…, V) of the next token, in fp32."""
        return self.capped(F.linear(hidden_MD, self.output_weight))

    def capped(self, product_MV: Tensor) -> Tensor:
        """Logits from the output layer's product."""
        logits_MV = product_MV.float()
        cap = self.body.config.output_cap()
        return logits_MV if cap is None else cap * torch.tanh(logits_MV / cap)

    def loss(self, batch: TensorBatch) -> LossParts:
        """Cross-entropy of the next tokens in nats; per byte of text, in bits."""
        assert isinstance(batch, CausalBatch)
        hidden_BTD = self.body(batch.input_ids_BT, batch.texts, batch.position_ids_BT)
        nll, correct = linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            self.output_weight,
            None,
            batch.labels_BT.flatten(),
            cap=self.body.config.output_cap(),
            z_weight=self.z_loss if self.training else 0.0,
        )
        bits = nll.detach() / math.log(2)
        return LossParts(
            {"lm_loss": Ratio(nll, batch.scored)},
            {
                "lm_accuracy": Ratio(correct, batch.scored),
                "bits_per_byte": Ratio(bits, batch.scored_bytes),
            },
        )


def collate(
    rows: Rows, *, start: int, end: int, token_bytes: NDArray[np.int64], document_mask: bool
) -> CausalBatch:
    """Rows as a batch.

    start, end: the tokens around a document. token_bytes: (V,), bytes of text of each token.
    """
    inputs, labels = rows.ids[:, :-1], rows.ids[:, 1:].copy()
    unknown = np.arange(1, rows.ids.shape[1]) >= rows.known[:, None]
    labels[unknown] = IGNORED
    if start != end:  # what follows a document's end is not its continuation
        labels[inputs == end] = IGNORED
    scored = labels != IGNORED
    texts = positions = None
    if document_mask:
        begins = rows.begins[:, :-1]
        texts = Texts.of(begins)
        positions = torch.from_numpy(np.arange(inputs.shape[1]) - np.maximum(begins, 0))
    return CausalBatch(
        tokens_B=np.minimum(rows.known - 1, inputs.shape[1]),
        input_ids_BT=torch.from_numpy(inputs.copy()),
        labels_BT=torch.from_numpy(labels),
        scored_B=scored.sum(1),
        bytes_B=(token_bytes[labels.clip(0)] * scored).sum(1),
        texts=texts,
        position_ids_BT=positions,
    )


HEAD_NAME = "lm_head.weight"


def to_hugging_face(model: CausalLM, architecture: ModelSpec) -> dict[str, Tensor]:
    """Tensors in the names of Hugging Face's class for causal language modelling."""
    state = model.state_dict()
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    tensors = architecture.export_tensors(body, model.body.config)
    if model.output is not None:
        tensors[HEAD_NAME] = state["output.weight"]
    return tensors


def from_hugging_face(
    body: Backbone, tensors: Mapping[str, Tensor], architecture: ModelSpec
) -> CausalLM:
    """The inverse of ``to_hugging_face``; the given body is filled.

    Raises InputError if the output layer is not there.
    """
    model = CausalLM(body)
    imported = architecture.import_tensors(tensors, model.body.config)
    state = {f"body.{k}": v for k, v in imported.items()}
    if model.output is not None:
        if HEAD_NAME not in tensors:
            raise InputError(
                "the model has no output layer for the next token; give --from a pretrained run"
            )
        state["output.weight"] = tensors[HEAD_NAME]
    model.load_state_dict(state)
    return model
