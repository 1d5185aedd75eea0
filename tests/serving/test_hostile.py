"""A server outlives what is sent to it: errors name what is wrong, and others are served on."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import served
from tests.serving.hostile import refusal, request
from tests.serving.test_server import ASKED, post


def test_whatever_is_sent_is_answered_or_refused(talker: httpx.Client):
    seen: dict[int, int] = {}
    for number in range(120):
        method, path, body, headers = request(number)
        answer = talker.request(method, path, content=body, headers=headers)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert not refusal(answer, method), (number, method, path, body[:300])
    assert {200, 400, 404, 405, 415} <= set(seen)
    assert talker.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", "hot", "temperature: Input should be a valid number"),
        ("temperature", -1, "temperature: must be 0"),
        ("top_p", 0, "top_p: must be more than 0"),
        ("n", 0, "n: has to be from 1 to 64"),
        ("max_tokens", 5000, "the model takes 128"),
        ("tempreature", 1, "tempreature: this field is not supported"),
        ("priority", 3, "priority"),
        ("logit_bias", {"99999": 1}, "there is no token 99999"),
        ("guided_regex", "(", "the regular expression can't be used"),
        ("guided_json", {"type": "nothing"}, "the JSON schema can't be used"),
        ("reasoning_effort", "low", "reasoning_effort: this field is not supported"),
        ("model", "gpt-9", "there is no model 'gpt-9'; there are talker, tiny-gpt"),
        ("messages", [], "messages: has to be from 1"),
    ],
)
def test_a_field_that_can_not_be_taken_is_named(
    talker: httpx.Client, field: str, value: Any, says: str
):
    body = {"messages": ASKED, "max_tokens": 2, field: value}
    status = 404 if field == "model" else 400
    error = post(talker, "/v1/chat/completions", status, **body)["error"]
    assert says in error["message"]
    assert error["param"] is None or error["param"] == field


def test_a_client_that_goes_away_is_not_written_for(talker: httpx.Client):
    body = {"model": "tiny-gpt", "prompt": "The", "max_tokens": 100, "ignore_eos": True}
    scheduler = talker.serving.models["tiny-gpt"].engine.scheduler  # type: ignore[attr-defined]
    host, port = talker.base_url.host, talker.base_url.port
    for stream in (True, False):
        data = json.dumps({**body, "stream": stream, "n": 8}).encode()
        with socket.create_connection((host, port)) as connection:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            connection.sendall(head.encode() + data)
            limit = time.monotonic() + 10
            while not scheduler.running:
                assert time.monotonic() < limit
                time.sleep(0.001)
        limit = time.monotonic() + 10
        while scheduler.running or len(scheduler.waiting):
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert scheduler.kv_used == scheduler.prefixes.tokens
    assert talker.serving.open_texts == 0  # type: ignore[attr-defined]


def test_sixteen_at_once_get_their_own(talker: httpx.Client):
    """The same as one by one, streamed and whole."""
    prompts = [f"The {word} {n}" for n in range(4) for word in ("ship", "cows", "tram", "hens")]
    fields = {"model": "tiny-gpt", "max_tokens": 16, "temperature": 0.9, "seed": 5}
    expected = [
        post(talker, "/v1/completions", prompt=prompt, **fields)["choices"][0]["text"]
        for prompt in prompts
    ]
    found: list[str] = [""] * len(prompts)

    def ask(place: int) -> None:
        with httpx.Client(base_url=talker.base_url, timeout=30) as client:
            answer = post(client, "/v1/completions", prompt=prompts[place], **fields)
            found[place] = answer["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_keys_bodies_and_queues_have_limits(decoder_workspace: Path):
    limits = {"api_key": "secret", "max_body_bytes": 2000, "max_waiting": 0, "max_sequences": 2,
              "body_seconds": 0.3, "max_seconds": 20}  # fmt: skip
    with served(decoder_workspace, "tiny-gpt", **limits) as client:
        assert client.get("/health").status_code == 200
        for key in (None, "wrong", "sécret"):
            headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
            assert client.get("/v1/models", headers=headers).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert client.get("/v1/models").status_code == 200
        post(client, "/v1/completions", 413, prompt="a" * 3000)
        busy = client.post("/v1/completions", json={"prompt": "a", "n": 2, "max_tokens": 2})
        assert busy.status_code == 200
        client.serving.open_texts = 1  # type: ignore[attr-defined]
        busy = client.post("/v1/completions", json={"prompt": "a", "n": 2, "max_tokens": 2})
        assert busy.status_code == 429
        assert int(busy.headers["retry-after"]) >= 1
        client.serving.open_texts = 0  # type: ignore[attr-defined]
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
                b'Content-Length: 50\r\n\r\n{"prompt"'
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert client.get("/health").status_code == 200


def test_what_is_open_is_finished_when_the_server_ends(decoder_workspace: Path):
    got: list[int] = []
    with served(decoder_workspace, "tiny-gpt") as client:
        scheduler = client.serving.models["tiny-gpt"].engine.scheduler  # type: ignore[attr-defined]

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=30) as other:
                body = {"prompt": "The", "max_tokens": 100, "ignore_eos": True, "n": 8}
                found = post(other, "/v1/completions", **body)
                got.append(found["usage"]["completion_tokens"])

        thread = threading.Thread(target=ask)
        thread.start()
        while not scheduler.running:
            time.sleep(0.001)
    thread.join()
    assert got == [800]
