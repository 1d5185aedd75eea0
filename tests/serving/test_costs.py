"""What a request and a token must not cost."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from llmctl.serving import server
from llmctl.serving.config import ServeConfig
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.workspace.artefacts import Workspace
from tests.serving.conftest import served


def test_what_a_tokenizer_knows_of_its_pieces_is_found_out_once(
    talker: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    """It takes a tenth of a second, in which nobody's text is written."""
    counted: list[FastTokenizer] = []
    real = FastTokenizer._bytes_of_pieces

    def counting(self: FastTokenizer) -> list[bytes]:
        counted.append(self)
        return real(self)

    monkeypatch.setattr(FastTokenizer, "_bytes_of_pieces", counting)
    body: dict[str, Any] = {"model": "talker", "max_tokens": 3}
    body["messages"] = [{"role": "user", "content": "a"}]
    for _ in range(3):
        assert talker.post("/v1/chat/completions", json=body).status_code == 200
    assert len(counted) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by /proc")
def test_opening_leaves_no_threads_that_compute(
    monkeypatch: pytest.MonkeyPatch, decoder_workspace: Path
):
    """A team of OpenMP's that stayed beside the engine's would make more threads than cores, and
    the library then lets all sleep at each meeting."""

    def compute(*words: Any, **fields: Any) -> dict[str, Any]:
        torch.ones(1 << 20).add_(1)
        assert len(os.listdir("/proc/self/task")) > before
        return {}

    monkeypatch.setattr(server, "open_models", compute)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 3)  # which starts some of its own
    before = len(os.listdir("/proc/self/task"))
    try:
        server.open_serving(Workspace(decoder_workspace), ["talker"], ServeConfig(port=0))
        end = time.monotonic() + 10
        while len(os.listdir("/proc/self/task")) > before:  # they end a moment later
            assert time.monotonic() < end, "they stayed"
            time.sleep(0.01)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(sys.platform != "linux", reason="maps are listed by /proc")
def test_a_server_outlives_its_files(decoder_workspace: Path, tmp_path: Path):
    """Mapped, a file that is overwritten would end it, or change what it answers."""
    folder = tmp_path / "gpt"
    shutil.copytree(decoder_workspace / "runs" / "tiny-gpt" / "model", folder)
    body = {"model": "gpt", "prompt": "the ship", "max_tokens": 8, "temperature": 0}
    with served(decoder_workspace, str(folder)) as client:
        before = client.post("/v1/completions", json=body).json()["choices"]
        assert str(folder) not in Path("/proc/self/maps").read_text()
        for path in folder.iterdir():
            os.truncate(path, 0)
        assert client.post("/v1/completions", json=body).json()["choices"] == before
