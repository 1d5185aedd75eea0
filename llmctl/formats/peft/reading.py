"""An adapter read over its base: each tensor with what was learned of it, when it is looked up.

    LoRA   W + s B A;   with DoRA   m ⊙ (W + s B A) / ‖W + s B A‖
    (IA)³  l ⊙ W, or W ⊙ l of inner units

All in Hugging Face's names. What changes a result and isn't known here is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.description import MAX_LENGTH, TASK
from llmctl.formats.huggingface.weights import AGAIN, Weights
from llmctl.formats.peft.virtual import PREFIX, PROMPT_EMBEDDINGS, PROMPTS
from llmctl.formats.peft.writing import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_RECORD,
    PROMPTED,
    WRAPPED,
)
from llmctl.models.config_json import shown
from llmctl.models.spec import HUGGING_FACE, TOKEN_TABLE, ModelSpec
from llmctl.models.weight_map import Transpose
from llmctl.parsing import read_json_object
from llmctl.tokenizers.loading import IN_A_FOLDER
from llmctl.workspace.tensors import MappedFiles, TensorReader

PICKLED_ADAPTER = "adapter_model.bin"
LORA, IA3 = "LORA", "IA3"
KNOWN = (LORA, IA3, *PROMPTS, PREFIX)
REFUSED: dict[str, tuple[Any, ...]] = {
    # What each may be; anything else changes what LoRA computes, or the base's weights.
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "lora_bias": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_qalora": (None, False),
}
TENSOR_PARTS = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|ia3_l)(\.default)?(\.weight)?"
)
PEFT_KINDS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag", "CAUSAL_LM": "causal_lm",
         "SEQ_2_SEQ_LM": "seq2seq", "FEATURE_EXTRACTION": "embed"}  # fmt: skip
"""What models do, by PEFT's names of tasks."""


