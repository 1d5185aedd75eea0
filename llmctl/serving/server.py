"""A server from its start to its end: models are opened, requests served, open ones finished."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmctl.errors import BusyError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.serving.app import make_app
from llmctl.serving.config import ServeConfig
from llmctl.serving.metrics import Metrics
from llmctl.serving.models import open_models
from llmctl.serving.state import Serving, now
from llmctl.serving.worker import Worker
from llmctl.workspace.artefacts import Workspace

T = TypeVar("T")

HEADER_SECONDS = 15.0
"""Seconds that a client has to send the head of a request."""
DRAIN_SECONDS = 8
"""Seconds that requests have to end when the server is stopped."""
MOST_CONNECTIONS = 1024


def open_serving(
    workspace: Workspace,
    starts: Sequence[str],
    config: ServeConfig,
    *,
    adapters: Sequence[str] = (),
    draft: str | None = None,
    reporter: Reporter | None = None,
) -> Serving:
    """Models that are ready to be served. draft: a smaller one that writes ahead for them. Raises
    InputError for one that can't be, UsageError for a draft of another vocabulary."""
    # By a thread that ends, and with it the team of OpenMP's that it computed with: were it there
    # beside the engine's, there would be more threads than cores, and all would sleep wherever they
    # meet (training/waiting.py), which takes a small model three times as long for a token.
    models = _by_a_thread_that_ends(
        lambda: open_models(
            workspace,
            starts,
            config,
            device=config.device,
            dtype=config.dtype,
            kernels=config.kernels,
            adapters=adapters,
            draft=draft,
            created=now(),
            generation_config=config.generation_config,
            reporter=reporter,
        )
    )
    worker = Worker([model.engine for model in models.values() if model.engine is not None])
    return Serving(config, models, worker, Metrics(models))


def _by_a_thread_that_ends(function: Callable[[], T]) -> T:
    """What a function returns, or raises; a signal meanwhile ends the process at once."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(function())
        except BaseException as error:  # whatever it is, who waits is told
            found.set_exception(error)

    thread = threading.Thread(target=run, name="llmctl-opening", daemon=True)
    thread.start()
    result = found.result()
    thread.join()
    return result


def serve(
    serving: Serving, *, reporter: Reporter, ready: Callable[[int], None] = lambda port: None
) -> None:
    """Serve until a signal comes; what is open then has some seconds to end. ready: is told the
    port. Raises BusyError where the port is taken, UsageError for an address that isn't ours."""
    listening = listen(serving.config)
    port = int(listening.getsockname()[1])
    server = Server(serving)
    serving.worker.start()
    shown = f"[{serving.config.host}]" if ":" in serving.config.host else serving.config.host
    names = ", ".join(serving.models)
    reporter.note(f"serving {names} at http://{shown}:{port}/ and /v1; Ctrl-C ends it")
    ready(port)
    try:
        server.run(sockets=[listening])
    finally:
        serving.worker.stop()
        listening.close()


class Server(uvicorn.Server):
    """A server that takes nothing new once it is to end."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        super().__init__(
            uvicorn.Config(
                make_app(serving),
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                h11_max_incomplete_event_size=32 << 10,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("llmctl.serving").addHandler(handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: a second one doesn't wait for open requests."""
        self._serving.draining = True
        super().handle_exit(sig, frame)


class PatientProtocol(H11Protocol):
    """HTTP to clients that may take their time, but not for ever: the head of a request has to
    come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _check_head(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def listen(config: ServeConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # By the protocol asyncio knows where not to wait for more (TCP_NODELAY): 40 ms an answer.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MOST_CONNECTIONS)
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"--host {config.host} is no address; use 127.0.0.1, or 0.0.0.0 for all of this machine"
        ) from None
    except OSError as error:
        raise BusyError(
            f"port {config.port} of {config.host} can't be listened at ({error.strerror}); choose "
            "another with --port"
        ) from None
    return listening
