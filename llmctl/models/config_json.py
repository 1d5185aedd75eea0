"""Fields of others' config.json: which are read, which change nothing, and which are refused.

A field that is passed over may change what the network computes (how attention is scaled, a bias, a
window), and the model then answers wrongly without a word. So an architecture says of each field
what becomes of it: it is read; or it must have the value with which the network is as here; or it
changes no output of a finished network (metadata, token ids, dropout of training). Any other field
is refused by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from llmctl.config import Config
from llmctl.errors import InputError, did_you_mean

OWN_PREFIX = "llmctl_"
"""What the names of fields begin with that only llmctl writes."""

IGNORED_FIELDS = frozenset(
    {
        # Where it is from, and who wrote it.
        "_name_or_path", "_commit_hash", "_num_labels", "architectures", "finetuning_task",
        "is_llama_config", "language", "license", "model_name", "model_type", "name",
        "tags", "tokenizer_class", "transformers.js_config", "transformers_version",
        "unsloth_fixed", "unsloth_version",
        # How transformers runs it: the same result in another form or by another kernel.
        "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
        "_experts_implementation", "_flash_attn_2_enabled", "attn_implementation",
        "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "keys_to_ignore_at_inference",
        "output_attentions", "output_hidden_states", "output_past", "output_scores",
        "pretraining_tp", "return_dict", "return_dict_in_generate", "torch_dtype", "torchscript",
        "use_bfloat16", "use_cache", "xla_device",
        # Token ids: the tokenizer's files and generation_config.json say them; see hf_config.py.
        "begin_suppress_tokens", "bos_token_id", "cls_token_id", "decoder_start_token_id",
        "eos_token_id", "eos_token_ids", "forced_bos_token_id", "forced_eos_token_id",
        "mask_token_id", "pad_token_id", "sep_token_id", "suppress_tokens", "unk_token_id",
        # Lengths of training; what the network has is max_position_embeddings.
        "max_seq_length", "max_sequence_length", "model_max_length",
        # How texts are written, which here is said anew each time.
        "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty",
        "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups",
        "num_beams", "num_return_sequences", "prefix", "remove_invalid_values",
        "repetition_penalty", "task_specific_params", "temperature", "top_k", "top_p", "typical_p",
        # What a head is; see llmctl/formats/huggingface/purposes.py.
        "classifier_dropout", "id2label", "label2id", "num_labels", "problem_type",
        # Training alone.
        "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "embd_pdrop",
        "hidden_dropout", "initializer_range", "label_smoothing",
    }
)  # fmt: skip
"""What changes no output of any network here."""


ACTIVATION_NAMES = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}
"""What others call each activation of a feed-forward network."""
ACTIVATIONS_BY_NAME = {theirs: ours for ours, theirs in ACTIVATION_NAMES.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh"
}


class FieldError(InputError):
    """A field of a config.json that can't be used; the message does not name the file."""


@dataclass(frozen=True)
class Only:
    """A field with one meaning here."""

    values: tuple[Any, ...]
    """With which the network is as here."""
    reason: str = ""
    """What is missing here, as a clause."""


UNSET_VALUES = (None, False)
COMMON: Mapping[str, Only] = {
    "add_cross_attention": Only(UNSET_VALUES),
    "auto_map": Only((None, {}), "the model has code of its own, which is not run"),
    "cross_attention_hidden_size": Only((None,)),
    "is_encoder_decoder": Only(UNSET_VALUES),
    "partial_rotary_factor": Only((None, 1)),
    "pruned_heads": Only((None, {}), "heads that were cut out leave matrices of other sizes"),
    "quantization_config": Only((None,), "quantised weights can't be read; take the full model"),
    "sparsity_config": Only((None,)),
    "tie_encoder_decoder": Only(UNSET_VALUES),
}
"""For every network here."""

C = TypeVar("C", bound=Config)

REQUIRED: Any = object()
WANTED: Mapping[type, str] = {
    int: "a whole number above 0",
    float: "a number",
    bool: "true or false",
    str: "a name",
}


@dataclass(frozen=True)
class Read:
    """A field that is read."""

    ours: str
    """The field of our configuration."""
    kind: type
    """The type: int, float (which a whole number is, too), bool or str."""
    default: Any = REQUIRED
    """What transformers takes where the file doesn't have it; REQUIRED: it must be there."""
    null: Any = REQUIRED
    """What our configuration takes for null; REQUIRED: it can't be."""
    names: Mapping[Any, Any] | None = None
    """Our value by theirs."""


