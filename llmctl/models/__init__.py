"""The architectures: one file each, from its configuration to its Hugging Face names.

An entry of ``ARCHITECTURES`` is all that a new one needs outside its own file.
"""

from __future__ import annotations

from llmctl.models import (
    bart,
    bert,
    distilbert,
    electra,
    gemma3,
    gpt,
    llama,
    modernbert,
    nanochat,
    roberta,
    smollm3,
    t5,
)

ENCODERS = (
    bert.SPEC,
    distilbert.SPEC,
    electra.SPEC,
    modernbert.SPEC,
    *roberta.ROBERTA_SPECS,
)
DECODERS = (gpt.SPEC, *llama.SPECS, smollm3.SPEC, gemma3.SPEC, nanochat.SPEC)
ENCODER_DECODERS = (t5.SPEC, bart.SPEC)
ARCHITECTURES = {spec.name: spec for spec in (*ENCODERS, *DECODERS, *ENCODER_DECODERS)}

BY_MODEL_TYPE = {spec.model_type: spec for spec in ARCHITECTURES.values()}
"""Architectures by config.json's model_type."""
