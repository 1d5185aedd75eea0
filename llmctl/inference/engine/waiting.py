"""Texts that wait for their turn: clients take turns, and each client's own keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue for each client, served one after another."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[T]:
        for queue in self._clients.values():
            yield from queue

    def put(self, client: str, item: T) -> None:
        """Add something behind the client's others."""
        self._clients.setdefault(client, deque()).append(item)

    def put_back(self, client: str, item: T) -> None:
        """Return something that was taken: it is the next."""
        self._clients.setdefault(client, deque()).appendleft(item)
        self._clients.move_to_end(client, last=False)

    def peek(self) -> T | None:
        """What is next."""
        return next(iter(self._clients.values()))[0] if self._clients else None

    def take(self) -> T:
        """Take what is next; its client then waits until all others had a turn."""
        client, queue = next(iter(self._clients.items()))
        item = queue.popleft()
        if queue:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]
        return item

    def remove(self, item: T) -> None:
        """Take something out, wherever it stands."""
        for client, queue in list(self._clients.items()):
            if any(other is item for other in queue):
                queue.remove(item)
                if not queue:
                    del self._clients[client]
                return
