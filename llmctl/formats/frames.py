"""What stands around sources and targets of a model, as its folder says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.models.spec import Backbone
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.frames import Frame
from llmctl.tokenizers.hf_config import read_object

START_FIELD, FORCED_FIELD = "decoder_start_token_id", "forced_bos_token_id"
"""Fields of Hugging Face's: the token that a target's writing starts with, and the one that is
always written behind it."""


def frame_of(tokenizer: Tokenizer, body: Backbone | type[Backbone]) -> Frame:
    """The frame of a new encoder–decoder with a tokenizer of its ``for_texts``."""
    layout, special = tokenizer.layout, tokenizer.special
    known = {**special, "eos": layout.after[-1]}
    start = next(known[role] for role in body.target_start if role in known)
    return Frame(layout.before, layout.after, (start, *layout.before), layout.after)


def frame_in(folder: Path, fields: Mapping[str, Any], tokenizer: Tokenizer) -> Frame:
    """The frame of an encoder–decoder's folder. Raises InputError where it doesn't say what a
    target starts with."""
    layout = tokenizer.layout
    end = tokenizer.text_end
    after = layout.after or (() if end is None else (end,))
    beside = read_object(folder / "generation_config.json")
    for name, said in ((START_FIELD, beside), (START_FIELD, fields), ("bos_token_id", fields)):
        start = said.get(name)
        if type(start) is int and 0 <= start < tokenizer.vocab_size:
            return Frame(layout.before, after, (start, *layout.before), after)
    raise InputError(
        f"{folder / 'config.json'} has no {START_FIELD}, the token that a target starts with; "
        "write it there"
    )
