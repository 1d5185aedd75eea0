"""Why a text has its class, and the document of the addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.data.tables.labelled import Example
from llmctl.stages.explain.words import explain, open_explainer
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.workspace.artefacts import Workspace
from tests.serving.test_server import post

TEXT = "the ship sails to the barn"


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients"])
def test_words_are_weighed_as_llmctl_explain_does(
    judges: httpx.Client, tiny_workspace: Path, method: str
):
    found = post(judges, "/explain", input=TEXT, method=method, answer="farm")
    asked = ExplainedAnswer(answer="farm")
    explainer = open_explainer(Workspace(tiny_workspace), "subjects", asked, device="cpu")
    example = Example(TEXT, None, None, "a test")
    texts = [explainer.explained(example)]
    (expected,) = (one.record() for one in explain(texts, [method]))
    assert found["answer"] == expected["answer"] == "farm"
    assert [word["text"] for word in found["words"]] == TEXT.split()
    weights = [word["weights"][method] for word in expected["words"]]
    assert [word["weight"] for word in found["words"]] == pytest.approx(weights, abs=1e-5)
    faithfulness = expected["methods"][method]["faithfulness"]
    assert found["faithfulness"]["faithfulness"] == pytest.approx(faithfulness, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input": ""}, "input"),
        ({"input": "a " * 3000}, "input"),
        ({"input": TEXT, "method": "occlusio"}, "did you mean"),
        ({"input": TEXT, "answer": "moon"}, "there is no class 'moon'"),
        ({"input": [TEXT]}, "input"),
    ],
)
def test_what_can_not_be_explained(judges: httpx.Client, fields: dict[str, Any], says: str):
    assert says in post(judges, "/explain", 400, **fields)["error"]["message"]


def test_the_document_of_the_addresses(talker: httpx.Client):
    """It names every address that answers, and what it says of a field is what is done."""
    document = talker.get("/openapi.json").json()
    for address, methods in document["paths"].items():
        for method in methods:
            answer = talker.request(method, address.replace("{name}", "talker"))
            assert answer.status_code in (200, 400), (method, address, answer.text)
    schemas = document["components"]["schemas"]
    chat = schemas["ChatBody"]
    assert chat["additionalProperties"] is False
    assert chat["required"] == ["messages"]
    assert {"temperature", "top_k", "response_format", "tools"} <= set(chat["properties"])
    told = post(talker, "/v1/completions", 400, prompt="a", store=0)["error"]
    assert told["message"] == "store: has to be true or false"