@dataclass(frozen=True)
class FieldTable:
    """What becomes of each field of an architecture's config.json."""

    what: str
    """What is described: "a BERT"."""
    read: Mapping[str, Read]
    only: Mapping[str, Only] = field(default_factory=dict)
    neutral: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names that transformers takes for fields."""
    rotary: bool = False
    """Whether positions are rotary, described by ``rope_parameters`` or by what came before it."""
    scaled: bool = False
    """Whether rotary angles may be scaled for longer texts."""

    def build(self, kind: type[C], fields: Mapping[str, Any], **more: Any) -> C:
        """Our configuration. Raises FieldError for a field that can't be used.

        more: further fields of it.
        """
        try:
            return kind.model_validate({**self.values(fields), **more})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            theirs = {read.ours: name for name, read in self.read.items()}
            reason = first["msg"].removeprefix("Value error, ")
            for own, name in theirs.items():  # of a rule over several fields
                reason = reason.replace(f"model.{own} ", f"{name} ")
            where = [theirs.get(str(part), str(part)) for part in first["loc"]]
            raise FieldError(
                f"{': '.join([*where, reason])}; copy the file again from where it was made"
            ) from None

    def values(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of our configuration, as they are."""
        named = self._renamed(fields)
        values = {
            read.ours: self._value(name, read, named.pop(name, REQUIRED))
            for name, read in self.read.items()
        }
        if self.rotary:
            values |= _rope_values(named, scaled=self.scaled)
        for name, value in named.items():
            self._check(name, value)
        return values

    def _renamed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: value for name, value in fields.items() if name not in self.aliases}
        for alias, name in self.aliases.items():
            if alias in fields and named.setdefault(name, fields[alias]) != fields[alias]:
                raise FieldError(
                    f"{alias} is {shown(fields[alias])} and {name}, which is the same, "
                    f"{shown(named[name])}; take one of them out"
                )
        return named

    def _value(self, name: str, read: Read, value: Any) -> Any:
        if value is REQUIRED:
            if read.default is REQUIRED:
                raise FieldError(f"there is no field {name}; it is not {self.what}'s")
            value = read.default
        if value is None and read.null is not REQUIRED:
            return read.null
        if not _is_a(read.kind, value):
            raise FieldError(
                f"{name} is {shown(value)}, not {WANTED[read.kind]}; copy the file again from "
                "where it was made"
            )
        if read.names is None:
            return value
        if value not in read.names:
            raise FieldError(
                f"{name} {value!r} is not supported{did_you_mean(value, read.names)}; use "
                f"{' or '.join(read.names)}"
            )
        return read.names[value]

    def _check(self, name: str, value: Any) -> None:
        """Raises FieldError for a field that changes the network, or may."""
        only = self.only.get(name) or COMMON.get(name)
        if only is not None:
            if not any(_same(value, neutral) for neutral in only.values):
                known = " or ".join(map(shown, only.values[-2:]))
                reason = only.reason or f"only {known} is supported"
                raise FieldError(f"{name} is {shown(value)}: {reason}")
        elif value is not None and not (
            name in IGNORED_FIELDS or name in self.neutral or name.startswith(OWN_PREFIX)
        ):
            known_names = [*self.read, *self.only, *COMMON, *self.neutral]
            raise FieldError(
                f"{name} is {shown(value)}, and what it changes in {self.what} is not known here"
                f"{did_you_mean(name, known_names)}; take a model without it, or take it out of "
                "the file if it changes nothing"
            )


