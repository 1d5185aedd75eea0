"""What a server answers, beside the library's own functions and the official shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.data.tables.labelled import Example
from llmctl.formats.open import open_folder
from llmctl.stages.chat import ChatConfig, open_chat
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import predict
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.workspace.artefacts import Workspace

QUESTION = "Where does the ship sail? (3)"
ASKED = [{"role": "user", "content": QUESTION}]


def post(client: httpx.Client, address: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(address, json=body)
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    return document


def events(client: httpx.Client, address: str, **body: Any) -> Iterator[dict[str, Any]]:
    with client.stream("POST", address, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        yield json.loads(line.removeprefix("data: "))


def test_a_chat_is_answered_as_llmctl_chat_answers(talker: httpx.Client, decoder_workspace: Path):
    config = ChatConfig(temperature=0, device="cpu")
    expected = open_chat(Workspace(decoder_workspace), "talker", config).answer(QUESTION)
    found = post(talker, "/v1/chat/completions", model="talker", messages=ASKED, temperature=0)
    (choice,) = found["choices"]
    assert choice["message"]["content"] == expected.text == "Over the wide sea."
    assert choice["finish_reason"] == "stop"
    assert found["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert found["usage"]["completion_tokens"] == expected.new_tokens
    assert found["object"] == "chat.completion"


def test_a_stream_comes_to_the_same(talker: httpx.Client):
    told = list(
        events(
            talker,
            "/v1/chat/completions",
            model="talker",
            messages=ASKED,
            temperature=0,
            stream_options={"include_usage": True},
        )
    )
    first, *chunks, last, usage = told
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == "Over the wide sea."
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 3
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in told}) == 1
    assert not any("usage" in chunk for chunk in told[:-1])


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0.8, "seed": 4}])
def test_completions_are_those_of_generate(
    talker: httpx.Client, decoder_workspace: Path, fields: dict[str, Any]
):
    prompts = ["The ship", "The cows eat at", ""]
    generation = open_generation(
        Workspace(decoder_workspace), "tiny-gpt", GenerateConfig(max_new_tokens=12, **fields)
    )
    expected = [
        next(iter(generation.answers([Prompt(prompt, "a test")]))).completions[0].text
        for prompt in prompts
    ]
    body = {"model": "tiny-gpt", "max_tokens": 12, **fields}
    found = post(talker, "/v1/completions", prompt=prompts, **body)
    assert [choice["text"] for choice in found["choices"]] == expected
    one = post(talker, "/v1/completions", prompt=prompts[1], **body)
    assert one["choices"][0]["text"] == expected[1]
    told = list(events(talker, "/v1/completions", prompt=prompts[1], **body))
    assert "".join(chunk["choices"][0]["text"] for chunk in told) == expected[1]


def test_the_prompts_own_log_probabilities(talker: httpx.Client, decoder_workspace: Path):
    """What lm-eval sends and reads, beside transformers' logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = decoder_workspace / "runs" / "tiny-gpt" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    ids = open_folder(path).tokenizer.encode("The ship sails over the wide sea.")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = post(
        talker, "/v1/completions", model="tiny-gpt", prompt=ids, temperature=0, max_tokens=1,
        logprobs=1, seed=1234, echo=True,
    )["choices"][0]["logprobs"]  # fmt: skip
    assert found["token_logprobs"][0] is None
    assert len(found["token_logprobs"]) == len(ids) + 1
    for place in range(1, len(ids)):
        row = expected[place - 1]
        value = found["token_logprobs"][place]
        assert value == pytest.approx(float(row[ids[place]]), abs=1e-4)
        top = found["top_logprobs"][place]
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
        assert (value == max(top.values())) == (int(row.argmax()) == ids[place])
    zero = post(talker, "/v1/completions", model="tiny-gpt", prompt=ids, max_tokens=0, echo=True)
    assert zero["choices"][0]["text"].strip() == "The ship sails over the wide sea."


def test_several_texts_and_log_probabilities_in_chat(talker: httpx.Client):
    found = post(
        talker, "/v1/chat/completions", messages=ASKED, n=3, seed=1, temperature=1.5,
        logprobs=True, top_logprobs=2, max_completion_tokens=6,
    )  # fmt: skip
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    for choice in found["choices"]:
        content = choice["logprobs"]["content"]
        assert len(content) <= 6
        for entry in content:
            assert len(entry["top_logprobs"]) == 2
            assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
            assert entry["logprob"] <= 0
    again = post(
        talker, "/v1/chat/completions", messages=ASKED, n=3, seed=1, temperature=1.5,
        max_completion_tokens=6,
    )  # fmt: skip
    told = [[c["message"]["content"] for c in one["choices"]] for one in (found, again)]
    assert told[0] == told[1]
    same = post(talker, "/v1/chat/completions", messages=ASKED, n=2, temperature=0)
    assert same["choices"][0]["message"] == same["choices"][1]["message"]


