"""``/v1/chat/completions``: conversations, laid out by the model's template and answered."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.errors import InputError
from llmctl.inference.engine.requests import Scored
from llmctl.serving import sampling
from llmctl.serving.errors import HTTPError
from llmctl.serving.generation import Generation, Job, Written, spelt
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import ChatBody, parsed
from llmctl.serving.state import Serving, now, read_body
from llmctl.serving.streaming import data_line, streamed
from llmctl.serving.tools import Calls, call_text, calls_of

MESSAGE_ROLES = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
"""Roles of messages, and those of templates that they become."""
MESSAGE_FIELDS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "audio",
    "function_call", "reasoning_content",
}  # fmt: skip
MOST_MESSAGES = 2048


async def chat_completions(asked: Asked) -> Response:
    """Answer a conversation."""
    serving: Serving = asked.app.state.serving
    body = parsed(ChatBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "engine", "doesn't write text")
    job, calls = await asyncio.to_thread(job_of, served, body)
    generation = Generation(serving, job, asked)
    document = {
        "id": f"chatcmpl-{body.request_id or secrets.token_hex(12)}",
        "created": now(),
        "model": served.name,
    }
    if body.stream:
        document["object"] = "chat.completion.chunk"
        return await streamed(_events(generation, document, body, calls))
    document["object"] = "chat.completion"
    choices = []
    for text in await generation.whole():
        message: dict[str, Any] = {"role": "assistant", "content": text.text, "refusal": None}
        finish = text.finish
        if calls is not None:
            rest, found = calls.found(text.text)
            if found:
                message |= {"content": rest or None, "tool_calls": found}
                finish = "tool_calls"
        log_probs = _log_probs(served, text.scored) if body.logprobs else None
        choices.append(
            {
                "index": text.index,
                "message": message,
                "logprobs": log_probs,
                "finish_reason": finish,
            }
        )
    return JSONResponse({**document, "choices": choices, "usage": generation.usage.document()})


async def _events(
    generation: Generation, document: dict[str, Any], body: ChatBody, calls: Calls | None
) -> AsyncIterator[str]:
    options, served = body.stream_options, generation.job.served

    def chunk(text: Written, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": text.index, "delta": delta, "logprobs": None, "finish_reason": finish}
        told = {**document, "choices": [choice]}
        if options and options.continuous_usage_stats:
            told["usage"] = generation.usage.document()
        return told

    async for text, token in generation.events():
        assert token.scored is not None
        if len(text.scored) == 1:
            yield data_line(chunk(text, {"role": "assistant", "content": ""}))
        # Whether an answer has calls is known when it is there.
        if calls is None and (token.text or body.logprobs):
            told = chunk(text, {"content": token.text})
            if body.logprobs:
                told["choices"][0]["logprobs"] = _log_probs(served, [token.scored])
            yield data_line(told)
        if text.finish:
            finish = text.finish
            for delta in () if calls is None else _deltas(calls, text.text):
                finish = "tool_calls" if "tool_calls" in delta else finish
                yield data_line(chunk(text, delta))
            yield data_line(chunk(text, {}, finish))
    if options and options.include_usage:
        yield data_line({**document, "choices": [], "usage": generation.usage.document()})


def _deltas(calls: Calls, text: str) -> list[dict[str, Any]]:
    """An answer that may have calls, as pieces of a stream: each call's name, then arguments."""
    rest, found = calls.found(text)
    deltas: list[dict[str, Any]] = [{"content": rest}] if rest else []
    for index, call in enumerate(found):
        function = call["function"]
        begun = {"index": index, **call, "function": {"name": function["name"], "arguments": ""}}
        more = {"index": index, "function": {"arguments": function["arguments"]}}
        deltas += [{"tool_calls": [begun]}, {"tool_calls": [more]}]
    return deltas


def _log_probs(served: ServedModel, scored: Sequence[Scored]) -> dict[str, Any]:
    def entry(token: int, value: float | None) -> dict[str, Any]:
        name, data = spelt(served, token)
        return {"token": name, "logprob": value, "bytes": data}

    return {
        "content": [
            {
                **entry(one.token, one.log_prob),
                "top_logprobs": [entry(*ranked) for ranked in one.ranked],
            }
            for one in scored
        ],
        "refusal": None,
    }


