"""A server with small models, for as long as the tests run."""

from __future__ import annotations

import json
import shutil
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
def served(
    workspace: Path, *starts: str, draft: str | None = None, **fields: Any
) -> Iterator[httpx.Client]:
    """A client of a server that runs in a thread."""
    from llmctl.serving.server import Server, listen, open_serving

    config = ServeConfig(port=0, **fields)
    serving = open_serving(Workspace(workspace), starts, config, draft=draft)
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


@pytest.fixture(scope="session")
def embedder(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A BERT whose mean is a vector, as an embedder's folder has it."""
    from llmctl.data.tables.labelled import Example
    from llmctl.formats.open import open_folder
    from llmctl.inference.embedding import embed_ids
    from llmctl.models.heads.embed import Embedder

    folder = tmp_path_factory.mktemp("embedder") / "embedder"
    shutil.copytree(tiny_workspace / "runs" / "tiny" / "model", folder)
    model = open_folder(folder)
    parts = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{part}"}
        for n, (path, part) in enumerate(parts.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    width = int(model.config.hidden_size)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    network = Embedder(model.backbone(), "mean", normalize=False)

    def expected(texts: list[str]) -> Any:
        from llmctl.data.tables.encoded import encode_examples

        examples = [Example(text, None, None, "a test") for text in texts]
        encoded = encode_examples(model.tokenizer, examples, model.max_length)
        return embed_ids(network, [one.ids for one in encoded], 0)

    with served(tiny_workspace, f"vectors={folder}") as client:
        yield client, expected
