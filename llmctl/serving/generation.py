"""Texts that a request asks for: written by an engine, gathered or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as Asked

from llmctl.errors import LlmctlError
from llmctl.inference.decoding import CompiledSamplingParams
from llmctl.inference.engine import Constraint, EngineRequest, Token
from llmctl.inference.engine.requests import Scored
from llmctl.serving.errors import HTTPError
from llmctl.serving.models import ServedModel
from llmctl.serving.state import Serving, client_of
from llmctl.serving.worker import Stream


@dataclass(kw_only=True)
class Job:
    """What a request asks an engine for."""

    served: ServedModel
    prompts: Sequence[Sequence[int]]
    rules: CompiledSamplingParams
    copies: int = 1
    """How often each prompt is asked for; see ``sampling.compiled``."""
    constraint: Callable[[], Constraint] | None = None
    top: int = 0
    prompt_top: int | None = None
    user: str | None = None
    salt: str = ""

    @property
    def samples(self) -> int:
        """Texts of each prompt."""
        return max(self.copies, self.rules.config.num_samples)

    def requests(self, client: str) -> list[EngineRequest]:
        """What the engine is asked."""
        return [
            EngineRequest(
                prompt=prompt,
                rules=self.rules,
                top=self.top,
                prompt_top=self.prompt_top,
                constraint=self.constraint,
                client=client,
                salt=self.salt,
            )
            for prompt in self.prompts
            for _ in range(self.copies)
        ]

    def place(self, request: int, sample: int) -> int:
        """The number of a text among all, prompt by prompt."""
        return request * self.rules.config.num_samples + sample


@dataclass
class Written:
    """One text, as far as it is written."""

    index: int
    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    prompt: tuple[Scored, ...] = ()
    finish: str | None = None


@dataclass
class Usage:
    """Tokens of a request."""

    prompt: int
    written: int = 0
    cached: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


class Generation:
    """Texts while they are written: an iterator of what comes, which keeps count."""

    def __init__(self, serving: Serving, job: Job, asked: Asked) -> None:
        self._serving, self.job, self._asked = serving, job, asked
        self.usage = Usage(sum(map(len, job.prompts)))
        self.texts = [Written(index) for index in range(len(job.prompts) * job.samples)]
        self._last: dict[int, float] = {}

    async def events(self) -> AsyncIterator[tuple[Written, Token]]:
        """Each token with the text that it belongs to. Raises HTTPError for what ends it."""
        serving, job = self._serving, self.job
        engine = job.served.writer
        requests = job.requests(client_of(self._asked, job.user))
        begin = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.enter_context(serving.places(len(self.texts)))
            stream = await stack.enter_async_context(Stream(serving.worker, engine, requests))
            try:
                async with asyncio.timeout(serving.config.max_seconds):
                    async for request, token, when in stream:
                        yield self._take(request, token, when - begin), token
            except TimeoutError:
                raise HTTPError(
                    f"the request took more than {serving.config.max_seconds:g} seconds", 408
                ) from None
            except LlmctlError as error:
                raise HTTPError(str(error)) from None
        self._count(time.monotonic() - begin)

    async def whole(self) -> list[Written]:
        """All texts, finished. A client that goes away ends them."""
        from llmctl.serving.disconnects import until_gone

        async def gather() -> list[Written]:
            async for _ in self.events():
                pass
            return self.texts

        return await until_gone(self._asked, gather())

    def _take(self, request: int, token: Token, seconds: float) -> Written:
        metrics, name = self._serving.metrics, self.job.served.name
        text = self.texts[self.job.place(request, token.sample)]
        if not text.scored:
            metrics.first_token.labels(name).observe(seconds)
            text.prompt = token.prompt
            if token.sample == 0:
                self.usage.cached += token.cached_tokens
        else:
            metrics.gap.labels(name).observe(max(0.0, seconds - self._last[text.index]))
        self._last[text.index] = seconds
        assert token.scored is not None
        text.scored.append(token.scored)
        text.text += token.text
        text.finish = token.finish and FINISH[token.finish]
        self.usage.written += 1
        return text

    def _count(self, seconds: float) -> None:
        metrics, name = self._serving.metrics, self.job.served.name
        metrics.prompt_tokens.labels(name).inc(self.usage.prompt)
        metrics.generation_tokens.labels(name).inc(self.usage.written)
        metrics.request_prompt.labels(name).observe(self.usage.prompt)
        metrics.request_generation.labels(name).observe(self.usage.written)
        metrics.request_max.labels(name).observe(self.job.rules.config.max_new_tokens)
        metrics.latency.labels(name).observe(seconds)
        for text in self.texts:
            metrics.request_success.labels(name, text.finish or "abort").inc()


def spelt(served: ServedModel, token: int) -> tuple[str, list[int]]:
    """A token as a text of its own and its bytes; a special one by its name."""
    data = served.tokenizer.decode_bytes([token])
    if not data:
        name = served.tokenizer.id_to_token(token)
        return name, list(name.encode("utf-8", "replace"))
    return data.decode("utf-8", "replace"), list(data)
