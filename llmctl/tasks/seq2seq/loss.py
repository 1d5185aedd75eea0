"""The loss of writing a target from a source: cross-entropy of the target's tokens."""

from __future__ import annotations

from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import linear_cross_entropy
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.seq2seq import Seq2Seq
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.seq2seq.batches import Seq2SeqBatch
from llmctl.training.batches import LossParts, SumAndCount


def seq2seq_loss(
    model: Seq2Seq | EncoderDecoderLM | CausalLM,
    batch: Seq2SeqBatch | CausalBatch,
    *,
    smoothing: float = 0.0,
) -> LossParts:
    """Cross-entropy of the targets' tokens in nats, whichever way they are written.

    smoothing: of the labels, in the training of a decoder.
    """
    if isinstance(model, CausalLM):
        assert isinstance(batch, CausalBatch)
        return causal_lm_loss(model, batch)
    assert isinstance(batch, Seq2SeqBatch)
    source = model.read(batch.source_ids_BS, batch.source_lengths_B)
    hidden_BTD = model.write(batch.input_ids_BT, source)
    nll, correct = linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.output_weight,
        model.output_bias,
        batch.labels_BT.flatten(),
        cap=model.output_cap,
        smoothing=smoothing if model.training else 0.0,
    )
    return LossParts(
        {"target_loss": SumAndCount(nll, batch.scored)},
        {"token_accuracy": SumAndCount(correct, batch.scored)},
    )
