"""The addresses of a server, who may ask, and what becomes of what goes wrong."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Asked
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llmctl.serving.chat import chat_completions
from llmctl.serving.completions import completions
from llmctl.serving.disconnects import ClientGone
from llmctl.serving.errors import HTTPError
from llmctl.serving.explaining import explain
from llmctl.serving.openapi import openapi
from llmctl.serving.pooling import classify, embeddings, rerank
from llmctl.serving.responses import responses
from llmctl.serving.state import Serving, page_text
from llmctl.serving.tokens import detokenize, tokenize, tokenizer_info

AddressHandler = Callable[[Asked], Awaitable[Response]]

OPEN = frozenset({"/", "/health"})
"""Addresses that ask for no key."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CLIENT_GONE = 499
"""The status of an answer that nobody waits for, as nginx has it."""


def make_app(serving: Serving) -> Starlette:
    """The server's addresses."""
    posts: dict[str, AddressHandler] = {
        "/v1/chat/completions": chat_completions,
        "/v1/completions": completions,
        "/v1/responses": responses,
        "/v1/embeddings": embeddings,
        "/classify": classify,
        "/v1/classify": classify,
        "/explain": explain,
        "/rerank": rerank,
        "/v1/rerank": rerank,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    gets: dict[str, AddressHandler] = {
        "/": page,
        "/health": health,
        "/metrics": metrics,
        "/openapi.json": openapi,
        "/v1/models": models,
        "/v1/models/{name:path}": model_card,
        "/tokenizer_info": tokenizer_info,
    }
    routes = [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    routes += [Route(path, handler, methods=["GET"]) for path, handler in gets.items()]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPError: _refused,
            HTTPException: _no_such_address,
            ClientGone: _nobody,
            ClientDisconnect: _nobody,
            Exception: _bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.serving = serving
    app.add_middleware(Guard, key=serving.config.api_key)
    return app


class Guard:
    """Lets those through who show the key."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._key is not None and scope["path"] not in OPEN:
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, f"Bearer {self._key}".encode()):
                error = HTTPError("the API key is missing or wrong", 401, code="invalid_api_key")
                headers_out = {"WWW-Authenticate": "Bearer"}
                response = JSONResponse(error.document(), 401, headers=headers_out)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def page(asked: Asked) -> Response:
    """The chat page."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(page_text(), headers=headers)


async def health(asked: Asked) -> Response:
    """Whether requests are served."""
    serving: Serving = asked.app.state.serving
    if not serving.worker.alive or serving.draining:
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(asked: Asked) -> Response:
    """What was counted, for Prometheus."""
    text = asked.app.state.serving.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def models(asked: Asked) -> Response:
    """The models by their names."""
    cards = [model.card() for model in asked.app.state.serving.models.values()]
    return JSONResponse({"object": "list", "data": cards})


async def model_card(asked: Asked) -> Response:
    """One model."""
    return JSONResponse(asked.app.state.serving.model(asked.path_params["name"]).card())


async def _refused(asked: Asked, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return JSONResponse(error.document(), error.status, headers=error.headers)


async def _no_such_address(asked: Asked, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is no such address", 405: "this address has another method"}
    told = HTTPError(said.get(error.status_code, error.detail), error.status_code)
    return JSONResponse(told.document(), error.status_code, headers=error.headers)


async def _nobody(asked: Asked, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _bug(asked: Asked, error: Exception) -> Response:
    logging.getLogger("llmctl.serving").exception("a bug of ours", exc_info=error)
    told = HTTPError("this is a bug in llmctl; its log says more", 500)
    return JSONResponse(told.document(), 500)
