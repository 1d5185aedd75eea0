"""Beginnings of texts whose keys and values are kept, for other texts that begin so too.

A kept block is known by a chained hash: that of the block before it and of its own tokens, so that
equal hashes mean equal texts from the start on. It is counted how many texts and later blocks stand
on each; of those that nothing stands on the one that was used longest ago goes first. Blocks are
copies, apart from the rows of texts that are being written, and have a bound in bytes of their own:
where nothing can go for a new one, the rest of its text isn't kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llmctl.models.layers.sequences import KV_BLOCK, SequenceCache


@dataclass
class PrefixBlock:
    """Keys and values of ``KV_BLOCK`` tokens behind certain others."""

    hash: bytes
    parent: PrefixBlock | None
    ids: tuple[int, ...]
    keys_LKSH: Tensor
    values_LKSH: Tensor
    references: int = 0
    """Texts that are being written and kept blocks that stand on it."""


class PrefixCache:
    """The blocks that are kept."""

    def __init__(self, block_bytes: int, most_bytes: int) -> None:
        """block_bytes: what keys and values of ``KV_BLOCK`` tokens take; of all at most
        ``most_bytes``."""
        self._blocks: OrderedDict[bytes, PrefixBlock] = OrderedDict()
        """The one used longest ago first."""
        self._block_bytes, self._most = block_bytes, most_bytes // block_bytes
        self.evictions = 0
        """Blocks that were let go for others."""

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return KV_BLOCK * len(self._blocks)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return self._block_bytes * len(self._blocks)

    @property
    def most_tokens(self) -> int:
        """Tokens that there is room for."""
        return KV_BLOCK * self._most

    def take(self, ids: Sequence[int], salt: str = "") -> list[PrefixBlock]:
        """The blocks that a text begins with; each is held until it is given to ``release``."""
        found: list[PrefixBlock] = []
        parent = None
        for begin in range(0, len(ids) // KV_BLOCK * KV_BLOCK, KV_BLOCK):
            part = tuple(ids[begin : begin + KV_BLOCK])
            block = self._blocks.get(_hash(parent, part, salt))
            if block is None or block.ids != part or block.parent is not parent:
                break
            found.append(block)
            parent = block
        self._hold(found)
        return found

    def keep(
        self, ids: Sequence[int], cache: SequenceCache, held: list[PrefixBlock], salt: str = ""
    ) -> None:
        """Keep the whole blocks of a text that was read, behind those that it holds, and hold them
        for it too; as many as there is room for."""
        parent = held[-1] if held else None
        for begin in range(KV_BLOCK * len(held), len(ids) // KV_BLOCK * KV_BLOCK, KV_BLOCK):
            part = tuple(ids[begin : begin + KV_BLOCK])
            hash = _hash(parent, part, salt)
            block = self._blocks.get(hash)
            if block is None:
                if len(self) >= self._most and not self.evict(KV_BLOCK):
                    break
                block = PrefixBlock(hash, parent, part, *cache.slots(begin, begin + KV_BLOCK))
                self._blocks[hash] = block
                if parent is not None:
                    parent.references += 1
            elif block.ids != part or block.parent is not parent:
                break
            block.references += 1
            held.append(block)
            parent = block
        self._touch(held)

    def release(self, blocks: Sequence[PrefixBlock]) -> None:
        """A text no longer stands on these."""
        for block in blocks:
            block.references -= 1
        self._touch(blocks)

    def evict(self, tokens: int) -> int:
        """Let blocks go that nothing stands on, until so many tokens are free or none is left;
        returns how many became free."""
        freed = 0
        while freed < tokens:
            block = next((b for b in self._blocks.values() if not b.references), None)
            if block is None:
                break
            del self._blocks[block.hash]
            if block.parent is not None:
                block.parent.references -= 1
            freed += KV_BLOCK
            self.evictions += 1
        return freed

    def clear(self) -> None:
        """Let all go that nothing stands on."""
        self.evict(self.tokens)

    def _hold(self, blocks: Sequence[PrefixBlock]) -> None:
        for block in blocks:
            block.references += 1
        self._touch(blocks)

    def _touch(self, blocks: Sequence[PrefixBlock]) -> None:
        """The end of a text counts as used before its beginning, and goes first."""
        for block in reversed(blocks):
            self._blocks.move_to_end(block.hash)


def _hash(parent: PrefixBlock | None, ids: tuple[int, ...], salt: str) -> bytes:
    before = parent.hash if parent is not None else salt.encode("utf-8", "surrogatepass")
    own = np.asarray(ids, dtype=np.int64).tobytes()  # of one length, so that none is ambiguous
    return hashlib.blake2b(own + before, digest_size=16).digest()
