"""Ollama's Modelfile: the model, the template of a conversation, and what ends an answer.

Ollama's templates are Go's, chat templates Jinja, and neither is translated into the other here:
what a role's turn begins and ends with is found by laying out conversations with the Jinja
template, and the Go template is written from that. A template whose turns look otherwise where they
stand elsewhere can't be told so, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate, Message

GGUF_FILE, MODELFILE = "model.gguf", "Modelfile"
PLACE_OF = "\ue000{}\ue001"
"""Characters of nobody's, around the number of what is said."""
OLLAMA_NAMES = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "typical_p": "typical_p", "repetition_penalty": "repeat_penalty",
}  # fmt: skip
"""Ollama's names of how texts are chosen, by ours."""
CONTINUES = "{{ .Prompt }}"
"""The template of a model that goes on with a text."""


class TurnLayout(NamedTuple):
    """What a chat template puts around the turns of a conversation."""

    first: str
    """Before everything: what stands before any text."""
    default_system: str
    """What stands there without a system message."""
    system: tuple[str, str] | None
    """Around a system message; None: the template refuses one."""
    user: str
    """Before what the user says."""
    answer: tuple[str, str]
    """Behind what the user says, where an answer begins, and behind the answer."""

    def laid_out(self, messages: Sequence[Message]) -> str:
        """A conversation as text, an answer to come."""
        system = [message["content"] for message in messages if message["role"] == "system"]
        before, after = self.system or ("", "")
        text = self.first + (before + system[0] + after if system else self.default_system)
        for message in messages:
            if message["role"] == "user":
                text += self.user + message["content"] + self.answer[0]
            elif message["role"] == "assistant":
                text += message["content"] + self.answer[1]
        return text


def modelfile(tokenizer: Tokenizer, context: int) -> str:
    """The text of a Modelfile. context: tokens that the model takes at most.

    Raises InputError for a chat template that can't be told so.
    """
    ends = {tokenizer.special[r] for r in ("eos", "turn_end") if r in tokenizer.special}
    stops = sorted(filter(None, map(tokenizer.id_to_token, ends | tokenizer.further_ends)))
    template = CONTINUES
    if tokenizer.chat_template is not None:
        # What begins every text llama.cpp puts there itself.
        first = "".join(map(tokenizer.id_to_token, tokenizer.layout.before))
        template = go_template(layout_of(ChatTemplate(tokenizer.chat_template, tokenizer), first))
    lines = [
        f"FROM ./{GGUF_FILE}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {context}",
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def sampling_parameters(said: Mapping[str, float]) -> str:
    """The lines of a Modelfile that say how texts are chosen. said: by the names of
    ``sampling_defaults``; what Ollama has no word for is left out."""
    known = {OLLAMA_NAMES[name]: value for name, value in said.items() if name in OLLAMA_NAMES}
    return "".join(f"PARAMETER {name} {value:g}\n" for name, value in known.items())


def layout_of(template: ChatTemplate, first: str) -> TurnLayout:
    """What a template puts around turns. first: what stands before any text.

    Raises InputError where it is not the same for each turn.
    """
    u, a, v, s = (PLACE_OF.format(number) for number in range(4))
    asked: list[Message] = [{"role": "user", "content": u}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": a}]
    again: list[Message] = [*answered, {"role": "user", "content": v}]
    told: list[Message] = [{"role": "system", "content": s}, *asked]
    try:
        head, opening = template.render(asked, add_generation_prompt=True).split(u)
        closed = template.render(answered, add_generation_prompt=False).split(a)[1]
        between = template.render(again, add_generation_prompt=True).split(a)[1].split(v)[0]
    except (IndexError, ValueError):
        raise _not_told("it doesn't write each turn once, as it is") from None
    if not between.startswith(closed) or not head.endswith(between.removeprefix(closed)):
        raise _not_told("a turn looks otherwise where it stands elsewhere")
    user = between.removeprefix(closed)
    before = head.removesuffix(user)
    if not before.startswith(first):
        raise _not_told(f"it doesn't begin with {first}, as any text does")
    system = None
    try:
        with_system = template.render(told, add_generation_prompt=True)
    except InputError:  # it has no such turn
        told = asked
    else:
        parts = with_system.removesuffix(user + u + opening).split(s)
        if len(parts) != 2 or not parts[0].startswith(first):
            raise _not_told("a system message is no turn of its own")
        system = (parts[0].removeprefix(first), parts[1])
    layout = TurnLayout(first, before.removeprefix(first), system, user, (opening, closed))
    for messages in (asked, again, told, [*told, *again[1:]]):
        if template.render(messages, add_generation_prompt=True) != layout.laid_out(messages):
            raise _not_told("a turn looks otherwise where it stands elsewhere")
    return layout


def go_template(layout: TurnLayout) -> str:
    """A layout as a template of Ollama's, without what stands before any text.

    Raises InputError where the layout's own text would be read as a command of the template.
    """
    texts = [layout.default_system, *(layout.system or ()), layout.user, *layout.answer]
    if any("{{" in text or '"""' in text for text in texts):
        raise _not_told("its own text has signs of Ollama's templates")
    head = layout.default_system
    if layout.system is not None:
        before, after = layout.system
        head = (
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{head}{{{{ end }}}}"
        )
    opening, closing = layout.answer
    turns = (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "user" }}}}{layout.user}{{{{ .Content }}}}{opening}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{closing}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )
    return head + turns


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _not_told(reason: str) -> InputError:
    return InputError(
        f"the chat template can't be told to Ollama: {reason}; export to gguf, which holds it as "
        "it is"
    )