class Reading:
    """What an adapter's folder says and holds, laid over its base: see ``read_folder``."""

    def __init__(self, path: Path, fields: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        """fields: of adapter_config.json. beside: what the base's folder says of it beside its
        config.json. Raises InputError for what is not done here."""
        self._path, self._fields, self._beside = path, fields, beside
        self.where = str(path / ADAPTER_CONFIG)
        kind = fields.get("peft_type")
        if kind not in KNOWN:
            raise InputError(
                f"{self.where}: peft_type is {shown(kind)}, and {', '.join(KNOWN)} are supported"
            )
        self.kind = str(kind)
        self.is_prompt = kind in (*PROMPTS, PREFIX)
        for name, allowed in REFUSED.items():
            if kind == LORA and fields.get(name) not in allowed:
                raise InputError(f"{self.where}: {name} {shown(fields[name])} is not supported")
        record = path / PEFT_RECORD
        self._record = read_json_object(record, AGAIN) if record.is_file() else None
        files = [path / ADAPTER_WEIGHTS, path / PICKLED_ADAPTER]
        file = next((file for file in files if file.is_file()), files[0])
        self._tensors = Weights([file])
        self.weights_files = (file, *([record] if record.is_file() else []))

    @property
    def tokenizer(self) -> Path | None:
        """The adapter's folder, if there is a tokenizer in it."""
        there = any((self._path / name).is_file() for name in IN_A_FOLDER)
        return self._path if there else None

    def prompt(self) -> Tensor:
        """The virtual tokens as they are kept."""
        if PROMPT_EMBEDDINGS not in self._tensors:
            raise InputError(f"{self.weights_files[0]} has no {PROMPT_EMBEDDINGS}; {AGAIN}")
        return self._tensors[PROMPT_EMBEDDINGS]

    def weights(self, base: Weights, spec: ModelSpec, config: Any) -> Weights:
        """The base's tensors with what was learned."""
        parts: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        before = PROMPTED if self.is_prompt else WRAPPED
        for name in self._tensors:
            if name == PROMPT_EMBEDDINGS or ".original_module." in name:
                continue
            inner = name.removeprefix(before)
            if match := TENSOR_PARTS.fullmatch(inner):
                parts.setdefault(match["layer"], {})[match["part"]] = name
            else:
                inner = re.sub(r"\.modules_to_save(\.default)?|\.base_layer", "", inner)
                whole[_as_in(base, inner, spec)] = name
        self._check_table(base, whole, spec, config)
        changes: dict[str, Callable[[Tensor], Tensor]] = {}
        for layer, names in parts.items():
            for leaf in ("weight", "bias"):
                name = _as_in(base, f"{layer}.{leaf}", spec)
                if name in base:
                    changes[name] = partial(self._changed, layer, names, spec, config, leaf)
                elif leaf == "weight":
                    raise InputError(
                        f"{self.weights_files[0]}: the adapter changes {layer}, which the model "
                        f"{base.files[0].parent} has not; it is for another"
                    )
        return AdaptedWeights(base, self._tensors, whole, changes)

    def _changed(
        self, layer: str, names: Mapping[str, str], spec: ModelSpec, config: Any, leaf: str,
        tensor: Tensor,
    ) -> Tensor:  # fmt: skip
        """A tensor of a layer with what was learned of it."""
        turned = tensor.dim() > 1 and layer in _transposed(spec, config)
        weight = tensor.float().T if turned else tensor.float()
        found = {part: self._tensors[name].float() for part, name in names.items()}
        try:
            if self.kind == IA3:
                changed = self._scaled(weight, found["ia3_l"], leaf)
            elif leaf == "bias":
                changed = weight
            else:
                rank = found["lora_A"].shape[0]
                changed = weight + self._scale(layer, rank) * found["lora_B"] @ found["lora_A"]
                if "lora_magnitude_vector" in found:
                    lengths = changed.norm(dim=1)
                    changed = changed * (found["lora_magnitude_vector"] / lengths)[:, None]
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.weights_files[0]}: what is learned of {layer} doesn't fit it ({reason}); "
                "the adapter is for another model, or damaged"
            ) from None
        return changed.T if turned else changed

    def _scaled(self, weight: Tensor, factors: Tensor, leaf: str) -> Tensor:
        inner = factors.dim() == 2 and factors.shape[0] == 1
        if leaf == "bias":
            return weight if inner else weight * factors.flatten()
        return weight * (factors if inner else factors.view(-1, 1))

    def _scale(self, layer: str, rank: int) -> float:
        alpha, patterns = self._fields.get("lora_alpha", 8), self._fields.get("alpha_pattern") or {}
        for pattern, value in patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = value
                break
        if not isinstance(alpha, int | float) or isinstance(alpha, bool):
            raise InputError(f"{self.where}: lora_alpha is {shown(alpha)}, not a number")
        return float(alpha) / (math.sqrt(rank) if self._fields.get("use_rslora") else rank)

    def _check_table(
        self, base: Weights, whole: Mapping[str, str], spec: ModelSpec, config: Any
    ) -> None:
        """Raises InputError for a new table of token embeddings beside an output layer that shared
        the old one: PEFT leaves that as it was, and there are two tables then."""
        if not getattr(config, "tie_embeddings", False) or self._fields.get("ensure_weight_tying"):
            return
        if PEFT_KINDS.get(str(self._fields.get("task_type"))) not in ("causal_lm", "seq2seq", None):
            return
        for _, ours, theirs in spec.weights[HUGGING_FACE].tensors(config):
            if ours == TOKEN_TABLE and _as_in(base, theirs[0], spec) in whole:
                raise InputError(
                    f"{self.where}: modules_to_save has the token embeddings, which the base's "
                    "output layer shares and would share no more; merge it with PEFT "
                    "(merge_and_unload), or train it with ensure_weight_tying"
                )

    def description(
        self, fields: Mapping[str, Any], spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, Any]:
        """The description of what base and adapter are together: as it was written down here, or
        the base's for the adapter's task."""
        if self._record is not None:
            if self._record.get("model_type") == "llmctl-seq2seq":
                raise InputError(
                    f"{self._path} goes with a decoder that was attached to its model; give the "
                    "run, whose folder model has all of it"
                )
            if self._record.get("model_type") != fields.get("model_type"):
                written = shown(self._record.get("model_type"))
                raise InputError(
                    f"{self._path / PEFT_RECORD}: model_type is {written}, and the base "
                    f"is a {fields.get('model_type')}; it is for another"
                )
            return self._record
        kind = PEFT_KINDS.get(str(self._fields.get("task_type")))
        if kind is None or (kind == "seq2seq" and spec.kind != "encoder-decoder"):
            return fields
        if kind == "embed":
            return {**fields, **self._beside, TASK: kind} if self._beside else fields
        names = spec.head_names(kind)
        layer = next((n for n, ours in names.items() if ours == "output.weight"), None)
        rows = shapes.get(layer, (0,))[0] if layer is not None else 0
        if kind in ("classify", "tag"):
            if kind == "classify" and rows == 1:
                kind = "regress"
            labels = fields.get("id2label")
            if not isinstance(labels, dict) or len(labels) != rows:
                labels = {str(number): f"LABEL_{number}" for number in range(rows)}
                fields = {**fields, "id2label": labels}
        limits = {} if kind == fields.get(TASK) else {MAX_LENGTH: fields.get(MAX_LENGTH)}
        return {**fields, TASK: kind, **{k: v for k, v in limits.items() if v is not None}}


