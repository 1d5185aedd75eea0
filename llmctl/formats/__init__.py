"""Formats: how models are kept, here and elsewhere; each a folder, and a line in ``FORMATS``."""

from __future__ import annotations

from llmctl.formats.base import Format
from llmctl.formats.gguf import Gguf
from llmctl.formats.huggingface import HuggingFace
from llmctl.formats.litgpt import LitGpt
from llmctl.formats.llama2c import Llama2c
from llmctl.formats.nanogpt import NanoGpt
from llmctl.formats.ngram.folder import NgramFormat
from llmctl.formats.ollama import Ollama
from llmctl.formats.peft.folder import Peft
from llmctl.formats.sentence_transformers.folder import SentenceTransformers

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        NgramFormat(),
        Peft(),
        SentenceTransformers(),
        LitGpt(),
        HuggingFace(),
        Gguf(),
        Ollama(),
        Llama2c(),
        NanoGpt(),
    )
}
"""By name. The first that recognises a folder opens it: n-grams have a config.json too, and LitGPT
copies others' beside its own."""
