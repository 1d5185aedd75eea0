"""OpenAI's own client, pointed at a server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving.test_server import ASKED, QUESTION, TOOLS

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(talker: httpx.Client) -> Any:
    return openai.OpenAI(base_url=f"{talker.base_url}/v1", api_key="none", max_retries=0)


def test_chat(client: Any):
    answer = client.chat.completions.create(model="talker", messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == "Over the wide sea."
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat.completions.create(
        model="talker", messages=ASKED, temperature=0, stream=True, logprobs=True, top_logprobs=1,
        stream_options={"include_usage": True}, extra_body={"min_p": 0.1},
    )  # fmt: skip
    *chunks, usage = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Over the wide sea."
    assert usage.usage.completion_tokens > 1


def test_tools(client: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmctl.serving.tools.PREFACE", "{tools:.0}feed")
    answer = client.chat.completions.create(
        model="talker", messages=ASKED, tools=TOOLS, tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"animal", "often"}


def test_tools_of_responses(client: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmctl.serving.tools.PREFACE", "{tools:.0}feed")
    asked: dict[str, Any] = {
        "model": "talker", "input": QUESTION, "temperature": 0, "tool_choice": "required",
        "tools": [{"type": "function", **TOOLS[0]["function"]}],
    }  # fmt: skip
    (call,) = client.responses.create(**asked).output
    assert set(json.loads(call.arguments)) == {"animal", "often"}
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    assert (streamed.name, streamed.arguments) == ("feed", call.arguments)
    call.name, call.arguments = "f", "{}"  # the context is small
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "b"}
    items = [{"role": "user", "content": "Hm"}, call.model_dump(), output]
    answer = client.responses.create(
        model="talker", input=items, temperature=0, max_output_tokens=6
    )
    assert answer.output[0].type == "message"
    assert isinstance(answer.output_text, str)


def test_completions_models_and_responses(client: Any):
    assert [model.id for model in client.models.list()] == ["talker", "tiny-gpt"]
    found = client.completions.create(
        model="tiny-gpt", prompt=["The", "A"], max_tokens=3, logprobs=2, echo=True, n=2
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.choices[0].logprobs.token_logprobs[0] is None
    answer = client.responses.create(model="talker", input=QUESTION, temperature=0)
    assert answer.output_text == "Over the wide sea."
    with client.responses.stream(model="talker", input=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "Over the wide sea."


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BadRequestError", {"model": "talker", "temperature": -1}),
        ("NotFoundError", {"model": "gpt-9"}),
    ],
)
def test_errors_are_its_own(client: Any, kind: str, fields: dict[str, Any]):
    with pytest.raises(getattr(openai, kind)) as caught:
        client.chat.completions.create(messages=ASKED, **fields)
    assert caught.value.param in ("temperature", "model")


def test_vectors_and_order(embedder: Any):
    """Base64 (the client's own wish), numbers, and fewer of them; cosines in NumPy."""
    plain, expected = embedder
    client = openai.OpenAI(base_url=f"{plain.base_url}/v1", api_key="none", max_retries=0)
    texts = ["the ship sails over the sea", "hens lay eggs", "the tram stops"]
    table = expected(texts)
    for options in ({}, {"encoding_format": "float"}):
        found = client.embeddings.create(model="vectors", input=texts, **options)
        np.testing.assert_allclose([one.embedding for one in found.data], table, atol=1e-5)
    short = client.embeddings.create(model="vectors", input=texts[0], dimensions=8)
    cut = table[0, :8] / np.linalg.norm(table[0, :8])
    np.testing.assert_allclose(short.data[0].embedding, cut, atol=1e-5)
    body = {"query": texts[0], "documents": texts[1:], "top_n": 2}
    results = plain.post("/rerank", json=body).json()["results"]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit[1:] @ unit[0]
    assert [one["index"] for one in results] == list(np.argsort(-cosines))
    assert results[0]["relevance_score"] == pytest.approx(float(cosines.max()), abs=1e-5)