def _is_a(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind) and not (isinstance(value, int) and value < 1)


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one type: 1 is not true, but 1 is 1.0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def shown(value: Any) -> str:
    """A value as the file has it, if it is long its beginning."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


ROPE_FIELDS = ("rope_scaling", "rope_parameters")
"""Before and since version 5 of transformers; it takes the older one where both say something."""
_TYPES = ("rope_type", "type")
DEFAULT_THETA = 10000.0


def _rope_values(named: dict[str, Any], *, scaled: bool) -> dict[str, Any]:
    """Our fields of the rotary angles, from either dialect; what is read is taken out of ``named``.

    Raises FieldError for angles that are made otherwise.
    """
    rope_fields = {name: named.pop(name, None) for name in ROPE_FIELDS}
    for name, value in rope_fields.items():
        if value is not None and not isinstance(value, dict):
            raise FieldError(f"{name} is {shown(value)}, not an object; copy the file again")
    theta = named.pop("rope_theta", None)
    name, rope = next(((n, dict(v)) for n, v in rope_fields.items() if v), ("rope_parameters", {}))
    values = _scaling_values(name, rope) if scaled else {}
    inner = _plain_theta(name, rope)
    for theta_of, value in ((f"{name}.rope_theta", inner), ("rope_theta", theta)):
        if value is not None:
            if not _is_a(float, value):
                raise FieldError(f"{theta_of} is {shown(value)}, not a number; copy the file again")
            return {**values, "rope_theta": value}
    return {**values, "rope_theta": DEFAULT_THETA}


ROPE_SCALINGS = {
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        "original_max_position_embeddings": "rope_original_positions",
    },
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_positions",
    },
}
"""Our fields by those that each kind of scaled angles must say."""
NEUTRAL_OF_YARN: Mapping[str, tuple[Any, ...]] = {
    **{"beta_fast": (None, 32), "beta_slow": (None, 1), "truncate": (None, True)},
    **dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"), (None,)),
}
"""What yarn may say too, with the values that change nothing."""


def _scaling_values(name: str, rope: dict[str, Any]) -> dict[str, Any]:
    """Our fields of scaled angles; what is read is taken out of ``rope``. Raises FieldError for one
    that is missing or can't be used."""
    kinds = {rope[key] for key in _TYPES if isinstance(rope.get(key), str)}
    kind = next(iter(kinds), "default")
    if len(kinds) != 1 or kind not in ROPE_SCALINGS:
        return {}  # plain, or refused as such
    values: dict[str, Any] = {"rope_type": kind}
    for key in _TYPES:
        rope.pop(key, None)
    for key, ours in ROPE_SCALINGS[kind].items():
        value = rope.pop(key, None)
        whole = key == "original_max_position_embeddings"
        if not _is_a(int if whole else float, value):
            raise FieldError(
                f"{name}.{key} is {shown(value)}, not {WANTED[int if whole else float]}, which "
                f"rotary positions of type {kind!r} need"
            )
        values[ours] = value
    if kind == "yarn":
        for key, neutral in NEUTRAL_OF_YARN.items():
            if not any(_same(rope.get(key), value) for value in neutral):
                raise FieldError(f"{name}.{key} is {shown(rope[key])}: that is not supported")
            rope.pop(key, None)
    return values


def _plain_theta(name: str, rope: Mapping[str, Any]) -> Any:
    """The base that an object of rotary angles says, or None. Raises FieldError where they are
    made otherwise."""
    rest = dict(rope)
    for key in _TYPES:
        kind = rest.pop(key, None)
        if kind not in (None, "default"):
            raise FieldError(f"{name}: rotary positions of type {kind!r} are not supported")
    theta = rest.pop("rope_theta", None)
    if rest.get("partial_rotary_factor") in (None, 1):
        rest.pop("partial_rotary_factor", None)
    for key, value in rest.items():
        raise FieldError(f"{name}.{key} is {shown(value)}: only plain rotary positions are known")
    return theta


def thetas_by_layer_type(rope: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """The bases of the rotary angles from ``rope_parameters`` that differ by kind of layer, as far
    as they say it.

    Raises FieldError for angles that are made otherwise.
    """
    if not isinstance(rope, dict) or not rope.keys() <= set(kinds):
        raise FieldError(
            f"rope_parameters is {shown(rope)}, not an object by {' and '.join(kinds)}"
        )
    thetas = {}
    for kind, angles in rope.items():
        name = f"rope_parameters.{kind}"
        if not isinstance(angles, dict | None):
            raise FieldError(f"{name} is {shown(angles)}, not an object; copy the file again")
        theta = _plain_theta(name, angles or {})
        if theta is not None:
            thetas[kind] = theta
    return thetas


def check_full_attention(layers: Any) -> None:
    """Raises FieldError for a field layer_types by which not every layer sees all before it."""
    if layers is not None and (
        not isinstance(layers, list) or any(layer != "full_attention" for layer in layers)
    ):
        raise FieldError(f"layer_types is {shown(layers)}: only full_attention is supported")
