"""``/v1/responses``: OpenAI's newer way to ask, without memory of earlier answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
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


async def responses(asked: Asked) -> Response:
    """Answer an input."""
    serving: Serving = asked.app.state.serving
    body = parsed(ResponsesBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "engine", "doesn't write text")
    chat = parsed(ChatBody, _as_chat(body))
    job, _ = await asyncio.to_thread(job_of, served, chat)
    generation = Generation(serving, job, asked)
    answer = _Response(served, body, generation)
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
        for number, item in enumerate(body.input):
            if item.get("type", "message") != "message":
                raise HTTPError(f"input.{number}: only messages can be read", param="input")
            messages.append({k: v for k, v in item.items() if k in ("role", "content")})
    fields: dict[str, Any] = {
        "messages": messages,
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
    }
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


class _Response:
    """How an answer is told."""

    def __init__(self, served: ServedModel, body: ResponsesBody, generation: Generation) -> None:
        self._model, self._body, self._generation = served.name, body, generation
        self._sampling = {"temperature": 1.0, "top_p": 1.0, **served.sampling}
        self._id, self._created = f"resp_{secrets.token_hex(12)}", now()
        self.item = f"msg_{secrets.token_hex(12)}"

    def message(self, text: str, status: str) -> dict[str, Any]:
        """The answer as an item of the output."""
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {
            "type": "message",
            "id": self.item,
            "status": status,
            "role": "assistant",
            "content": [part] if text or status != "in_progress" else [],
        }

    def _chosen_by(self, field: str) -> float:
        asked: float | None = getattr(self._body, field)
        return self._sampling[field] if asked is None else asked

    def document(self, status: str, text: Written | None = None) -> dict[str, Any]:
        """The whole response; without a text before there is one."""
        cut = text is not None and text.finish == "length"
        status = "incomplete" if cut else status
        usage = self._generation.usage
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": [] if text is None else [self.message(text.text, status)],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self._body.instructions,
            "max_output_tokens": self._body.max_output_tokens,
            "temperature": self._chosen_by("temperature"),
            "top_p": self._chosen_by("top_p"),
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "metadata": self._body.metadata or {},
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


async def _events(generation: Generation, answer: _Response) -> AsyncIterator[str]:
    count = -1

    def event(kind: str, **fields: Any) -> str:
        nonlocal count
        count += 1
        document = {"type": f"response.{kind}", "sequence_number": count, **fields}
        return f"event: response.{kind}\ndata: {encoded(document)}\n\n"

    place = {"item_id": answer.item, "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    text: Written | None = None
    async for text, token in generation.events():
        if len(text.scored) == 1:
            yield event("created", response=answer.document("in_progress"))
            yield event("in_progress", response=answer.document("in_progress"))
            message = answer.message("", "in_progress")
            yield event("output_item.added", output_index=0, item=message)
            yield event("content_part.added", **place, part=part)
        if token.text:
            yield event("output_text.delta", **place, delta=token.text, logprobs=[])
    assert text is not None
    yield event("output_text.done", **place, text=text.text, logprobs=[])
    yield event("content_part.done", **place, part={**part, "text": text.text})
    document = answer.document("completed", text)
    yield event("output_item.done", output_index=0, item=document["output"][0])
    yield event(document["status"], response=document)
