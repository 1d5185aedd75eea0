"""From the fields of a request to what an engine is asked."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from llmctl.config import build
from llmctl.errors import ConfigError, InputError
from llmctl.inference.constraints import GrammarKind
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Constraint
from llmctl.serving.errors import HTTPError
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import Sampling

MOST_SAMPLES = 64
"""Texts of a prompt."""
MOST_STOPS, MOST_STOP_LENGTH = 64, 1_000
"""Stop texts, and the characters of one."""
MOST_TOP = 100
"""Alternatives that are told with a token."""
MOST_IDS = 10_000
"""Tokens in a list of biases, of allowed ones or of ends."""

SAME = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty")  # fmt: skip
NEUTRAL: dict[str, float] = {
    "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "frequency_penalty": 0.0, "presence_penalty": 0.0,
}  # fmt: skip
"""Values at which a field does nothing."""


def compiled(
    served: ServedModel, body: Sampling, *, max_tokens: int, chat: bool = False
) -> tuple[CompiledSamplingParams, int]:
    """The rules of a request's texts, and how often they are to be asked for: several texts that
    draw nothing are the same. What it doesn't say is as the model's folder says it, or else as
    OpenAI's. Raises HTTPError for a value that can't be."""
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MOST_SAMPLES:
        raise HTTPError(f"n: has to be from 1 to {MOST_SAMPLES}", param="n")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > MOST_STOPS or any(len(text) > MOST_STOP_LENGTH for text in stop):
        raise HTTPError(
            f"stop: at most {MOST_STOPS} texts of {MOST_STOP_LENGTH} characters", param="stop"
        )
    if len(body.bad_words or ()) > MOST_STOPS:
        raise HTTPError(f"bad_words: at most {MOST_STOPS} words", param="bad_words")
    for name in ("allowed_token_ids", "stop_token_ids", "logit_bias"):
        if len(getattr(body, name) or ()) > MOST_IDS:
            raise HTTPError(f"{name}: at most {MOST_IDS:,} tokens", param=name)
    said = {**served.sampling, **_said(body)}
    fields: dict[str, Any] = {
        name: value
        for name, value in said.items()
        if NEUTRAL.get(name) != value and not (name == "top_k" and value <= 0)
    }
    fields.setdefault("temperature", 1.0)
    drawn = fields["temperature"] > 0
    seed = secrets.randbits(31) if body.seed is None else body.seed % (1 << 63)
    fields |= {
        "seed": seed,
        "max_new_tokens": max_tokens,
        "min_new_tokens": body.min_tokens,
        "num_samples": count if drawn else 1,
        "stop": tuple(text for text in stop if text),
        "bad_words": tuple(body.bad_words or ()),
        "logit_bias": body.logit_bias or {},
        "allowed_token_ids": tuple(body.allowed_token_ids or ()),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "ignore_eos": body.ignore_eos,
    }
    tokenizer = served.chat_tokenizer if chat else served.tokenizer
    try:
        rules = CompiledSamplingParams(build(GenerationConfig, fields), tokenizer)
    except ConfigError as error:
        name = str(error).partition(":")[0].partition(".")[0].strip()
        raise HTTPError(str(error)[:500], param=name if name.isidentifier() else None) from None
    return rules, 1 if drawn else count


def _said(body: Sampling) -> dict[str, float]:
    """What a request says of how texts are chosen."""
    said = {name: getattr(body, name) for name in (*SAME, "top_k")}
    return {name: value for name, value in said.items() if value is not None}


def constraint_of(served: ServedModel, body: Sampling) -> Callable[[], Constraint] | None:
    """What the texts are kept to. Takes long for a large grammar. Raises HTTPError for one that
    can't be used, or for several."""
    guided: list[tuple[GrammarKind, Any]] = [
        ("json_schema", body.guided_json), ("regex", body.guided_regex),
        ("choice", body.guided_choice), ("grammar", body.guided_grammar),
    ]  # fmt: skip
    asked: list[tuple[str, GrammarKind, Any]] = [
        (f"guided_{kind.removesuffix('_schema')}", kind, value)
        for kind, value in guided
        if value is not None
    ]
    if (format := body.response_format) is not None and format.type != "text":
        value = None
        if format.type == "json_schema":
            value = (format.json_schema or {}).get("schema")
            if value is None:
                raise HTTPError(
                    "response_format.json_schema: needs a schema in its field 'schema'",
                    param="response_format",
                )
        asked.append(("response_format", format.type, value))
    if (one := body.structured_outputs) is not None:
        fields: list[tuple[GrammarKind, Any]] = [
            ("json_schema", one.json_), ("regex", one.regex), ("choice", one.choice),
            ("grammar", one.grammar), ("json_object", one.json_object or None),
        ]  # fmt: skip
        asked += [("structured_outputs", kind, v) for kind, v in fields if v is not None]
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(dict.fromkeys(name for name, _, _ in asked))
        raise HTTPError(f"{names}: a text can be kept to one thing only", param=asked[0][0])
    return grammar_of(served, *asked[0])


def grammar_of(
    served: ServedModel, param: str, kind: GrammarKind, value: Any
) -> Callable[[], Constraint]:
    """What keeps texts to one grammar. Raises HTTPError for one that can't be used."""
    try:
        return served.grammars.constraint(kind, value)
    except InputError as error:
        raise HTTPError(f"{param}: {error}", param=param) from None


def checked_ids(served: ServedModel, ids: Sequence[int], param: str) -> list[int]:
    """Tokens that the vocabulary has. Raises HTTPError for others."""
    size = served.tokenizer.vocab_size
    for token in ids:
        if not 0 <= token < size:
            raise HTTPError(
                f"{param}: there is no token {str(token)[:30]}; the vocabulary has 0 to {size - 1}",
                param=param,
            )
    return list(ids)


def checked_text(text: str, param: str) -> str:
    """A text that can be encoded. Raises HTTPError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HTTPError(
            f"{param}: has half of a surrogate pair, which is not Unicode", param=param
        ) from None
    return text


def room_for(served: ServedModel, prompt: Sequence[int], asked: int | None, default: int) -> int:
    """New tokens behind a prompt. Raises HTTPError if there is room for none, or not for those
    that are asked for."""
    room = served.context - len(prompt)
    if room < 1 or (asked is not None and asked > room):
        wanted = "" if asked is None else f" and {str(asked)[:20]} were asked for"
        raise HTTPError(
            f"the prompt has {len(prompt)} tokens{wanted}, and the model takes {served.context} "
            "together; shorten the prompt, or ask for fewer",
            param="prompt" if room < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    if asked is not None and asked < 1:
        raise HTTPError("max_tokens: has to be 1 or more", param="max_tokens")
    return min(room, default) if asked is None else asked
