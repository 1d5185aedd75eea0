"""``/explain``: which words decided what a classifier answered, and how far that can be believed.

It is computed beside the thread that writes texts, one text after another: gradients of a long one
take seconds, for which streams would stand still.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.faithfulness import Curves
from llmctl.data.tables.labelled import Example
from llmctl.errors import LlmctlError, did_you_mean
from llmctl.serving import sampling
from llmctl.serving.disconnects import until_gone
from llmctl.serving.errors import HTTPError
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import ExplainBody, parsed
from llmctl.serving.state import Serving, now, read_body
from llmctl.tasks.explanation import ExplainedAnswer

DEFAULT_METHOD = "occlusion"
"""A pass a word; gradients along a way take several hundred."""


async def explain(asked: Asked) -> Response:
    """The words of a text with their weights: positive is for the answer, negative against it."""
    serving: Serving = asked.app.state.serving
    body = parsed(ExplainBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "predictor", "is no classifier")
    trained = served.opened.labelled
    if trained is not None and trained.text_pair:
        raise HTTPError(
            f"{served.name} judges pairs of texts; llmctl explain --text-pair tells what decides "
            "there",
            param="model",
        )
    sampling.checked_text(body.input, "input")
    name = DEFAULT_METHOD if body.method is None else body.method
    if name not in ATTRIBUTION_METHODS:
        raise HTTPError(
            f"method: there is no {name[:50]!r}{did_you_mean(name[:50], ATTRIBUTION_METHODS)}; "
            f"choose from {', '.join(ATTRIBUTION_METHODS)}",
            param="method",
        )
    labels = served.opened.folder.labels or []
    if body.answer is not None and body.answer not in labels:
        raise HTTPError(
            f"answer: there is no class {body.answer[:50]!r}; there are {', '.join(labels[:20])}",
            param="answer",
        )
    with serving.places(1):
        document = await until_gone(asked, _beside(serving, served, body, name))
    return JSONResponse({**document, "created": now(), "model": served.name})


async def _beside(
    serving: Serving, served: ServedModel, body: ExplainBody, name: str
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(serving.explaining, _explained, served, body, name)


def _explained(served: ServedModel, body: ExplainBody, name: str) -> dict[str, Any]:
    """A text's words with their weights, and what these are worth."""
    try:
        explainer = served.explainer
        explainer.asked = ExplainedAnswer(answer=body.answer)
        text = explainer.explained(Example(body.input, None, None, "the text"))
        weights_W = ATTRIBUTION_METHODS[name]().weights(text)
        faithfulness = Curves(text).of(weights_W)
    except LlmctlError as error:
        raise HTTPError(f"input: {error}", param="input") from None
    words = [
        {"text": text.text[begin:end], "start": begin, "end": end, "weight": float(weight)}
        for (begin, end), weight in zip(text.words, weights_W, strict=True)
    ]
    return {
        "object": "explanation",
        "answer": text.answer,
        **text.facts,
        "method": name,
        "words": words,
        "faithfulness": faithfulness.record(),
    }
