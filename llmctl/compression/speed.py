"""How fast a model is: the time of a step at batch 1 and 32, and what it holds in memory.

A decoder's step is the next token of each text; an encoder's is a batch of whole texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.formats.base import Pretrained
from llmctl.formats.description import NEXT_TOKEN_KINDS
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Engine, EngineConfig, EngineRequest
from llmctl.inference.int4 import GROUP
from llmctl.inference.weights import (
    Kernels,
    WeightType,
    chosen_kernels,
    prepare,
    prepare_reader,
)
from llmctl.models.layers.quantised_embedding import bytes_of_table
from llmctl.models.spec import TOKEN_TABLE, Backbone

TIMED_BATCHES = (1, 32)
TIMED_TOKENS = 64
"""Tokens of a text that an encoder reads, or that a decoder has before it."""
MOST_TIMED_STEPS = 256
"""Tokens that are written behind a text at most."""
READ_AT_ONCE = EngineConfig(prefix_cache=0, step_seconds=1000.0)
"""Prompts are read in as few steps as may be."""
LEAST_STEPS_TIMED, LEAST_SECONDS_TIMED = 3, 0.3
"""Steps that are timed at least, and for how long at least."""
BYTES_OF_SCALES = 4
"""What a group's scale and offset take, in bf16 each, or an output's scale in fp32."""


@dataclass(frozen=True)
class InferenceSpeed:
    """What a model takes."""

    latency_1: float
    """Seconds of a step at batch 1."""
    latency_32: float
    """Seconds of a step at batch 32."""
    tokens_per_second: float
    """At batch 1 of what is written; at batch 32 of what is read."""


def measure_speed(
    folder: Pretrained, dtype: WeightType, note: Callable[[str], None] | None = None
) -> InferenceSpeed:
    """Time a model with its weights in a form, by the kernels that it would be used with here.

    note: see ``chosen_kernels``.
    """
    kernels = chosen_kernels("auto", dtype, torch.device("cpu"), note)
    seconds = [_step(folder, dtype, kernels, rows) for rows in TIMED_BATCHES]
    if folder.kind in NEXT_TOKEN_KINDS:
        return InferenceSpeed(seconds[0], seconds[1], 1 / seconds[0])
    return InferenceSpeed(
        seconds[0], seconds[1], TIMED_BATCHES[1] * min(TIMED_TOKENS, folder.max_length) / seconds[1]
    )


@torch.inference_mode()
def _step(folder: Pretrained, dtype: WeightType, kernels: Kernels, rows: int) -> float:
    length = min(TIMED_TOKENS, folder.max_length // 2)
    if folder.kind in NEXT_TOKEN_KINDS:
        model = folder.causal_lm()
        decoder = CausalDecoder(model, head=prepare(model, dtype, rows=rows, kernels=kernels))
        room = min(folder.max_length - length, MOST_TIMED_STEPS)
        how = GenerationConfig(max_new_tokens=room, min_new_tokens=room)
        rules = CompiledSamplingParams(how, folder.tokenizer)
        engine = Engine(decoder, READ_AT_ONCE.replace(max_sequences=rows))

        def begin() -> None:
            while not engine.idle:
                engine.step()
            for number in range(rows):
                engine.submit(EngineRequest(prompt=[0] * length, rules=rules, number=number))
            while not engine.idle and len(engine.step()) < rows:
                pass  # until all prompts are read

        return _timed(engine.step, begin, room - 1)
    network: Any = folder.network().eval()
    prepare_reader(network.body, dtype, rows=rows * length)
    text_BT = torch.zeros(rows, min(TIMED_TOKENS, folder.max_length), dtype=torch.long)
    return _timed(lambda: network.body(text_BT), lambda: None, 1 << 30)


def _timed(step: Callable[[], Any], begin: Callable[[], Any], most: int) -> float:
    """The median of a step's seconds. most: steps until there is no room left."""
    begin()
    step()
    seconds: list[float] = []
    done = 1
    while len(seconds) < LEAST_STEPS_TIMED or sum(seconds) < LEAST_SECONDS_TIMED:
        if done == most:
            begin()
            done = 0
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
        done += 1
    return median(seconds)


def bytes_in_memory(folder: Pretrained, dtype: WeightType) -> int:
    """Bytes of a model's weights in the form that it is used in: the matrices of its blocks, and a
    decoder's output layer, in ``dtype``; embeddings that the folder has in whole numbers in these;
    and everything else in fp32."""
    network: Any = folder.network()
    size = sum(4 * tensor.numel() for tensor in network.parameters())
    if dtype == "fp32":
        return size
    body: Backbone = network.body
    groups = {name: read().group for name, read in folder.quantised.items()}
    matrices = {
        f"body.{name}.weight": part.weight
        for name, part in body.named_modules()
        if isinstance(part, nn.Linear)
    }
    size -= sum(4 * weight.numel() for weight in matrices.values())
    table = f"body.{TOKEN_TABLE}"
    if table in folder.quantised:
        matrix = folder.quantised[table]()
        size += bytes_of_table(matrix) - 4 * matrix.numbers_OI.numel()
    if folder.kind in NEXT_TOKEN_KINDS:
        # One that is the embedding too is kept as that besides.
        shared = body.config.tie_embeddings
        size -= 0 if shared else 4 * network.output_weight.numel()
        matrices[table if shared else "output.weight"] = network.output_weight
    return size + sum(
        _bytes_of(weight, dtype, groups.get(name, GROUP)) for name, weight in matrices.items()
    )


def _bytes_of(weight_OI: Tensor, dtype: WeightType, group: int) -> int:
    outputs, inputs = weight_OI.shape
    if dtype == "int4":
        return outputs * inputs // 2 + BYTES_OF_SCALES * outputs * -(-inputs // group)
    return outputs * inputs + BYTES_OF_SCALES * outputs