class AdaptedWeights(Weights):
    """A base's tensors, some of them changed when they are looked up, and some of the adapter's."""

    def __init__(
        self,
        base: Weights,
        adapter: Weights,
        whole: Mapping[str, str],
        changes: Mapping[str, Callable[[Tensor], Tensor]],
    ) -> None:
        """whole: the adapter's names of tensors that take those of a name. changes: what makes a
        tensor of a name of the base's."""
        super().__init__(base.files)
        self._base, self._adapter, self._whole, self._changes = base, adapter, whole, changes

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, read from the files' heads."""
        own = self._adapter.shapes
        return {**self._base.shapes, **{name: own[theirs] for name, theirs in self._whole.items()}}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._whole:
            return self._adapter[self._whole[name]]
        tensor = self._base[name]
        return self._changes[name](tensor) if name in self._changes else tensor

    def into(self, name: str, place: Tensor, files: dict[Path, TensorReader]) -> None:
        if name in self._whole:
            self._adapter.into(self._whole[name], place, files)
        elif name in self._changes:
            place.copy_(self[name])
        else:
            self._base.into(name, place, files)

    def mapped(self, names: Sequence[str], dtype: torch.dtype, files: MappedFiles) -> Tensor | None:
        """The numbers of tensors that nothing was learned of, as ``Weights`` gives them."""
        unchanged = {*self._whole, *self._changes}.isdisjoint(names)
        return self._base.mapped(names, dtype, files) if unchanged else None

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _as_in(base: Weights, name: str, spec: ModelSpec) -> str:
    """A tensor's name as the base has it: the bodies' names begin with a prefix, or don't."""
    prefix = spec.weights[HUGGING_FACE].prefix
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in base:
            return candidate
    return name


def _transposed(spec: ModelSpec, config: Any) -> set[str]:
    """Layers that keep their matrices as (inputs, outputs)."""
    names = spec.weights[HUGGING_FACE]
    layers = {
        theirs.rpartition(".")[0]
        for rule in names.rules
        if isinstance(rule, Transpose)
        for _, all_of_them in rule.tensors(getattr(config, rule.layers))
        for theirs in all_of_them
    }
    return layers | {layer.removeprefix(names.prefix) for layer in layers}