def test_what_is_kept_to_a_form(talker: httpx.Client):
    schema = {
        "type": "object",
        "properties": {"sea": {"type": "boolean"}, "word": {"enum": ["hens", "cows"]}},
        "required": ["sea", "word"],
        "additionalProperties": False,
    }
    body = {"messages": ASKED, "temperature": 1.0, "seed": 3, "max_tokens": 60}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = post(talker, "/v1/chat/completions", response_format=form, **body)
    value = json.loads(found["choices"][0]["message"]["content"])
    assert set(value) == {"sea", "word"}
    assert value["word"] in ("hens", "cows")
    for field, pattern in (
        ({"guided_choice": ["north", "south"]}, r"north|south"),
        ({"guided_regex": r"[0-9]{3}-[0-9]{2}"}, r"\d{3}-\d\d"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, r"ab"),
    ):
        text = post(talker, "/v1/chat/completions", **field, **body)
        assert re.fullmatch(pattern, text["choices"][0]["message"]["content"])


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "feed",
            "description": "Feed an animal.",
            "parameters": {
                "type": "object",
                "properties": {"animal": {"enum": ["hen", "cow"]}, "often": {"type": "boolean"}},
                "required": ["animal", "often"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "feed"}}])
def test_a_tool_that_has_to_be_called_is(talker: httpx.Client, choice: Any, monkeypatch: Any):
    monkeypatch.setattr("llmctl.serving.tools.PREFACE", "{tools:.0}feed")  # the context is small
    body = {"messages": ASKED, "tools": TOOLS, "tool_choice": choice, "seed": 1}
    found = post(talker, "/v1/chat/completions", **body)["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == "feed"
    assert json.loads(call["function"]["arguments"])["animal"] in ("hen", "cow")
    told = [c["choices"][0] for c in events(talker, "/v1/chat/completions", **body)]
    deltas = [c["delta"]["tool_calls"][0] for c in told if "tool_calls" in c["delta"]]
    assert deltas[0]["function"]["name"] == "feed"
    streamed = "".join(delta["function"]["arguments"] for delta in deltas)
    assert json.loads(streamed) == json.loads(call["function"]["arguments"])
    assert told[-1]["finish_reason"] == "tool_calls"


def test_responses(talker: httpx.Client):
    found = post(talker, "/v1/responses", input=QUESTION, temperature=0)
    assert found["output"][0]["content"][0]["text"] == "Over the wide sea."
    assert found["status"] == "completed"
    with talker.stream(
        "POST", "/v1/responses", json={"input": QUESTION, "temperature": 0, "stream": True}
    ) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [told[0]["type"], told[-1]["type"]] == ["response.created", "response.completed"]
    text = "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta")
    assert text == told[-1]["response"]["output"][0]["content"][0]["text"] == "Over the wide sea."


