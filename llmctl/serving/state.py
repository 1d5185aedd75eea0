"""What all addresses of a server share: its models, its limits, who is being served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request as Asked

from llmctl.parsing import Malformed, parse_json
from llmctl.serving.config import ServeConfig
from llmctl.serving.errors import HTTPError
from llmctl.serving.metrics import Metrics
from llmctl.serving.models import ServedModel
from llmctl.serving.worker import Worker


@dataclass
class Serving:
    """A server that is running."""

    config: ServeConfig
    models: Mapping[str, ServedModel]
    worker: Worker
    metrics: Metrics
    open_texts: int = 0
    """Texts that are being written or wait."""
    draining: bool = False
    """Whether nothing new is taken, because the server is about to end."""
    explaining: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="explain")
    )
    """Where answers are explained, one after another."""

    def model(self, name: str | None) -> ServedModel:
        """The model of a name; without one the first. Raises HTTPError if there is none."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise HTTPError(
                f"there is no model {name[:100]!r}; there are {known}",
                404,
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def kind_of(self, name: str | None, kind: str, what: str) -> ServedModel:
        """A model that can do something; without a name the first that can. Raises HTTPError."""
        if name is None:
            for model in self.models.values():
                if getattr(model, kind) is not None:
                    return model
        model = self.model(name)
        if getattr(model, kind) is None:
            raise HTTPError(f"{model.name} {what}", param="model")
        return model

    @contextlib.contextmanager
    def places(self, texts: int) -> Iterator[None]:
        """Count texts as open. Raises HTTPError where too many are."""
        most = self.config.max_waiting + self.config.max_sequences
        if self.draining or not self.worker.alive:
            raise HTTPError("the server is about to end", 503, headers={"Retry-After": "5"})
        if texts > most:
            raise HTTPError(f"{texts} texts in one request; {most} can wait at once")
        if self.open_texts + texts > most:
            seconds = max(1, self.open_texts // max(1, self.config.max_sequences))
            raise HTTPError(
                f"{self.open_texts} texts are being written or wait; try again later",
                429,
                code="queue_full",
                headers={"Retry-After": str(min(seconds, 60))},
            )
        self.open_texts += texts
        try:
            yield
        finally:
            self.open_texts -= texts


async def read_body(asked: Asked, config: ServeConfig) -> Any:
    """The JSON value of a request. Raises HTTPError for one that is too large, too slow or none."""
    kind = asked.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPError(f"the body is {kind[:60]!r}, not application/json", 415)
    data = bytearray()
    try:
        async with asyncio.timeout(config.body_seconds):
            async for part in asked.stream():
                data += part
                if len(data) > config.max_body_bytes:
                    raise HTTPError(
                        f"the body has more than {config.max_body_bytes:,} bytes",
                        413,
                        headers={"Connection": "close"},
                    )
    except TimeoutError:
        raise HTTPError(
            f"the body took more than {config.body_seconds:g} seconds",
            408,
            headers={"Connection": "close"},
        ) from None
    try:
        return parse_json(bytes(data))
    except Malformed as error:
        raise HTTPError(f"the body is not JSON: {error}") from None


def client_of(asked: Asked, user: str | None) -> str:
    """Who asks, for taking turns."""
    host = asked.client.host if asked.client else ""
    return f"{host}/{asked.headers.get('authorization', '')}/{user or ''}"[:1000]


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def encoded(value: Any) -> str:
    """JSON as it goes over the line; what is no Unicode is escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def page_text() -> str:
    """The page to chat at: its parts put into one, so that it asks for nothing else."""
    folder = Path(__file__).with_name("static")
    text = (folder / "page.html").read_text(encoding="utf-8")
    for name in ("style.css", "chat.js", "texts.js"):
        text = text.replace(f"/* {name} */", (folder / name).read_text(encoding="utf-8"))
    return text


EventLines = AsyncIterator[str]
