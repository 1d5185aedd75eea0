"""``llmctl serve`` as a process: it says where it listens, and ends when it is told to."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.errors import InputError, UsageError
from llmctl.serving.config import ServeConfig
from llmctl.serving.server import listen, open_serving
from llmctl.workspace.artefacts import Workspace
from tests.language_models import Notes
from tests.run import llmctl, one_sentence, start


def test_it_serves_until_a_signal_comes(decoder_workspace: Path):
    words = ["serve", "--from", "gpt=tiny-gpt", "--port", "0", "--dtype", "int8"]
    process = start(decoder_workspace, *words)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        address = re.search(r"serving gpt at (http://127\.0\.0\.1:\d+)/", said)
        assert address, said
        body = {"model": "gpt", "prompt": "The ship", "max_tokens": 4, "temperature": 0}
        found = httpx.post(f"{address[1]}/v1/completions", json=body, timeout=30).json()
        assert found["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert out == ""
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_one_sentence(decoder_workspace: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["serve", "--from", "tiny-gpt", "--port", port]
        assert f"port {port}" in one_sentence(llmctl(decoder_workspace, *words, code=4))


@pytest.mark.parametrize(
    ("starts", "adapters", "kind", "says"),
    [
        (["nothing"], [], InputError, "no run or model folder 'nothing'"),
        (["tiny-gpt", "tiny-gpt"], [], UsageError, "two models would be called tiny-gpt"),
        (["tiny-gpt"], ["x=nowhere"], InputError, "no run or model folder 'nowhere'"),
    ],
)
def test_what_can_not_be_served(
    decoder_workspace: Path, starts: list[str], adapters: list[str], kind: Any, says: str
):
    with pytest.raises(kind, match=says):
        open_serving(Workspace(decoder_workspace), starts, ServeConfig(), adapters=adapters)


def test_an_address_that_is_none():
    with pytest.raises(UsageError, match="--host not a host is no address"):
        listen(ServeConfig(host="not a host"))


def test_formats_of_weights_are_of_models_that_write(tiny_workspace: Path, decoder_workspace: Path):
    judge = f"judge={tiny_workspace}/runs/subjects/model"
    config = ServeConfig(dtype="int8")
    with pytest.raises(UsageError, match="--dtype int8: none of the models writes text"):
        open_serving(Workspace(tiny_workspace), [judge], config)
    notes = Notes()
    open_serving(Workspace(decoder_workspace), ["tiny-gpt", judge], config, reporter=notes)
    assert "--dtype int8 is of models that write; it leaves judge as before" in notes.notes
