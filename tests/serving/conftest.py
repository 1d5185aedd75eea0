"""A server with small models, for as long as the tests run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.serving.config import ServeConfig
from llmctl.workspace.artefacts import Workspace

pytest.importorskip("uvicorn")


@contextmanager
def served(workspace: Path, *starts: str, **fields: Any) -> Iterator[httpx.Client]:
    """A client of a server that runs in a thread."""
    from llmctl.serving.server import Server, listen, open_serving

    serving = open_serving(Workspace(workspace), starts, ServeConfig(port=0, **fields))
    listening = listen(serving.config)
    server = Server(serving)
    serving.worker.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=30) as client:
            client.serving = serving  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join()
        serving.worker.stop()
        listening.close()


@pytest.fixture(scope="session")
def talker(decoder_workspace: Path) -> Iterator[httpx.Client]:
    """A server of ``talker``, which answers, and ``tiny-gpt``, which goes on with texts."""
    with served(decoder_workspace, "talker", "tiny-gpt", max_waiting=100) as client:
        yield client


@pytest.fixture(scope="session")
def judges(tiny_workspace: Path) -> Iterator[httpx.Client]:
    """A server of a classifier, which writes nothing."""
    with served(tiny_workspace, "subjects") as client:
        yield client
