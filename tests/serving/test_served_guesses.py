"""Tokens that a server guesses ahead, and beginnings that it keeps: answers are the same, and told
in the metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.errors import UsageError
from llmctl.serving.config import ServeConfig
from llmctl.serving.server import open_serving
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl, one_sentence
from tests.serving.conftest import served
from tests.serving.test_server import post

ASKED = [
    {"prompt": "The ship sails over the wide sea. The ship sails", "temperature": 0},
    {"prompt": ["Hens", "Cows"], "temperature": 0.8, "seed": 3, "n": 2},
    {"prompt": "The ship", "temperature": 0, "stop": ["e"], "logit_bias": {"20": 2.0}},
]


def answers(client: httpx.Client) -> list[Any]:
    found = []
    for body in ASKED:
        told = post(client, "/v1/completions", model="tiny-gpt", max_tokens=24, **body)
        found.append([(one["text"], one["finish_reason"]) for one in told["choices"]])
    return found


def metric(client: httpx.Client, name: str) -> float:
    pattern = rf"^llmctl:{name}{{model_name=\"tiny-gpt\"[^}}]*}} (\S+)$"
    return sum(float(value) for value in re.findall(pattern, client.get("/metrics").text, re.M))


def test_guesses_and_kept_beginnings_change_no_answer(
    talker: httpx.Client, decoder_workspace: Path
):
    expected = answers(talker)
    assert metric(talker, "spec_decode_num_drafts_total") == 0
    with served(decoder_workspace, "tiny-gpt", prompt_lookup=3, prefix_cache="20kB") as client:
        assert answers(client) == answers(client) == expected
        assert metric(client, "spec_decode_num_accepted_tokens_total") > 0
        assert metric(client, "prefix_cache_max_bytes") == 20_000
        assert metric(client, "prefix_cache_bytes") <= 20_000
    with served(decoder_workspace, "tiny-gpt", draft="tiny-gpt", draft_tokens=3) as client:
        # What is drawn with a draft is another draw.
        assert [told for n, told in enumerate(answers(client)) if n != 1] == [
            told for n, told in enumerate(expected) if n != 1
        ]
        drafted = metric(client, "spec_decode_num_draft_tokens_total")
        accepted = metric(client, "spec_decode_num_accepted_tokens_total")
        assert drafted >= accepted > 10
        assert metric(client, "spec_decode_num_accepted_tokens_per_pos_total") == accepted


def test_drafts_and_sizes_that_can_not_be(decoder_workspace: Path, tiny_workspace: Path):
    place = Workspace(decoder_workspace)
    other = str(tiny_workspace / "runs" / "tiny" / "model")
    for draft, fields, says in (
        (other, {}, "another vocabulary than tiny-gpt"),
        ("tiny-gpt", {"prompt_lookup": 2}, "leave one out"),
        (None, {"draft_tokens": 3}, "--draft-tokens 3: nothing guesses ahead"),
    ):
        with pytest.raises(UsageError, match=says):
            open_serving(place, ["tiny-gpt"], ServeConfig(**fields), draft=draft)
    words = ["serve", "--from", "tiny-gpt", "--prefix-cache", "lots"]
    said = one_sentence(llmctl(decoder_workspace, *words, code=2))
    assert "prefix_cache" in said
    assert "'lots' is not a size" in said
