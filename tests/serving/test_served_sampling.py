"""A server chooses tokens as the model's folder says it, where a request doesn't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.serving.conftest import served


def test_what_a_folder_says_counts_unless_a_request_does(decoder_workspace: Path, tmp_path: Path):
    folder = tmp_path / "gpt"
    shutil.copytree(decoder_workspace / "runs" / "tiny-gpt" / "model", folder)
    path = folder / "generation_config.json"
    said = {"do_sample": True, "temperature": 9.0, "top_k": 1, "no_repeat_ngram_size": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))

    def asked(client: Any, **fields: Any) -> str:
        body = {"model": "gpt", "prompt": "the ship", "max_tokens": 12, "seed": 3, **fields}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    with served(decoder_workspace, str(folder)) as client:
        assert client.serving.models["gpt"].sampling == {
            "temperature": 9.0, "top_k": 1, "no_repeat_ngram_size": 2,
        }  # fmt: skip
        # The likeliest of all, so whatever the seed, and none comes twice in a row.
        found = asked(client)
        assert found == asked(client, seed=4) == asked(client, temperature=0)
        # 0 and -1 are no limit, and -1 says so where the folder has one.
        assert found != asked(client, top_k=-1)
        body = {"model": "gpt", "input": "a", "max_output_tokens": 1}
        answer = client.post("/v1/responses", json=body)
        if answer.status_code == 200:
            assert answer.json()["temperature"] == 9.0
    with served(decoder_workspace, str(folder), generation_config="none") as client:
        assert client.serving.models["gpt"].sampling == {}
        assert asked(client) != asked(client, seed=4)
        assert asked(client, temperature=0) != found  # which comes twice here
