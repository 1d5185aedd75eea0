"""New tokens as text, as far as it is certain: whole characters, and no beginning of a stop text.

Tokens are bytes: a character may take several, and a stop text may begin in one and end in
another. Writing stops at the first character with which a stop text is complete, so where it stops
does not depend on how the text is cut into tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llmctl.tokenizers import Tokenizer


class StreamingDetokenizer:
    """The text of one row's new tokens."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        """``prompt``: what the new tokens follow, as a space may be written or not for it."""
        self._bytes = tokenizer.decode_bytes
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        """May be the beginning of a stop text."""
        self.text = ""
        """What is certain."""
        self.stopped = False
        self._window = self._tail(prompt)
        """Enough to tell what the next token adds."""

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """From the last token that has text on."""
        begin = len(ids) - 1
        while begin > 0 and not self._bytes(ids[begin:]):
            begin -= 1
        return list(ids[max(0, begin) :])

    def push(self, *tokens: int) -> str:
        """Add tokens; returns the text that has become certain."""
        before = len(self._bytes(self._window))
        self._window += tokens
        added = self._bytes(self._window)[before:]
        if added:
            self._window = self._tail(self._window)
        return self._add(self._decoder.decode(added))

    def close(self) -> str:
        """No token follows; returns the text that was held back."""
        text = self._add(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text += self._pending
            self.text += self._pending
            self._pending = ""
        return text

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        begin = len(self._pending)
        text = self._pending + text
        for end in range(begin + 1, len(text) + 1):
            complete = [stop for stop in self._stop if text.endswith(stop, 0, end)]
            if complete:
                self.stopped = True
                certain = text[: end - max(map(len, complete))]
                self._pending = ""
                break
        else:
            held = self._held(text)
            certain, self._pending = text[: len(text) - held], text[len(text) - held :]
        self.text += certain
        return certain

    def _held(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stop):
                return length
        return 0
