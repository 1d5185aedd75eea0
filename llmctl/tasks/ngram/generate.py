"""Generate with an n-gram model."""

from __future__ import annotations

from llmctl.errors import UsageError
from llmctl.inference.decoder import DecoderRunner
from llmctl.inference.ngram_decoder import NgramDecoder
from llmctl.tasks.causal_lm.generate import Continuation
from llmctl.tasks.generation import GenerateConfig
from llmctl.tasks.opened import OpenedModel


class NgramContinuation(Continuation):
    """An n-gram model that writes on behind prompts."""

    @staticmethod
    def decoder(model: OpenedModel, config: GenerateConfig, rows: int) -> DecoderRunner:
        if config.dtype != "fp32":
            raise UsageError(
                f"--dtype {config.dtype}: {model.name} is an n-gram model, without weights"
            )
        if config.kernels == "native":
            raise UsageError(
                f"--kernels {config.kernels}: {model.name} is an n-gram model, without weights"
            )
        return NgramDecoder(model.folder.ngram())
