"""Texts of others on a terminal: a label may hold what moves the cursor, or ends a line."""

from __future__ import annotations

import re

NEW_LINE = "\n"

# Control characters, line and paragraph separators, and those that turn the writing's direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str, *, keep: str = "") -> str:
    """A text whose control characters are written out, but for those in ``keep``.

    >>> visible("a\\tb\\x1b[31m")
    'a\\\\tb\\\\x1b[31m'
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
