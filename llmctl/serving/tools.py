"""Functions that a model may call, in the notation that most open models have learned.

What there is to call stands in the system turn, a call is a JSON object between ``<tool_call>`` and
``</tool_call>`` in an answer, and what came of it a user's turn (the Hermes format, which Qwen and
SmolLM have). Where a call is required, the answer is kept to it by a grammar.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.parsing import Malformed, parse_json
from llmctl.serving.errors import HTTPError
from llmctl.serving.protocol import ChatBody, Tool

PREFACE = (
    "You may call functions to answer. The functions are given as JSON between <tools> and "
    "</tools>:\n<tools>\n{tools}\n</tools>\n\nTo call one, answer with a JSON object with its name "
    "and arguments:\n<tool_call>\n"
    '{{"name": <function name>, "arguments": <arguments as an object>}}\n</tool_call>'
)
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
MOST_TOOLS = 128


@dataclass(frozen=True)
class Calls:
    """What a conversation may call, and whether it has to."""

    tools: Sequence[Tool]
    required: bool = False
    parallel: bool = True
    """Whether there may be several in an answer; else the first alone counts."""

    def preface(self) -> str:
        """What the system turn says of it."""
        lines = [json.dumps(tool.model_dump(exclude_none=True)) for tool in self.tools]
        return PREFACE.format(tools="\n".join(lines))

    def schema(self) -> dict[str, Any]:
        """The schema of a call that is required."""
        return {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": tool.function.name},
                        "arguments": tool.function.parameters or {"type": "object"},
                    },
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for tool in self.tools
            ]
        }

    def found(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """An answer without its calls, and the calls as OpenAI's clients expect them."""
        sources = [text] if self.required else CALL.findall(text)
        calls = []
        for source in sources:
            call = self._call(source)
            if call is None:
                return text, []
            calls.append(call)
        if not self.parallel:
            del calls[1:]
        rest = "" if self.required else CALL.sub("", text).strip()
        return (rest, calls) if calls else (text, [])

    def _call(self, source: str) -> dict[str, Any] | None:
        try:
            value = parse_json(source)
        except Malformed:
            return None
        names = [tool.function.name for tool in self.tools]
        if not isinstance(value, dict) or value.get("name") not in names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": value["name"],
                "arguments": json.dumps(arguments, ensure_ascii=False),
            },
        }


def calls_of(body: ChatBody) -> Calls | None:
    """What a request lets its model call. Raises HTTPError for a choice that can't be."""
    choice, parallel = body.tool_choice, body.parallel_tool_calls is not False
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise HTTPError("tool_choice: there are no tools", param="tool_choice")
        return None
    if len(body.tools) > MOST_TOOLS:
        raise HTTPError(f"tools: at most {MOST_TOOLS}", param="tools")
    if choice == "none":
        return None
    if choice in (None, "auto"):
        return Calls(body.tools, parallel=parallel)
    if choice == "required":
        return Calls(body.tools, required=True)
    name = None
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
    named = [tool for tool in body.tools if tool.function.name == name]
    if not named:
        raise HTTPError(
            "tool_choice: has to be none, auto, required, or a function among tools",
            param="tool_choice",
        )
    return Calls(named, required=True)


def call_text(call: Any) -> str:
    """A call of an earlier answer, as the model would have written it. Raises HTTPError for one
    that is none."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise HTTPError("messages: a tool call needs a function with a name", param="messages")
    try:
        arguments = parse_json(str(function.get("arguments") or "{}"))
    except Malformed as error:
        raise HTTPError(
            f"messages: the arguments of a tool call are not JSON: {error}", param="messages"
        ) from None
    said = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{said}\n</tool_call>"
