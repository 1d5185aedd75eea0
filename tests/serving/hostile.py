"""Requests that nobody in his right mind would send, as functions of a number."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx

ADDRESSES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/classify": {"input": "a"},
    "/rerank": {"query": "a", "documents": ["b"]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/explain": {"input": "a"},
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
    [{"type": "function", "function": {"name": "../x"}}],
    [{"type": "function", "function": {"name": "x", "parameters": {"$ref": "#/nowhere"}}}],
    {"include_usage": "x"},
    {"type": "integer", "multipleOf": 99999999}, {"type": "string", "minLength": 10**9},
    {"allOf": [{"type": "integer", "multipleOf": k} for k in (997, 991, 983)]},
    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 2}}, "$ref": "#/$defs/a"},
    {"$ref": "#"}, {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
    {"type": "object", "properties": {f"p{n}": {"pattern": "^[a-z]{1,500}$"} for n in range(300)}},
    "((a{100}){100}){100}", ".*a.{300}", "(x+x+)+y", "start: a\na: a a | a a a |\n",
    "start: T0\nT0: T1 T1\nT1: T0\n", ["\x00"], ["a"] * 100, [""], "{{ self.__init__ }}",
    [{"role": "user", "content": "a"}] * 3000, [{"role": "tool", "content": "a"}],
    [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
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
    if kind < 0.36:
        return "POST", address, mangled(dice, json.dumps(ADDRESSES[address]).encode()), json_type
    body: Any = dict(ADDRESSES[address])
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        body[dice.choice(FIELDS)] = dice.choice(VALUES)
    if dice.random() < 0.1:
        body.pop(next(iter(body)))
    if dice.random() < 0.05:
        body = [body]
    return "POST", address, json.dumps(body).encode(), json_type


def mangled(dice: random.Random, body: bytes) -> bytes:
    """A body with some of its bytes others, gone or twice."""
    data = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) + 1)
        data[place : place + dice.randint(0, 3)] = dice.choice(
            [b"", b"\xff", b'"', b"}", b"[", b"\x00", b",", b"1e999", b"null", b"\\u0000"]
        )
    return bytes(data)


def wire(number: int) -> tuple[list[bytes], float]:
    """What is sent as bytes, in pieces, and for how long an answer is waited for; 0: the client
    goes away at once."""
    dice = random.Random(number)
    address = dice.choice(list(ADDRESSES))
    body = json.dumps(ADDRESSES[address]).encode()
    head = f"POST {address} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n"
    sent: list[list[bytes]] = [
        [whole[: dice.randrange(len(whole))]],
        [whole[n : n + 7] for n in range(0, len(whole), 7)],
        [mangled(dice, whole)],
        [head.encode() + b"Content-Length: -1\r\n\r\n"],
        [head.encode() + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n{}"],
        [head.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
        [chunked + b"zz\r\n{}\r\n0\r\n\r\n"],
        [chunked + b"fffffffff\r\n{}"],
        [chunked, b"2\r\n{}\r\n", b"0\r\n\r\n"],
        [b"GET / HTTP/9.9\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00"],
        [b"GET /" + b"a" * 70_000],
        [b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 70_000],
        [b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
        [b"GET http://example.org/v1/models HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"\r\n" * 100],
        [whole * 3],
    ]
    return dice.choice(sent), dice.choice([0, 0, 0.05])


def refusal(answer: httpx.Response, method: str) -> str:
    """What is wrong with an answer to a hostile request; empty: nothing."""
    if answer.status_code >= 500 or "Traceback" in answer.text:
        return f"{answer.status_code} {answer.text[:500]}"
    if answer.status_code < 400 or method == "HEAD":
        return ""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} without an error: {answer.text[:200]}"
    right = set(error) == {"message", "type", "param", "code"} and error["message"]
    return "" if right else f"not OpenAI's shape: {error}"
