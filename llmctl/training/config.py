"""What every training shares, whatever is trained."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field

from llmctl.config import NOT_IDENTITY, Config, Seconds

Precision = Literal["auto", "fp32", "bf16", "fp8"]


HIGHEST = 1e6
"""No rate is of use beyond it, and the product of some would be no number of 32 bits."""


class TrainingConfig(Config):
    """How long, how fast, and how often to look."""

    max_steps: int | None = Field(None, ge=1)
    """Steps in all. Unset: as many as ``epochs`` need, or as ``time_limit`` allows."""
    epochs: float = Field(10.0, gt=0)
    """Passes over the training data, where neither steps nor time are given."""
    time_limit: Seconds | None = Field(None, gt=0)
    """Seconds of wall clock (``10m``, ``1h30m``); the learning rate decays to zero by then. Such a
    run does as many steps as the machine manages, so it can't be repeated to the bit."""
    batch_size: int = Field(32, ge=1)
    """Rows in a step, over all processes: sequences in pretraining, examples in finetuning."""
    micro_batch: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        0, json_schema_extra=NOT_IDENTITY
    )
    """Rows that a process takes at a time, adding up gradients until its part of the batch is done:
    less memory, and the same but for what dropout draws. 0: all at once; auto: as many as fit."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """Optimiser: adamw for all weights, or muon for the blocks' matrices and AdamW for the rest."""
    learning_rate: float = Field(0.0, ge=0, le=HIGHEST)
    """Learning rate of AdamW at its peak, after the warm-up. 0: by the stage and the model's
    width."""
    embedding_rate: float = Field(1.0, gt=0, le=HIGHEST)
    """Factor of the learning rate for token embeddings."""
    muon_learning_rate: float = Field(0.04, gt=0, le=HIGHEST)
    """Learning rate of Muon at its peak: the size of a step in each direction, whatever the
    gradient's."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of the gradient's running mean in Muon."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How the learning rate falls after the warm-up: linear, to zero, is BERT's; wsd
    (warm-up–stable–decay) stays at the peak and falls to zero in the end."""
    warmup: float = Field(0.06, ge=0, lt=1)
    """Share of the training during which the learning rate rises from zero."""
    decay: float = Field(0.2, gt=0, le=1)
    """Share of the training during which wsd's learning rate falls."""
    weight_decay: float = Field(0.01, ge=0, le=HIGHEST)
    """Weight decay of matrices; biases, norms and embeddings' norms are left alone."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean in AdamW, β₁."""
    beta_2: float = Field(0.98, ge=0, lt=1)
    """Decay of the squared gradient's running mean in AdamW, β₂."""
    epsilon: float = Field(1e-6, gt=0)
    """Term that AdamW adds to the root of the squared gradient's mean, ε."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this Euclidean norm."""
    skip_spikes: float = Field(0.0, ge=0)
    """A step whose gradient is this many times the usual norm or more is left out: its batch
    would throw training back. 0: never. The usual norm is a running mean; 10 is cautious."""
    precision: Precision = "auto"
    """Number format of the computation. auto: bf16 where a measurement on this machine finds it
    clearly faster, else fp32. fp8: bf16 with the blocks' matrix products in eight bits; for GPUs
    that have them (Hopper, Ada)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Make kernels for this very model (torch.compile), which takes up to a minute before the first
    step. auto: where training is long enough to win it back, and a compiler is there."""
    parallel: Literal["ddp", "fsdp", "hybrid"] = Field("ddp", json_schema_extra=NOT_IDENTITY)
    """How several processes share the model: ddp, each has it whole; fsdp, each holds a share of
    every weight, for models that don't fit; hybrid: shares within a machine, copies across."""
    cpu_offload: bool = Field(False, json_schema_extra=NOT_IDENTITY)
    """With training.parallel=fsdp: shares wait in the processor's memory, where the optimiser
    runs."""
    activation_checkpointing: bool = Field(False, json_schema_extra=NOT_IDENTITY)
    """Keep each block's input alone for the backward pass and compute the block again there: a
    third slower, a fraction of the memory."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device that trains; auto: the accelerator if there is one."""
    log_every: int = Field(10, ge=1, json_schema_extra=NOT_IDENTITY)
    """Steps between records of the metrics log."""
    eval_every: int = Field(0, ge=0)
    """Steps between validations; 0: about ten validations in all, or one each epoch."""
    checkpoint_every: int = Field(0, ge=0, json_schema_extra=NOT_IDENTITY)
    """Steps between checkpoints; 0: every ``checkpoint_seconds``."""
    checkpoint_seconds: Seconds = Field(60.0, gt=0, json_schema_extra=NOT_IDENTITY)
    """Wall clock between checkpoints where ``checkpoint_every`` is 0."""
    keep_checkpoints: Annotated[int, Field(ge=1)] | Literal["last", "all"] = Field(
        2, json_schema_extra=NOT_IDENTITY
    )
    """The newest so many stay on disk while training lasts, and go once its model stands. last: one
    stays, so that the run can be extended exactly; all: every one stays, to go back to any."""

    @property
    def checkpoints_while_training(self) -> int:
        """How many of the newest stay on disk."""
        if self.keep_checkpoints == "all":
            return sys.maxsize
        return 2 if self.keep_checkpoints == "last" else self.keep_checkpoints
