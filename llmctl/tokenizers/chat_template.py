"""Chat templates: a conversation as text and as ids, by a Jinja template in a sandbox.

A template is a program that comes with a model, in the conventions of transformers. It is rendered
a second time with placeholders for what is said, which tells its own text from the turns': special
tokens in the template are special, and the same letters in a turn are ordinary text, so that
nobody can end a turn or begin one by writing its token.

What stands before an answer must be what the template writes as its generation prompt, or a model
would be trained on one thing and asked another; a template that rewrites earlier turns is refused.
Left out are tools, documents and the date (``strftime_now``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.tokenizers.base import TRANSFORMERS_ROLES, Tokenizer
from llmctl.tokenizers.chat import CHATML
from llmctl.tokenizers.sandbox import BoundedEnvironment

PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\\n' + message['content'] }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For vocabularies without turn tokens, such as GPT-2's: headings, and the end of a document."""

CHATML_TOKENS = {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"}

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""

_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
"""Characters of Unicode's private use around a message's number."""


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids, up to the end of its last answer."""

    ids: NDArray[np.int64]
    scored: NDArray[np.bool_]
    """The answers' tokens, each answer's end token among them."""
    answer_stops: tuple[int, ...]
    """How many ids there are up to the end of each answer."""


def default_template(tokenizer: Tokenizer) -> tuple[str, str | None]:
    """The template of a tokenizer that may have none, and what there is to say about it.

    Raises InputError where not even the end of an answer has a token.
    """
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template, None
    if all(
        role in tokenizer.special and tokenizer.id_to_token(tokenizer.special[role]) == token
        for role, token in CHATML_TOKENS.items()
    ):
        return CHATML, None
    if "eos" not in tokenizer.special:
        raise InputError(
            "the tokenizer has no token for the end of a turn or of a document, so a model could "
            "not learn when an answer ends; learn one with `llmctl tokenize --tokenizer bpe`"
        )
    return PLAIN, (
        "the tokenizer has no tokens for the turns of a chat: they are marked in plain text, "
        "which a user can write too (### User:, ### Assistant:)"
    )


class ChatTemplate:
    """A template and the tokenizer that it goes with."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Raises InputError if the source is no Jinja template."""
        self.source, self._tokenizer = source, tokenizer
        self._special: dict[int, bool] = {}
        self._tokens = {
            f"{role}_token": tokenizer.id_to_token(tokenizer.special[role])
            if role in tokenizer.special
            else ""
            for role in TRANSFORMERS_ROLES
        }
        try:
            self._environment = _environment()
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the chat template is no Jinja template: line {error.lineno}: {error.message}; "
                "take the file of the model again"
            ) from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """A conversation as text. Raises InputError with what the template has to say."""
        self._environment.begin()
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from None
        except Exception as error:  # a template is a program, and may do anything that fails
            raise InputError(
                f"the chat template fails on the conversation ({type(error).__name__}: {error}); "
                "use another template"
            ) from None

    def encode(self, messages: Sequence[Message]) -> EncodedChat:
        """A conversation whose last turn is an answer, to learn from.

        Raises InputError if the template can't be learned with or refuses the conversation.
        """
        layout = self._layout(messages, add_generation_prompt=False)
        ids, starts = self._encode_parts(layout)
        special = [place for place, number in enumerate(ids) if self._is_special(number)]
        stops = [special[end] + 1 for end in layout.ends]
        scored = np.zeros(stops[-1], dtype=bool)
        for start, stop in zip(starts, stops, strict=True):
            scored[start:stop] = True
        return EncodedChat(np.asarray(ids[: stops[-1]]), scored, tuple(stops))

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation up to where its next answer begins: the ids that ``encode`` has there.

        Raises InputError as ``encode`` does, but not for a template that writes a conversation's
        beginning otherwise than the whole: one can be talked with that can't be learned with.
        """
        return self._encode_parts(self._layout(messages, add_generation_prompt=True))[0]

    @cached_property
    def answer_end(self) -> int:
        """The token that ends an answer. Raises InputError if the template has none."""
        chat = self.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
        return int(chat.ids[-1])

    def _layout(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> _Layout:
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        own, spans = self._parts(messages, text, add_generation_prompt)
        own_special = [self._special_in(part) for part in own]
        cuts: list[int] = []
        ends: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:number], add_generation_prompt=True)
            answered = self.render(messages[: number + 1], add_generation_prompt=False)
            begin, end = spans[number]
            if not (text.startswith(prompt) and text.startswith(answered)) or len(prompt) > begin:
                if add_generation_prompt:
                    # Some templates write an earlier answer otherwise than the last one, Qwen3's
                    # without its thinking; then the ids are those of the text as it is.
                    cuts, ends = [], []
                    break
                raise InputError(
                    "the chat template does not write a conversation's beginning as it writes the "
                    "whole, so a model can't be trained with it; use another template"
                )
            if not self._special_in(answered[end:]):
                raise InputError(
                    "the chat template ends an answer with no special token, so a model could not "
                    "learn when to stop; use another template"
                )
            cuts.append(len(prompt))
            ends.append(sum(map(len, own_special[: number + 1])))
        expected = [number for part in own_special for number in part]
        for literal in self._literals(text, spans):
            layout = _Layout(text, literal, cuts, ends, [])
            layout.ids[:] = self._encode_span(layout, 0, len(text))
            if [number for number in layout.ids if self._is_special(number)] == expected:
                break
        return layout

    def _literals(self, text: str, spans: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Which messages to read apart from what stands around them: each of these is looked for
        where the one before leaves special tokens that the template did not write."""
        yield []
        yield [span for span in spans if self._special_in(text[slice(*span)])]
        yield spans  # a spelling came of what is said and what stands around it

    def _parts(
        self, messages: Sequence[Message], text: str, add_generation_prompt: bool
    ) -> tuple[list[str], list[tuple[int, int]]]:
        """The template's own parts of the text, and where between them each message stands.

        Raises InputError where the template changes what is said beyond taking away the space
        around it.
        """
        hollow = [
            {"role": message["role"], "content": f"\ue000{number}\ue001"}
            for number, message in enumerate(messages)
        ]
        parts = _PLACEHOLDER.split(self.render(hollow, add_generation_prompt=add_generation_prompt))
        own, order = parts[::2], [int(part) for part in parts[1::2]]
        spans = []
        place = len(own[0]) if text.startswith(own[0]) else -1
        for number, following in zip(order, own[1:], strict=True):
            said = messages[number]["content"]
            for form in (said, said.strip(), said.lstrip(), said.rstrip()):
                if place >= 0 and text.startswith(form + following, place):
                    spans.append((place, place + len(form)))
                    place += len(form) + len(following)
                    break
            else:
                place = -1
        if place != len(text) or order != list(range(len(messages))):
            raise InputError(
                "the chat template does not write each turn once, in order and as it is, so its "
                "own text can't be told from what is said; use another template"
            )
        return own, spans

    def _special_in(self, text: str) -> list[int]:
        """The special tokens in a text, in order."""
        ids = self._tokenizer.encode(text, allow_special=True)
        return [number for number in ids if self._is_special(number)]

    def _is_special(self, number: int) -> bool:
        """Whether a token's spelling is read as the token only where that is allowed."""
        if number not in self._special:
            token, encode = self._tokenizer.id_to_token(number), self._tokenizer.encode
            roles = [role for role, known in self._tokenizer.special.items() if known == number]
            self._special[number] = (
                roles != ["unk"]  # any text may be read as that
                and encode(token, allow_special=True) == [number]
                and encode(token) != [number]
            )
        return self._special[number]

    def _encode_parts(self, layout: _Layout) -> tuple[list[int], list[int]]:
        """The ids of a text, such that they begin with those of the text up to each cut; and how
        many there are up to each.

        A cut seldom falls into a token. Where it does, what follows it is encoded alone: so it is
        when a model answers.
        """
        ids: list[int] = []
        counts: list[int] = []
        begin, last = 0, len(layout.text)
        for cut in [*layout.cuts, last]:
            whole = layout.ids if cut == last else self._encode_span(layout, 0, cut)
            seamless = whole[: len(ids)] == ids
            ids = whole if seamless else ids + self._encode_span(layout, begin, cut)
            counts.append(len(ids))
            begin = cut
        return ids, counts[:-1]

    def _encode_span(self, layout: _Layout, begin: int, stop: int) -> list[int]:
        """The ids of a part of a text."""
        ids: list[int] = []
        for first, last in layout.literal:
            first, last = max(first, begin), min(last, stop)
            if first < last:
                ids += self._tokenizer.encode(layout.text[begin:first], allow_special=True)
                ids += self._tokenizer.encode(layout.text[first:last])
                begin = last
        return ids + self._tokenizer.encode(layout.text[begin:stop], allow_special=True)


@dataclass(frozen=True)
class _Layout:
    text: str
    literal: list[tuple[int, int]]
    """Where that stands which is said and spelled as a special token. The ids of what comes before
    are what they are without it."""
    cuts: list[int]
    """Where each answer begins."""
    ends: list[int]
    """Which of the special tokens in the text ends each answer."""
    ids: list[int]
    """The ids of the whole text."""


class _Generation(Extension):
    """``{% generation %}`` marks answers in some templates; what is in it is written as it is."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Missing(jinja2.Undefined):
    """What a message lacks is false, as templates ask for tool calls; to write it is an error."""

    __str__ = __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Missing,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes what HTML would read as markup.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
