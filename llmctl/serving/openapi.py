"""``/openapi.json``: the addresses and their fields, for programs (OpenAPI 3.1).

What a request may have is read from the classes that check it. What depends on the model (how long
a text may be, which tokens there are, what it can do at all) no document can say: that is answered
with 400 and a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl import __version__
from llmctl.serving import protocol

POSTS: Mapping[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (protocol.ChatBody, "Answer a conversation."),
    "/v1/completions": (protocol.CompletionBody, "Go on from prompts."),
    "/v1/responses": (protocol.ResponsesBody, "Answer an input, without memory of others."),
    "/v1/embeddings": (protocol.EmbeddingBody, "Make vectors of texts."),
    "/classify": (protocol.ClassifyBody, "Give texts their classes."),
    "/v1/classify": (protocol.ClassifyBody, "Give texts their classes."),
    "/explain": (protocol.ExplainBody, "Tell which words decided a text's class."),
    "/rerank": (protocol.RerankBody, "Put documents in the order in which they suit a query."),
    "/v1/rerank": (protocol.RerankBody, "Put documents in the order in which they suit a query."),
    "/tokenize": (protocol.TokenizeBody, "Cut a text or a conversation into tokens."),
    "/detokenize": (protocol.DetokenizeBody, "Make a text of tokens."),
}
"""Addresses that take a body: its class, and what they do."""
GETS: Mapping[str, str] = {
    "/": "The chat page.",
    "/health": "Whether requests are served.",
    "/metrics": "What was counted, for Prometheus.",
    "/openapi.json": "This document.",
    "/v1/models": "The models.",
    "/v1/models/{name}": "One model.",
    "/tokenizer_info": "What clients that cut texts into tokens themselves want to know.",
}
"""Addresses that take none."""
MEDIA: Mapping[str, str] = {"/": "text/html", "/metrics": "text/plain"}
"""What is answered where that isn't JSON."""
REFUSALS: Mapping[int, str] = {
    400: "A field can't be taken; the message names it.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The request, or its body, took too long.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much is waiting; Retry-After says when to come again.",
    503: "The server is about to end.",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""An error as OpenAI's clients expect it."""


async def openapi(asked: Asked) -> Response:
    """The document."""
    return JSONResponse(document(asked.app.state.serving.config.api_key is not None))


@cache
def document(key: bool) -> dict[str, Any]:
    """The addresses of a server. key: whether it asks for one."""
    kinds = dict.fromkeys(body for body, _ in POSTS.values())
    places, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {
        address: {"post": _posted(address, what, places[body, "validation"])}
        for address, (body, what) in POSTS.items()
    }
    for address, what in GETS.items():
        paths[address] = {"get": _got(address, what)}
    secured: dict[str, Any] = {"security": [{"key": []}]} if key else {}
    for address in ("/", "/health"):
        paths[address]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmctl serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **secured,
    }


def _posted(address: str, what: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "summary": what,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _answers(address, REFUSALS, streams="stream" in _fields(address)),
    }


def _fields(address: str) -> Mapping[str, Any]:
    return POSTS[address][0].model_fields


def _got(address: str, what: str) -> dict[str, Any]:
    refused = {} if address in ("/", "/health") else {401: REFUSALS[401]}
    found: dict[str, Any] = {"summary": what}
    if address in ("/v1/models/{name}", "/tokenizer_info"):
        refused[404] = REFUSALS[404]
        path = address != "/tokenizer_info"
        found["parameters"] = [
            {
                "name": "name" if path else "model",
                "in": "path" if path else "query",
                "required": path,
                "schema": {"type": "string"},
            }
        ]
    found["responses"] = _answers(address, refused)
    if address == "/health":
        found["responses"]["503"] = _content("It is about to end.", "application/json", {})
    return found


def _answers(address: str, refused: Mapping[int, str], *, streams: bool = False) -> dict[str, Any]:
    good = _content("It is done.", MEDIA.get(address, "application/json"), {})
    if streams:
        good["content"]["text/event-stream"] = {"schema": {}}
    error = {"$ref": "#/components/schemas/Error"}
    said = {str(n): _content(what, "application/json", error) for n, what in refused.items()}
    return {"200": good, **said}


def _content(what: str, media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {media: {"schema": schema}}}
