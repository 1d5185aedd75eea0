"""Jinja templates of others, which are programs: in a sandbox, and with an end.

Jinja's own sandbox keeps a template from files and from Python; three loops in one another, or a
macro that calls itself twice, would still never end, and ``'a' * 10 ** 10`` would take all memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

MOST_ROUNDS = 1_000_000
"""Rounds of loops and calls in one rendering: a few hundred messages take some thousands."""
LONGEST = 10_000_000
"""Characters that a sum or a product may have, entries, or bits of a number."""

_COUNTED = "llmctl_counted"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end: with an error where they take too long.

    ``begin`` is to be called before each rendering.
    """

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = MOST_ROUNDS
        self.filters[_COUNTED] = jinja2.pass_context(self._counted)

    def begin(self) -> None:
        """Allow a rendering its rounds."""
        self._left = MOST_ROUNDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Each loop goes through what counts its rounds."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return tree

    def _counted(self, context: object, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._count()
            yield value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self._count()
        return super().call(__context, __obj, *args, **kwargs)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"it takes more than {MOST_ROUNDS:,} rounds, and may never end")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, a product or a power, unless it is huge."""
        sizes = [_size(value) for value in (left, right)]
        if operator == "+":
            size = sum(sizes)
        elif operator == "**":
            size = sizes[0] * abs(right) if isinstance(right, int) else 0
        elif isinstance(left, int) and isinstance(right, int):
            size = sum(sizes)
        else:  # a text or a list, and how often
            times = [value for value in (left, right) if isinstance(value, int)]
            size = max(sizes) * max([1, *times])
        if size > LONGEST:
            raise SecurityError(f"{operator} would give more than {LONGEST:,} characters")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    """Characters of a text, entries of a list, bits of a whole number."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if hasattr(value, "__len__") else 0
