"""``/v1/embeddings``, ``/classify``, ``/rerank``: what is said of whole texts."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.data.tables.encoded import encode_examples
from llmctl.data.tables.labelled import Example
from llmctl.errors import LlmctlError
from llmctl.inference.embedding import narrowed
from llmctl.serving import sampling
from llmctl.serving.disconnects import until_gone
from llmctl.serving.errors import HTTPError
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import ClassifyBody, EmbeddingBody, RerankBody, parsed
from llmctl.serving.state import Serving, now, read_body
from llmctl.tasks.embed.texts import single

Vectors = NDArray[np.float32]


async def embeddings(asked: Asked) -> Response:
    """Vectors of texts."""
    serving: Serving = asked.app.state.serving
    body = parsed(EmbeddingBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "embedder", "makes no vectors of texts")
    assert served.embedder is not None
    texts = _texts_of(serving, served, body)
    width, full = body.dimensions, served.embedder.width
    if width is not None and not 1 <= width <= full:
        raise HTTPError(f"dimensions: has to be from 1 to {full}", param="dimensions")
    vectors, tokens = await _vectors(serving, asked, served, texts)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if body.encoding_format == "base64"
            else vector.tolist(),
        }
        for index, vector in enumerate(narrowed(vectors, width))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse(
        {"object": "list", "data": data, "model": served.name, "created": now(), "usage": usage}
    )


def _texts_of(serving: Serving, served: ServedModel, body: EmbeddingBody) -> list[str]:
    given: Any = body.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 1 <= len(given) <= serving.config.max_inputs:
        raise HTTPError(
            f"input: has to be from 1 to {serving.config.max_inputs} texts", param="input"
        )
    texts = []
    for one in given:
        if isinstance(one, list):
            one = served.tokenizer.decode(sampling.checked_ids(served, one, "input"))
        texts.append(sampling.checked_text(str(one), "input"))
    return texts


async def _vectors(
    serving: Serving, asked: Asked, served: ServedModel, texts: Sequence[str]
) -> tuple[Vectors, int]:
    """The vectors of texts, and the tokens that these have."""
    embedder = served.embedder
    assert embedder is not None
    examples = single(texts)

    def compute() -> tuple[Vectors, int]:
        folder = served.opened.folder
        tokens = sum(
            len(one.ids) for one in encode_examples(folder.tokenizer, examples, folder.max_length)
        )
        return embedder.vectors(examples), tokens

    try:
        with serving.places(1):
            return await until_gone(asked, serving.worker.compute(compute))
    except LlmctlError as error:
        raise HTTPError(f"input: {error}", param="input") from None


def _classified(index: int, record: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """An answer in vLLM's shape. What a classifier of several labels gives a text stands in
    ``predicted_labels``, and ``label`` is the likeliest."""
    shares = record["probabilities"]
    several = {"predicted_labels": record["labels"]} if "labels" in record else {}
    return {
        "index": index,
        "label": record["label"] if "label" in record else next(iter(shares)),
        **several,
        "probs": [shares[label] for label in labels],
        "labels": labels,
        "num_classes": len(labels),
    }


async def classify(asked: Asked) -> Response:
    """Classes of texts, with probabilities."""
    serving: Serving = asked.app.state.serving
    body = parsed(ClassifyBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "predictor", "is no classifier")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(texts) <= serving.config.max_inputs:
        raise HTTPError(
            f"input: has to be from 1 to {serving.config.max_inputs} texts", param="input"
        )
    for text in texts:
        sampling.checked_text(text, "input")
    predictor = served.predictor
    assert predictor is not None
    labels = served.opened.folder.labels or []

    def compute() -> list[dict[str, Any]]:
        return [answer.record() for answer in predictor.answers(predictor.alone(texts))]

    try:
        with serving.places(1):
            records = await until_gone(asked, serving.worker.compute(compute))
    except LlmctlError as error:
        raise HTTPError(f"input: {error}", param="input") from None
    data = [_classified(index, record, labels) for index, record in enumerate(records)]
    return JSONResponse(
        {
            "id": f"classify-{secrets.token_hex(12)}",
            "object": "list",
            "created": now(),
            "model": served.name,
            "data": data,
        }
    )


async def rerank(asked: Asked) -> Response:
    """Documents by how near they are to a query: by the cosine of an embedder's vectors, or by the
    second class of a classifier of pairs."""
    serving: Serving = asked.app.state.serving
    body = parsed(RerankBody, await read_body(asked, serving.config))
    count = len(body.documents)
    if not 1 <= count <= serving.config.max_inputs:
        raise HTTPError(
            f"documents: has to be from 1 to {serving.config.max_inputs} texts", param="documents"
        )
    if body.top_n is not None and body.top_n < 1:
        raise HTTPError("top_n: has to be 1 or more", param="top_n")
    texts = [sampling.checked_text(text, "documents") for text in [body.query, *body.documents]]
    model = None if body.model is None else serving.model(body.model)
    if model is not None and model.predictor is not None:
        scores, tokens = await _judged(serving, asked, model, texts)
    else:
        model = serving.kind_of(body.model, "embedder", "makes no vectors of texts")
        vectors, tokens = await _vectors(serving, asked, model, texts)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        scores = (vectors[1:] @ vectors[0] / (lengths[1:] * lengths[0])).tolist()
    order = sorted(range(count), key=lambda place: -scores[place])[: body.top_n]
    results = [
        {
            "index": place,
            "relevance_score": scores[place],
            **({"document": {"text": body.documents[place]}} if body.return_documents else {}),
        }
        for place in order
    ]
    return JSONResponse(
        {
            "id": f"rerank-{secrets.token_hex(12)}",
            "model": model.name,
            "usage": {"total_tokens": tokens},
            "results": results,
        }
    )


async def _judged(
    serving: Serving, asked: Asked, served: ServedModel, texts: Sequence[str]
) -> tuple[list[float], int]:
    """What a classifier of pairs gives the query with each document: its second class's share."""
    predictor, folder = served.predictor, served.opened.folder
    assert predictor is not None
    labels = folder.labels or []
    if len(labels) != 2:
        raise HTTPError(
            f"{served.name} has {len(labels)} classes; a reranker has two, the second for pairs "
            "that belong together",
            param="model",
        )
    pairs = [Example(texts[0], text, None, "a document") for text in texts[1:]]

    def compute() -> tuple[list[float], int]:
        encoded = encode_examples(folder.tokenizer, pairs, folder.max_length)
        found = [answer.record()["probabilities"][labels[1]] for answer in predictor.answers(pairs)]
        return found, sum(len(one.ids) for one in encoded)

    try:
        with serving.places(1):
            return await until_gone(asked, serving.worker.compute(compute))
    except LlmctlError as error:
        raise HTTPError(f"documents: {error}", param="documents") from None
