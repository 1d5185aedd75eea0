"""Checkpoints of nanoGPT (Karpathy 2022): ``ckpt.pt``, as its train.py saves it.

A pickled object with, beside the optimizer's state, ``model`` (tensors in the names of GPT-2's
classes, matrices as ``nn.Linear`` keeps them, behind ``_orig_mod.`` after torch.compile) and
``model_args`` (n_layer, n_head, n_embd, block_size, vocab_size, bias, dropout). Without ``bias``
neither matrices nor norms have biases: here they are 0.

Which GELU a network has isn't said. nanoGPT computes GPT-2's approximation by tanh until May 2023
and the exact one since; ``bias`` is among ``model_args`` from January 2023 on. So a checkpoint
without it has the approximation, any other the exact one.

A checkpoint has no tokenizer: see tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmctl.errors import InputError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.description import Purpose
from llmctl.formats.huggingface.weights import Weights, check_body, check_sizes, load_pickled
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.formats.nanogpt.tokenizer import read_tokenizer_for
from llmctl.models import ARCHITECTURES
from llmctl.models.config_json import FieldError
from llmctl.models.nanogpt_names import (
    ARGUMENTS,
    EMBEDDING_MATRIX,
    NAMES,
    OUTPUT_MATRIX,
    SIZES_BY_ARGUMENT,
    WITHOUT_BIAS,
    described_by,
)
from llmctl.tokenizers import Tokenizer

CHECKPOINT, ENDING = "ckpt.pt", ".pt"
"""What train.py calls it, and the ending of one that was called otherwise."""
SAVE_PLAIN = "save it again with plain values and tensors alone"


class NanoGpt:
    """What nanoGPT's train.py writes, and its sample.py reads."""

    name = "nanogpt"

    def recognises(self, path: Path) -> bool:
        """Whether a path is such a file by its name, or a folder with one."""
        return (path.suffix == ENDING and path.is_file()) or (path / CHECKPOINT).is_file()

    def open(self, path: Path) -> Pretrained:
        """The model of a checkpoint or of its folder, with the tokenizer beside it.

        Raises InputError naming what is missing, malformed or not known.
        """
        return self.open_with(path, None)

    def open_with(self, path: Path, tokenizer: Path | None) -> Pretrained:
        """The model of a checkpoint, with a tokenizer that is given. Raises as ``open``."""
        file = path / CHECKPOINT if path.is_dir() else path
        arguments, weights, dataset = _read(file)
        with_bias = arguments.get("bias", True)
        shapes, readers = _with_biases(file, weights, with_bias=with_bias)
        spec = ARCHITECTURES["gpt"]
        tied = weights.repeats(OUTPUT_MATRIX, EMBEDDING_MATRIX)
        try:
            config = spec.from_hugging_face(described_by(arguments, tied=tied))
        except FieldError as error:
            raise InputError(f"{file}: {error}") from None
        try:
            check_sizes(config, shapes)
            check_body(spec, config, shapes, {OUTPUT_MATRIX}, NAMES)
        except ValueError as error:
            raise InputError(
                f"{file} is not the model that its model_args describe ({error}); copy it again"
            ) from None
        tensors = LazyTensors(readers)
        files, own_tokenizer = read_tokenizer_for(file, tokenizer, config.vocab_size, dataset)
        return Pretrained(
            path=path,
            files=(file, *files),
            fields={},
            config=config,
            tokenizer=own_tokenizer,
            purpose=Purpose("causal_lm"),
            tensors=LazyTensors(NAMES.model_readers("causal_lm", tensors, config)),
            architecture=spec,
        )

    def save(
        self, folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Raises InputError: such checkpoints are only read."""
        raise InputError("models are not written as nanoGPT's; export to gguf, onnx or hf")


def _read(file: Path) -> tuple[dict[str, Any], Weights, str | None]:
    """The arguments of a checkpoint's model, its tensors, and what it says it was trained on."""
    value = load_pickled(file, SAVE_PLAIN)
    if not isinstance(value, dict) or not {"model", "model_args"} <= value.keys():
        raise InputError(
            f"{file} is no checkpoint of nanoGPT, which has model and model_args; give one, or a "
            "folder of transformers"
        )
    arguments = value["model_args"]
    if not isinstance(arguments, dict):
        raise InputError(f"{file}: model_args is no table of values; copy it again")
    for name, said in arguments.items():
        if name not in ARGUMENTS and said is not None:
            raise InputError(
                f"{file}: model_args has {name!r}, and what it changes in a GPT-2 is not known here"
                f"{did_you_mean(str(name), ARGUMENTS)}; give a checkpoint without it"
            )
    for name in SIZES_BY_ARGUMENT:
        if type(arguments.get(name)) is not int:
            raise InputError(f"{file}: model_args has no whole number for {name}; copy it again")
    if type(arguments.get("bias", True)) is not bool:
        raise InputError(f"{file}: bias is neither true nor false; copy it again")
    settings = value.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    weights = Weights.of_checkpoint(file, value["model"])
    return dict(arguments), weights, dataset if isinstance(dataset, str) else None


def _with_biases(
    file: Path, weights: Weights, *, with_bias: bool
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes and readers of a checkpoint's tensors, with biases of 0 where it has none.

    Raises InputError where it has some all the same.
    """
    shapes = dict(weights.shapes)
    readers = {name: partial(weights.__getitem__, name) for name in shapes}
    if with_bias:
        return shapes, readers
    surplus = next((name for name in shapes if name.endswith(".bias")), None)
    if surplus is not None:
        raise InputError(f"{file}: bias is false, and there is a tensor {surplus}; copy it again")
    for name, shape in weights.shapes.items():
        if name.endswith(".weight") and name not in WITHOUT_BIAS and shape:
            bias = f"{name.removesuffix('weight')}bias"
            shapes[bias] = shape[:1]
            readers[bias] = partial(torch.zeros, shape[0])
    return shapes, readers
