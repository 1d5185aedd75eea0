"""A client that goes away is no longer worked for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request as Asked

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


async def until_gone(asked: Asked, work: Coroutine[Any, Any, T]) -> T:
    """What some work comes to. It is cancelled, and ClientGone raised, if the client goes away."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(asked))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _gone(asked: Asked) -> None:
    while (await asked.receive())["type"] != "http.disconnect":
        pass
