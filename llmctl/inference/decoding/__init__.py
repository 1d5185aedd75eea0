"""Writing texts with a language model: every way of choosing the next token.

``GenerationConfig`` says how. ``generate`` writes many texts; the strategies are in
``strategies.py``, and each way of searching has a file.
"""

from llmctl.inference.decoding.batches import generate
from llmctl.inference.decoding.config import GenerationConfig
from llmctl.inference.decoding.rows import CompiledSamplingParams, Completion

__all__ = ["CompiledSamplingParams", "Completion", "GenerationConfig", "generate"]