FEED = {"type": "function", **TOOLS[0]["function"]}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "feed"}])
def test_responses_call_functions(talker: httpx.Client, choice: Any, monkeypatch: Any):
    monkeypatch.setattr("llmctl.serving.tools.PREFACE", "{tools:.0}feed")
    body = {"input": QUESTION, "tools": [FEED], "tool_choice": choice, "temperature": 0}
    found = post(talker, "/v1/responses", **body)
    (call,) = found["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "feed", "completed")
    given = json.loads(call["arguments"])
    assert given["animal"] in ("hen", "cow")
    assert (found["tool_choice"], found["tools"][0]["name"]) == (choice, "feed")
    with talker.stream("POST", "/v1/responses", json={**body, "stream": True}) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert json.loads(told[3]["delta"]) == json.loads(told[4]["arguments"]) == given
    assert told[2]["item"]["arguments"] == ""
    assert told[5]["item"] == told[6]["response"]["output"][0]


def test_what_came_of_a_call_is_a_turn_as_in_a_chat(talker: httpx.Client):
    function = {"name": "f", "arguments": "{}"}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Hm"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "status": "completed", **function},
        {"type": "function_call_output", "call_id": "1", "output": "b"},
    ]
    messages = [
        {"role": "user", "content": "Hm"},
        {"role": "assistant", "content": "a", "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "content": "b", "tool_call_id": "1"},
    ]
    found = post(talker, "/v1/responses", input=items, temperature=0, max_output_tokens=6)
    chat = post(talker, "/v1/chat/completions", messages=messages, temperature=0, max_tokens=6)
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    text = found["output"][0]["content"][0]["text"]
    assert text == chat["choices"][0]["message"]["content"]


def test_a_response_that_may_call_and_does_not_is_a_message(talker: httpx.Client, monkeypatch: Any):
    monkeypatch.setattr("llmctl.serving.tools.PREFACE", "{tools:.0}feed")
    body = {"input": QUESTION, "tools": [FEED], "temperature": 0, "max_output_tokens": 6}
    with talker.stream("POST", "/v1/responses", json={**body, "stream": True}) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert kinds[2:5] == ["output_item.added", "content_part.added", "output_text.delta"]
    assert told[4]["delta"] == told[-1]["response"]["output"][0]["content"][0]["text"]
    assert told[-1]["response"]["status"] == kinds[-1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [FEED], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"input": [{"type": "function_call_output", "call_id": [], "output": "x"}]}, "call_id"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "needs the texts name"),
        (
            {"input": [{"type": "function_call", "name": "x", "call_id": "1", "arguments": "{"}]},
            "not JSON",
        ),
        ({"input": [{"type": "item_reference", "id": "1"}]}, "item_reference"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_responses_that_can_not_be(talker: httpx.Client, fields: dict[str, Any], says: str):
    found = post(talker, "/v1/responses", 400, **{"input": QUESTION, **fields})
    assert says in found["error"]["message"]


def test_of_parallel_calls_the_first_alone_where_one_is_asked_for():
    from llmctl.serving.protocol import Tool
    from llmctl.serving.tools import Calls

    call = '<tool_call>{"name": "feed", "arguments": {}}</tool_call>'
    tools = [Tool(**tool) for tool in TOOLS]
    for parallel, count in ((True, 2), (False, 1)):
        rest, found = Calls(tools, parallel=parallel).found(f"Now. {call} {call}")
        assert (rest, len(found)) == ("Now.", count)


def test_models_tokens_health_and_metrics(talker: httpx.Client, decoder_workspace: Path):
    cards = talker.get("/v1/models").json()["data"]
    assert [(card["id"], card["chat"]) for card in cards] == [("talker", True), ("tiny-gpt", False)]
    assert talker.get("/v1/models/talker").json()["max_model_len"] == 128
    assert talker.get("/health").json() == {"status": "ok"}
    tokenizer = open_folder(decoder_workspace / "runs" / "talker" / "model").tokenizer
    found = post(talker, "/tokenize", prompt="The ship", model="talker", return_token_strs=True)
    assert found["tokens"] == [*tokenizer.layout.before, *tokenizer.encode("The ship")]
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    bare = post(talker, "/tokenize", prompt="The ship", add_special_tokens=False)
    assert post(talker, "/detokenize", tokens=bare["tokens"]) == {"prompt": "The ship"}
    assert post(talker, "/tokenize", messages=ASKED)["count"] > 10
    text = talker.get("/metrics").text
    for name in (
        "num_requests_running",
        "prompt_tokens_total",
        "time_to_first_token_seconds_count",
        "kv_cache_usage_perc",
        "prefix_cache_hits_total",
        "request_success_total",
    ):
        assert f"llmctl:{name}{{" in text, name
    page = talker.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_beginning_is_read_once(talker: httpx.Client):
    prompt = "The captain watches the stars. " * 6
    body = {"model": "tiny-gpt", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    first, second = (post(talker, "/v1/completions", **body) for _ in range(2))
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    salted = post(talker, "/v1/completions", **body, cache_salt="mine")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_classes(judges: httpx.Client, tiny_workspace: Path):
    texts = ["the ship sails", "hens lay eggs", "the tram stops"]
    found = post(judges, "/classify", input=texts)["data"]
    examples = [Example(text, None, None, "a test") for text in texts]
    answers = predict(Workspace(tiny_workspace), "subjects", examples)
    for entry, answer in zip(found, answers, strict=True):
        record = answer.record()
        assert entry["label"] == record["label"]
        shares = dict(zip(entry["labels"], entry["probs"], strict=True))
        assert shares == pytest.approx(record["probabilities"], abs=1e-5)
    error = post(judges, "/v1/completions", 400, prompt="a", model="subjects")["error"]
    assert "doesn't write text" in error["message"]
    assert error["param"] == "model"


def test_the_page_needs_nothing_from_elsewhere(talker: httpx.Client):
    page = talker.get("/").text
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)|@import|https?://|innerHTML", page)
    assert 'lang="en"' in page
    assert "prefers-color-scheme: dark" in page
    names = set(re.findall(r'\$\("(\w+)"\)', page))
    assert names <= set(re.findall(r'id="(\w+)"', page))
