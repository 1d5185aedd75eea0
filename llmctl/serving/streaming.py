"""Server-sent events: one JSON document each, and what goes wrong on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from llmctl.serving.errors import HTTPError
from llmctl.serving.state import EventLines, encoded

DONE = "data: [DONE]\n\n"


def data_line(document: Any) -> str:
    """An event without a name."""
    return f"data: {encoded(document)}\n\n"


async def streamed(lines: EventLines, *, done: bool = True) -> Response:
    """The events as a response; what goes wrong before the first is an error of its own.

    done: whether ``[DONE]`` ends them.
    """
    first = await anext(lines, None)

    async def body() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield first
                async for line in lines:
                    yield line
        except HTTPError as error:
            yield data_line(error.document())
        finally:
            await lines.aclose()  # type: ignore[attr-defined]
        if done:
            yield DONE

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)
