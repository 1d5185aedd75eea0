"""``/v1/responses``: OpenAI's newer way to ask, without memory of earlier answers.

An input is a list of items: messages, calls of functions that were made, and what came of them. It
is answered as the conversation that it amounts to (chat.py), and the answer is a list of items too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.serving.chat import job_of
from llmctl.serving.errors import HTTPError
from llmctl.serving.generation import Generation, Written
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import ChatBody, ResponsesBody, parsed
from llmctl.serving.state import Serving, encoded, now, read_body
from llmctl.serving.streaming import streamed
from llmctl.serving.tools import Calls

IN_PROGRESS = "in_progress"


async def responses(asked: Asked) -> Response:
    """Answer an input."""
    serving: Serving = asked.app.state.serving
    body = parsed(ResponsesBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "engine", "doesn't write text")
    chat = parsed(ChatBody, _as_chat(body))
    job, calls = await asyncio.to_thread(job_of, served, chat)
    generation = Generation(serving, job, asked)
    answer = _Response(served, body, generation, calls)
    if body.stream:
        return await streamed(_events(generation, answer), done=False)
    (text,) = await generation.whole()
    return JSONResponse(answer.document("completed", text))


def _as_chat(body: ResponsesBody) -> dict[str, Any]:
    """What is asked, as a conversation."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += _messages(body.input)
    fields: dict[str, Any] = {
        "messages": messages,
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    if body.tools:
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
    for name, value in (body.text or {}).items():
        if name == "verbosity" and value == "medium":
            continue
        if name != "format" or not isinstance(value, dict):
            raise HTTPError(f"text.{name[:50]}: this field is not supported", param="text")
        kind = value.get("type")
        fields["response_format"] = (
            {"type": kind, "json_schema": {k: v for k, v in value.items() if k != "type"}}
            if kind == "json_schema"
            else {"type": kind}
        )
    return {name: value for name, value in fields.items() if value is not None}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.keys() == {"type", "name"}:
        return {"type": choice["type"], "function": {"name": choice["name"]}}
    return choice


def _messages(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns that items are: calls belong to the answer that they stand behind. Raises HTTPError
    for an item that can't be read."""
    messages: list[dict[str, Any]] = []
    called: set[str] = set()
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({k: v for k, v in item.items() if k in ("role", "content")})
        elif kind == "function_call":
            name, call_id, arguments = (item.get(k) for k in ("name", "call_id", "arguments"))
            if not all(isinstance(value, str) for value in (name, call_id, arguments)):
                raise HTTPError(
                    f"input.{number}: a function_call needs the texts name, call_id and arguments",
                    param="input",
                )
            called.add(str(call_id))
            if not messages or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": name, "arguments": arguments}
            messages[-1].setdefault("tool_calls", []).append(
                {"id": call_id, "type": "function", "function": function}
            )
        elif kind == "function_call_output":
            call_id = item.get("call_id")
            if not isinstance(call_id, str) or call_id not in called:
                raise HTTPError(
                    f"input.{number}.call_id: no function_call of this call_id stands before; send "
                    "it too, as no earlier answers are kept",
                    param="input",
                )
            messages.append({"role": "tool", "content": item.get("output")})
        else:
            raise HTTPError(
                f"input.{number}: only messages, function_call and function_call_output can be "
                f"read, and this is {str(kind)[:50]!r}",
                param="input",
            )
    return messages


class _Response:
    """How an answer is told."""

    def __init__(
        self, served: ServedModel, body: ResponsesBody, generation: Generation, calls: Calls | None
    ) -> None:
        self._model, self._body, self._generation = served.name, body, generation
        self._sampling = {"temperature": 1.0, "top_p": 1.0, **served.sampling}
        self.calls = calls
        self._id, self._created = f"resp_{secrets.token_hex(12)}", now()
        self._message = f"msg_{secrets.token_hex(12)}"

    def message(self, text: str, status: str) -> dict[str, Any]:
        """A text as an item of the output."""
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {
            "type": "message",
            "id": self._message,
            "status": status,
            "role": "assistant",
            "content": [] if status == IN_PROGRESS else [part],
        }

    def _chosen_by(self, field: str) -> float:
        asked: float | None = getattr(self._body, field)
        return self._sampling[field] if asked is None else asked

    def items(self, text: Written) -> list[dict[str, Any]]:
        """The output: a message, calls, or both."""
        rest, found = (text.text, []) if self.calls is None else self.calls.found(text.text)
        items = [] if found and not rest else [self.message(rest, _status(text))]
        return items + [
            {
                "type": "function_call",
                "id": f"fc_{secrets.token_hex(12)}",
                "call_id": call["id"],
                **call["function"],
                "status": "completed",
            }
            for call in found
        ]

    def document(
        self,
        status: str,
        text: Written | None = None,
        items: Sequence[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """The whole response; without a text before there is one. items: those of the text, where
        they have been told."""
        usage, body = self._generation.usage, self._body
        cut = text is not None and _status(text) == "incomplete"
        if text is not None and items is None:
            items = self.items(text)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "incomplete" if cut else status,
            "model": self._model,
            "output": list(items or ()),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": self._chosen_by("temperature"),
            "top_p": self._chosen_by("top_p"),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": body.tool_choice or ("auto" if body.tools else "none"),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "metadata": body.metadata or {},
            "usage": None
            if text is None
            else {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.written,
            },
        }


def _status(text: Written) -> str:
    return "incomplete" if text.finish == "length" else "completed"


class _Events:
    """The events of a stream, which are counted."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: str, **fields: Any) -> str:
        document = {"type": f"response.{kind}", "sequence_number": self._count, **fields}
        self._count += 1
        return f"event: response.{kind}\ndata: {encoded(document)}\n\n"

    def opened(self, item: dict[str, Any], index: int) -> list[str]:
        """A message begins."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return [
            self("output_item.added", output_index=index, item=item),
            self("content_part.added", **place, part=part),
        ]

    def closed(self, item: dict[str, Any], index: int) -> list[str]:
        """A message is whole."""
        (part,) = item["content"]
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return [
            self("output_text.done", **place, text=part["text"], logprobs=[]),
            self("content_part.done", **place, part=part),
            self("output_item.done", output_index=index, item=item),
        ]

    def delta(self, item: dict[str, Any], index: int, text: str) -> str:
        """A piece of a message."""
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return self("output_text.delta", **place, delta=text, logprobs=[])

    def call(self, item: dict[str, Any], index: int) -> list[str]:
        """A call, whole."""
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": IN_PROGRESS}
        given = item["arguments"]
        return [
            self("output_item.added", output_index=index, item=begun),
            self("function_call_arguments.delta", **place, delta=given),
            self("function_call_arguments.done", **place, name=item["name"], arguments=given),
            self("output_item.done", output_index=index, item=item),
        ]


async def _events(generation: Generation, answer: _Response) -> AsyncIterator[str]:
    event = _Events()
    message = answer.message("", IN_PROGRESS)
    text: Written | None = None
    async for text, token in generation.events():
        if len(text.scored) == 1:
            yield event("created", response=answer.document(IN_PROGRESS))
            yield event("in_progress", response=answer.document(IN_PROGRESS))
            for line in event.opened(message, 0) if answer.calls is None else ():
                yield line
        # Whether an answer has calls is known when it is there.
        if token.text and answer.calls is None:
            yield event.delta(message, 0, token.text)
    assert text is not None
    items = answer.items(text)
    for index, item in enumerate(items):
        lines = []
        if item["type"] == "function_call":
            lines = event.call(item, index)
        else:
            if answer.calls is not None:
                lines = event.opened(message, index)
                lines.append(event.delta(message, index, item["content"][0]["text"]))
            lines += event.closed(item, index)
        for line in lines:
            yield line
    document = answer.document("completed", text, items)
    yield event(document["status"], response=document)
