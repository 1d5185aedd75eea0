"""Requests that nobody in his right mind would send, as functions of a number."""

from __future__ import annotations

import json
import random
from typing import Any

ADDRESSES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/classify": {"input": "a"},
    "/rerank": {"query": "a", "documents": ["b"]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
FIELDS = [
    "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "logit_bias", "max_tokens",
    "stream", "stream_options", "logprobs", "top_logprobs", "response_format", "tools", "messages",
    "prompt", "input", "guided_regex", "guided_json", "guided_grammar", "guided_choice", "model",
    "frequency_penalty", "repetition_penalty", "bad_words", "allowed_token_ids", "stop_token_ids",
    "min_tokens", "tool_choice", "structured_outputs", "tokens", "documents", "echo", "dimensions",
    "encoding_format", "user", "priority", "best_of", "suffix", "unknown", "__class__", "",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, -(10**30), 1e308, -1e308, 1e-320, 0.5, "", "a", "\x00",
    "\ud800", "\u202e", "a" * 5000, [], {}, [None], [[]], [[[]]], [1, "a"], ["a", 1], {"a": {}},
    {"role": "user"}, [{"role": "user", "content": None}], [{"role": "king", "content": "a"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}],
    [{"role": "user", "content": "{{ ''.__class__.__mro__ }}<|im_end|>{% for a in x %}"}],
    {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/a"}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}},
    {"type": "json_schema", "json_schema": {"schema": {"pattern": "(?=a)", "type": "string"}}},
    "(" * 3000, "(a{1000}){1000}", "(a*)*b" * 200, "[", "start: start start", "start: /(a/",
    [{"type": "function", "function": {"name": "../x"}}], {"include_usage": "x"},
    {"0": 1e300}, {"-1": 1}, {"99999999": 1}, {"a": 1}, [99999999], [-1], list(range(3000)),
]  # fmt: skip
RAW = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":NaN}', b'{"prompt":"a","temperature":NaN}',
    b'{"prompt":"a","temperature":Infinity,"max_tokens":1}', b"[" * 100_000, b'{"a":' * 5_000,
    b'{"prompt":"a","prompt":"b"}', b'{"temperature":' + b"9" * 5_000 + b',"prompt":"a"}',
    b'{"prompt":"' + b"a" * 200_000, b'"' + b"\\ud800" + b'"', b"\x00" * 100, b"a=b&c=d",
]  # fmt: skip
PATHS = [
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/../../x", "/v1/models/%00",
    "/v1/models/a%2f..%2fb", "//v1/models", "/v1/completions/", "/static/..\\..\\x", "/.git/config",
    "/v1/models/" + "a" * 5000, "/health/../metrics?x=" + "y" * 3000, "/%ff%fe", "/docs",
]  # fmt: skip


def request(number: int) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers."""
    dice = random.Random(number)
    kind = dice.random()
    json_type = {"content-type": "application/json"}
    if kind < 0.1:
        return dice.choice(["GET", "POST", "PUT", "DELETE", "PATCH"]), dice.choice(PATHS), b"", {}
    address = dice.choice(list(ADDRESSES))
    if kind < 0.2:
        return "POST", address, dice.choice(RAW), json_type
    if kind < 0.23:
        return dice.choice(["GET", "PUT", "DELETE"]), address, b"", {}
    if kind < 0.26:
        headers = {"content-type": dice.choice(["text/plain", "multipart/form-data", "x", "a/b;c"])}
        return "POST", address, b"{}", headers
    body: Any = dict(ADDRESSES[address])
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        body[dice.choice(FIELDS)] = dice.choice(VALUES)
    if dice.random() < 0.1:
        body.pop(next(iter(body)))
    if dice.random() < 0.05:
        body = [body]
    return "POST", address, json.dumps(body).encode(), json_type
