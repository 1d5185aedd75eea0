"""``/tokenize`` and ``/detokenize``: texts as a model reads them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.serving import sampling
from llmctl.serving.chat import encoded_chat
from llmctl.serving.errors import HTTPError
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import DetokenizeBody, TokenizeBody, parsed
from llmctl.serving.state import Serving, read_body


async def tokenize(asked: Asked) -> Response:
    """Cut a text or a conversation into tokens."""
    serving: Serving = asked.app.state.serving
    body = parsed(TokenizeBody, await read_body(asked, serving.config))
    served = serving.model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise HTTPError("give either prompt or messages", param="prompt")
    ids = await asyncio.to_thread(_ids, served, body)
    document: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": [served.tokenizer.id_to_token(token) for token in ids]
        if body.return_token_strs
        else None,
    }
    return JSONResponse(document)


def _ids(served: ServedModel, body: TokenizeBody) -> list[int]:
    if body.messages is not None:
        return encoded_chat(served, body.messages)
    text = sampling.checked_text(body.prompt or "", "prompt")
    layout = served.tokenizer.layout
    ids = served.tokenizer.encode(text)
    return ids if body.add_special_tokens is False else [*layout.before, *ids, *layout.after]


async def detokenize(asked: Asked) -> Response:
    """Make a text of tokens."""
    serving: Serving = asked.app.state.serving
    body = parsed(DetokenizeBody, await read_body(asked, serving.config))
    served = serving.model(body.model)
    ids = sampling.checked_ids(served, body.tokens, "tokens")
    return JSONResponse({"prompt": served.tokenizer.decode(ids, skip_special=False)})


async def tokenizer_info(asked: Asked) -> Response:
    """What clients that cut texts into tokens themselves want to know."""
    serving: Serving = asked.app.state.serving
    served = serving.model(asked.query_params.get("model"))
    tokenizer = served.tokenizer
    special = {
        f"{role}_token": tokenizer.id_to_token(number)
        for role, number in tokenizer.special.items()
        if role in ("bos", "eos", "pad", "unk")
    }
    return JSONResponse(
        {
            "tokenizer_class": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": served.context,
            "chat_template": tokenizer.chat_template,
            **special,
        }
    )
