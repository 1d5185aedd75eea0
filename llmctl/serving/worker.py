"""The one thread that computes: it steps every model's engine in turn, and tells what came out.

Requests come from the event loop by a queue and go back to it as events, a list for each step.
What is not written token by token (vectors, classes) is computed between two steps.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from llmctl.errors import LlmctlError
from llmctl.inference.engine import Engine, EngineRequest, Token
from llmctl.serving.errors import HTTPError

T = TypeVar("T")
LOGGER = logging.getLogger("llmctl.serving")


class Stream:
    """What becomes of some requests of one client, as it comes."""

    def __init__(self, worker: Worker, engine: Engine, requests: Sequence[EngineRequest]) -> None:
        self._worker, self._engine, self._requests = worker, engine, list(requests)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[list[tuple[int, Token, float]] | Exception] = asyncio.Queue()
        self.numbers: dict[int, int] = {}
        """The place of each request among ours, by its number in the engine."""
        self.queued = time.monotonic()
        self._open = sum(request.rules.config.num_samples for request in self._requests)

    async def __aenter__(self) -> Stream:
        self._worker.call(self._submit)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._open:
            self._worker.call(self._cancel)

    def tell(self, events: list[tuple[int, Token, float]] | Exception) -> None:
        """Hand events over, from the computing thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, events)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token, float]]:
        """Each token with the place of its request, and when it came. Raises what ended one."""
        while self._open:
            events = await self._events.get()
            if isinstance(events, Exception):
                raise events
            for place, token, when in events:
                if token.error is not None:
                    raise token.error
                self._open -= token.finish is not None
                yield place, token, when

    def _submit(self) -> None:
        for place, request in enumerate(self._requests):
            try:
                number = self._engine.submit(request)
            except LlmctlError as error:
                self._cancel()
                self.tell(error)
                return
            self.numbers[number] = place
            self._worker.streams[self._engine, number] = self

    def _cancel(self) -> None:
        for number in self.numbers:
            self._engine.cancel(number)
            self._worker.streams.pop((self._engine, number), None)


class Worker:
    """The computing thread."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = list(engines)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.streams: dict[tuple[Engine, int], Stream] = {}
        """Who is told of a request; known to the computing thread alone."""
        self.failure: BaseException | None = None
        """What ended the thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """End the thread behind its step, whatever is still open."""

        def end() -> None:
            self._stopping = True

        self.call(end)
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and self.failure is None

    def call(self, function: Callable[[], None]) -> None:
        """Have something done between two steps."""
        self._calls.put(function)

    async def compute(self, function: Callable[[], T]) -> T:
        """What a function comes to that computes between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        if not self.alive:
            raise HTTPError("the engine has stopped", 503)
        self.call(run)
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._do_calls()
                for engine in self._engines:
                    if not engine.idle:
                        self._step(engine)
        except BaseException as error:  # whatever it is, those who wait are told
            self.failure = error
            LOGGER.exception("the engine has stopped")
            for stream in set(self.streams.values()):
                stream.tell(HTTPError("the engine has stopped", 503))

    def _do_calls(self) -> None:
        """Do what was asked; with nothing else to do wait for it."""
        wait = all(engine.idle for engine in self._engines)
        while True:
            try:
                function = self._calls.get(block=wait, timeout=None)
            except queue.Empty:
                return
            function()
            wait = False
            if self._stopping:
                return

    def _step(self, engine: Engine) -> None:
        tokens, now = engine.step(), time.monotonic()
        told: dict[Stream, list[Any]] = {}
        for token in tokens:
            stream = self.streams.get((engine, token.request))
            if stream is not None:
                told.setdefault(stream, []).append((stream.numbers[token.request], token, now))
        for stream, events in told.items():
            stream.tell(events)
        for token in tokens:
            done = token.error is not None or token.finish is not None
            if done and not engine.knows(token.request):
                self.streams.pop((engine, token.request), None)
