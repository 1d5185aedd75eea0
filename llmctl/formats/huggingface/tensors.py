"""Which tensor of a folder is which of our network's, in both directions.

A backbone and what stands on it have the names of Hugging Face's classes, by the architecture's
rules. A GPT with a decoder attached has no such class: the two are there one beside the other,
behind ``encoder.`` and ``decoder.``, and what others don't have has our names. The decoder's token
embedding is the GPT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models.spec import HUGGING_FACE, ModelSpec

ENCODER, DECODER, START = "encoder.", "decoder.", "start.weight"
_BODY, _CROSS = "body.", "cross_attention."


def export_model(
    state: Mapping[str, Tensor],
    kind: str,
    spec: ModelSpec,
    config: Any,
    attached: Any = None,
) -> dict[str, Tensor]:
    """A model's state dict in the folder's names.

    kind: what it does. config: of its backbone. attached: of a decoder that is attached to it.
    """
    if attached is not None:
        encoder = export_model(state, "causal_lm", spec, config)
        own = _behind(DECODER, state)
        decoder = export_model(own, "causal_lm", spec, attached)
        decoder |= {name.removeprefix(_BODY): own[name] for name in own if _CROSS in name}
        return {
            **{ENCODER + name: tensor for name, tensor in encoder.items()},
            **{DECODER + name: tensor for name, tensor in decoder.items()},
            START: state[START],
        }
    names = spec.weights[HUGGING_FACE]
    return {
        **names.export_tensors(_behind(_BODY, state), config),
        **names.export_head(kind, state, config),
    }


def import_model(
    tensors: Mapping[str, Tensor],
    kind: str,
    spec: ModelSpec,
    config: Any,
    attached: Any = None,
) -> LazyTensors:
    """The inverse of ``export_model``: tensors in our networks' names, each read when it is looked
    up. Of what stands on the backbone those that there are."""
    if attached is not None:
        theirs = _behind(DECODER, tensors)
        decoder = import_model(theirs, "causal_lm", spec, attached).readers
        decoder |= {_BODY + name: theirs.readers[name] for name in theirs if _CROSS in name}
        encoder = import_model(_behind(ENCODER, tensors), "causal_lm", spec, config).readers
        start = {name: partial(tensors.__getitem__, name) for name in (START,) if name in tensors}
        return LazyTensors(
            {**encoder, **{DECODER + name: read for name, read in decoder.items()}, **start}
        )
    names = spec.weights[HUGGING_FACE]
    return LazyTensors(names.model_readers(kind, tensors, config))


def _behind(part: str, tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Those whose names begin so, without that."""
    return LazyTensors(
        {
            name.removeprefix(part): partial(tensors.__getitem__, name)
            for name in tensors
            if name.startswith(part)
        }
    )