def job_of(served: ServedModel, body: ChatBody) -> tuple[Job, Calls | None]:
    """What a conversation asks an engine for. Raises HTTPError for what can't be served."""
    top = body.top_logprobs or 0
    if not 0 <= top <= sampling.MOST_TOP:
        raise HTTPError(
            f"top_logprobs: has to be from 0 to {sampling.MOST_TOP}", param="top_logprobs"
        )
    if top and not body.logprobs:
        raise HTTPError("top_logprobs: goes with logprobs true", param="top_logprobs")
    if body.chat_template_kwargs:
        raise HTTPError(
            "chat_template_kwargs: this field is not supported; leave it out",
            param="chat_template_kwargs",
        )
    calls = calls_of(body)
    prompt = encoded_chat(served, body.messages, calls, resumes=body.continue_final_message)
    if body.truncate_prompt_tokens not in (None, -1):
        raise HTTPError(
            "truncate_prompt_tokens: a conversation can't be cut; send fewer turns",
            param="truncate_prompt_tokens",
        )
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    room = sampling.room_for(served, prompt, asked, served.context)
    rules, copies = sampling.compiled(served, body, max_tokens=room, chat=True)
    constraint = sampling.constraint_of(served, body)
    if calls is not None and calls.required:
        if constraint is not None:
            raise HTTPError(
                "response_format: goes with tool_choice auto or none only", param="response_format"
            )
        constraint = sampling.grammar_of(served, "tools", "json_schema", calls.schema())
    job = Job(
        served=served,
        prompts=[prompt],
        rules=rules,
        copies=copies,
        constraint=constraint,
        top=top,
        user=body.user,
        salt=body.cache_salt or "",
    )
    return job, calls


def encoded_chat(
    served: ServedModel,
    messages: Sequence[dict[str, Any]],
    calls: Calls | None = None,
    *,
    resumes: bool = False,
) -> list[int]:
    """The tokens of a conversation up to its next answer. resumes: the last turn is an answer's
    beginning, which is gone on with. Raises HTTPError for a conversation that can't be."""
    if served.template is None:
        raise HTTPError(
            f"{served.name} has not learned to have a conversation; use /v1/completions, or "
            "finetune it: llmctl finetune --task instruct",
            param="model",
        )
    turns = [turn_of(number, message) for number, message in enumerate(messages)]
    if not 1 <= len(turns) <= MOST_MESSAGES:
        raise HTTPError(f"messages: has to be from 1 to {MOST_MESSAGES}", param="messages")
    if calls is not None:
        if turns[0]["role"] == "system":
            turns[0]["content"] += "\n\n" + calls.preface()
        else:
            turns.insert(0, {"role": "system", "content": calls.preface()})
    begun: dict[str, str] | None = None
    if resumes:
        if turns[-1]["role"] != "assistant":
            raise HTTPError(
                "continue_final_message: the last turn has to be the assistant's",
                param="continue_final_message",
            )
        begun = turns.pop()
    try:
        ids = served.template.encode_prompt(turns)
    except InputError as error:
        raise HTTPError(f"messages: {error}", param="messages") from None
    return ids if begun is None else [*ids, *served.tokenizer.encode(begun["content"])]


def turn_of(number: int, message: Any) -> dict[str, str]:
    """A turn as templates have it. Raises HTTPError for one that is none."""
    where = f"messages.{number}"
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGE_ROLES:
        raise HTTPError(
            f"{where}.role: has to be one of {', '.join(MESSAGE_ROLES)}", param="messages"
        )
    if unknown := [name for name in message if name not in MESSAGE_FIELDS]:
        raise HTTPError(f"{where}.{unknown[0][:50]}: this field is not known", param="messages")
    for name in ("audio", "function_call", "reasoning_content"):
        if message.get(name):
            raise HTTPError(f"{where}.{name}: this field is not supported", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content", part) for part in content)
    made = message.get("tool_calls") or []
    if not isinstance(made, list):
        raise HTTPError(f"{where}.tool_calls: has to be a list", param="messages")
    if made and role == "assistant":
        content = "\n".join([*([content] if content else []), *map(call_text, made)])
    if not isinstance(content, str):
        raise HTTPError(f"{where}.content: has to be a text", param="messages")
    if role in ("tool", "function"):
        content = f"<tool_response>\n{content}\n</tool_response>"
    return {"role": MESSAGE_ROLES[role], "content": sampling.checked_text(content, "messages")}


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise HTTPError(f"{where}: only parts of type text can be read", param="messages")
    return text
