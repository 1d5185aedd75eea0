"""A model to a folder with an ONNX file, made by PyTorch's exporter and run by onnxruntime before
it is kept: outputs of several shapes must be the network's own."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.huggingface.writing import write_description
from llmctl.formats.onnx.networks import PAST, PRESENT, ExportedDecoder, ExportedReader
from llmctl.formats.rewriting import fields_beside
from llmctl.models.heads.embed import Embedder

ONNX_FILE = "model.onnx"
OPSET = 18
OUTPUT_TOLERANCE = 1e-4
"""By how much outputs may differ, of their largest: kernels of other libraries add up in another
order, in fp32."""
SHAPES = ((2, 7, 0), (1, 1, 6), (3, 4, 9))
"""Rows, tokens and tokens before them by which a file is checked; the first is exported with."""


def write_onnx(model: Pretrained, folder: Path) -> float:
    """Write ``model.onnx``, the description and the tokenizer; returns the largest difference of
    an output from the network's, as a share of the largest output.

    Raises InputError for a model that is not exported, or whose file gives other outputs;
    UsageError without the packages.
    """
    _check_packages()
    if (
        model.architecture is None
        or model.decoder is not None
        or model.spec.kind
        not in (
            "encoder",
            "decoder",
        )
    ):
        raise InputError(
            f"{model.path} is {model.described}, which is not exported to ONNX; encoders and "
            "decoders are, with what stands on them"
        )
    network = model.network().eval()
    causal = hasattr(network, "logits")
    exported: nn.Module = ExportedDecoder(network) if causal else ExportedReader(network)
    reads = _Inputs(model, network, causal)
    path = folder / ONNX_FILE
    with _quiet():
        torch.onnx.export(
            exported,
            reads.example(*SHAPES[0], seed=0),
            path,
            dynamo=True,
            external_data=True,
            opset_version=OPSET,
            input_names=reads.names,
            output_names=reads.outputs,
            dynamic_shapes=reads.dynamic(),
            verbose=False,
        )
    write_description(folder, network, model.tokenizer, fields_beside(model))
    return _check(path, exported, reads)


class _Inputs:
    """What a network takes and gives, by name."""

    def __init__(self, model: Pretrained, network: Any, causal: bool) -> None:
        self.config, self.causal = model.config, causal
        self.names = ["input_ids", "attention_mask"]
        if causal:
            pairs = [(n, part) for n in range(self.config.num_layers) for part in ("key", "value")]
            self.names += [PAST.format(*pair) for pair in pairs]
            self.outputs = ["logits", *(PRESENT.format(*pair) for pair in pairs)]
        else:
            if model.spec.kind == "encoder" and self.config.reads_segments:
                self.names.append("token_type_ids")
            self.outputs = ["sentence_embedding" if isinstance(network, Embedder) else "logits"]

    def example(self, rows: int, tokens: int, past: int, *, seed: int) -> tuple[Tensor, ...]:
        """Inputs of a shape, the first row padded: on the left where there is a cache."""
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.config.vocab_size, (rows, tokens), generator=draw)
        past = past if self.causal else 0
        mask = torch.ones(rows, past + tokens, dtype=torch.int64)
        if rows > 1:
            mask[0, 0 if self.causal else -1] = 0
        if not self.causal:
            kinds = torch.randint(2, (rows, tokens), generator=draw)
            return (ids, mask, kinds)[: len(self.names)]
        heads, width = self.config.kv_shape()
        tables = [torch.randn(rows, heads, past, width, generator=draw) for _ in self.names[2:]]
        return (ids, mask, *tables)

    def dynamic(self) -> tuple[Any, ...]:
        """The sides of each input that may have any length."""
        batch = tokens = torch.export.Dim.DYNAMIC
        sides = {0: batch, 1: tokens}
        if not self.causal:
            return tuple(sides for _ in self.names)
        return (sides, sides, tuple({0: batch, 2: tokens} for _ in self.names[2:]))


def _check(path: Path, exported: nn.Module, reads: _Inputs) -> float:
    """The largest difference between what onnxruntime makes of a file and the network's outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for number, shape in enumerate(SHAPES):
        inputs = reads.example(*shape, seed=number)
        with torch.no_grad():
            wanted = exported(*inputs)
        fed = {name: value.numpy() for name, value in zip(reads.names, inputs, strict=True)}
        given = session.run(reads.outputs, fed)
        expected = wanted if isinstance(wanted, tuple) else (wanted,)
        for name, ours, theirs in zip(reads.outputs, expected, given, strict=True):
            largest = max(float(ours.abs().max()), 1e-6)
            difference = float(np.abs(ours.numpy() - theirs).max()) / largest
            if not difference <= OUTPUT_TOLERANCE:
                raise InputError(
                    f"the ONNX file gives another {name} than the model: {difference:.1e} of the "
                    "largest, at rows, tokens and tokens before of "
                    f"{shape}; nothing is kept: use another version of onnx or onnxruntime"
                )
            worst = max(worst, difference)
    return worst


def _check_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise UsageError(
                f"--format onnx needs the package {package}; install it with: pip install "
                "'llmctl[export]'"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps on standard output, and warns of its own future."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
