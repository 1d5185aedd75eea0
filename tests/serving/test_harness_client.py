"""lm-evaluation-harness as a client: what it finds of a served model, and what it finds itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.formats.open import open_folder
from llmctl.inference.scoring import CausalScorer
from llmctl.tasks.suites.harness_model import HarnessModel
from tests.serving.test_server import post

REQUESTS = [
    ("The ship sails", " over the wide sea"),
    ("The ship sails ", "north"),
    ("", "Hens lay eggs"),
    ("Hens", " lay eggs"),
]


@pytest.fixture(scope="module")
def asked(decoder_workspace: Path) -> HarnessModel:
    folder = open_folder(decoder_workspace / "runs" / "tiny-gpt" / "model")
    assert folder.tokenizer.layout.before, "a text begins with a token of its own"
    scorer = CausalScorer(folder.causal_lm(), longest=folder.max_length)
    return HarnessModel("tiny-gpt", scorer, folder.tokenizer, decoder=None)


def test_tokens_and_texts_are_scored_as_by_the_harness(talker: httpx.Client, asked: HarnessModel):
    for context, continuation in REQUESTS:
        ((expected, _),) = asked.loglikelihood([(context, continuation)])
        shown, scored = asked.pair(context, continuation)
        text = context + continuation
        for prompt in ([*shown, *scored], text):
            body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1}
            found = post(talker, "/v1/completions", model="tiny-gpt", temperature=0, **body)
            log_probs = found["choices"][0]["logprobs"]["token_logprobs"]
            assert sum(log_probs[len(shown) : -1]) == pytest.approx(expected, abs=1e-4)
        bare = post(talker, "/tokenize", model="tiny-gpt", prompt=text)["tokens"]
        assert bare == [*shown, *scored]


def test_the_harness_as_a_client_finds_the_same(
    talker: httpx.Client, asked: HarnessModel, decoder_workspace: Path
):
    """With the convention of its own backend, which serving.md tells; and another without."""
    pytest.importorskip("lm_eval")
    for name in ("aiohttp", "tenacity", "requests"):  # of lm-eval's own extra
        pytest.importorskip(name)
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    folder = decoder_workspace / "runs" / "tiny-gpt" / "model"

    def client(**fields: Any) -> Any:
        address = f"{str(talker.base_url).rstrip('/')}/v1/completions"
        return LocalCompletionsAPI(model="tiny-gpt", base_url=address, **fields)

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number)
        for number, pair in enumerate(REQUESTS)
    ]
    own = {"tokenizer_backend": "huggingface", "tokenizer": str(folder), "add_bos_token": True}
    expected = asked.loglikelihood(REQUESTS)
    found = client(**own).loglikelihood(requests, disable_tqdm=True)
    for (ours, greedy), (theirs, is_greedy) in zip(expected, found, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)
        assert is_greedy == greedy
    bare = client(tokenizer_backend="remote").loglikelihood(requests, disable_tqdm=True)
    assert all(one != pytest.approx(other, abs=1e-2) for (one, _), (other, _) in
               zip(bare, found, strict=True))  # fmt: skip
