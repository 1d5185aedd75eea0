"""Jinja templates of others, which are programs: in a sandbox, and with an end.

Jinja's own sandbox keeps a template from files and from Python; three loops in one another, or a
macro that calls itself twice, would still never end, and ``'a' * 10 ** 10`` would take all memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_ROUNDS = 1_000_000
"""Rounds of loops in one rendering: a few hundred messages take some thousands."""
A_CALL = 20
"""Rounds that take as long as a call."""
MAX_LENGTH_MADE = 10_000_000
"""Characters that a sum or a product may have, or entries."""
MAX_BITS = 1_000
"""Bits of a whole number: more is not reckoned with for a text, and soon takes long."""

_COUNTED = "llmctl_counted"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What a template is too deep or too long for is a mistake in it."""
    try:
        yield
    except RecursionError:
        raise jinja2.TemplateSyntaxError("it is nested too deep", 1) from None
    except (SyntaxError, ValueError, OverflowError) as error:
        raise jinja2.TemplateSyntaxError(f"it can't be compiled ({error})", 1) from None


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end: with an error where they take too long.

    ``begin`` is to be called before each rendering.
    """

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = MOST_ROUNDS

        # With the context, so that the rounds are counted while rendering, not while compiling.
        @jinja2.pass_context
        def counted(context: object, values: Iterable[Any]) -> Iterator[Any]:
            for value in values:
                self._count()
                yield value

        self.filters[_COUNTED] = counted

    def begin(self) -> None:
        """Allow a rendering its rounds."""
        self._left = MOST_ROUNDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Each loop goes through what counts its rounds."""
        with _told():
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(
                    loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno
                )
        return tree

    def compile(self, *args: Any, **options: Any) -> Any:
        """Compile as Jinja does, whose compiler and Python's have limits that it knows nothing
        of."""
        with _told():
            return super().compile(*args, **options)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self._count(A_CALL)
        return super().call(__context, __obj, *args, **kwargs)

    def _count(self, rounds: int = 1) -> None:
        self._left -= rounds
        if self._left < 0:
            raise SecurityError(f"it takes more than {MOST_ROUNDS:,} rounds, and may never end")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, a product or a power, unless it is huge."""
        numbers = [value for value in (left, right) if isinstance(value, int)]
        sizes = [len(value) for value in (left, right) if hasattr(value, "__len__")]
        if len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            size = bits[0] * abs(right) if operator == "**" else sum(bits)
            if size > MAX_BITS:
                raise SecurityError(
                    f"{operator} would give a number of more than {MAX_BITS:,} bits"
                )
        elif sizes and sum(sizes) * max([1, *numbers]) > MAX_LENGTH_MADE:
            raise SecurityError(f"{operator} would give more than {MAX_LENGTH_MADE:,} characters")
        return super().call_binop(context, operator, left, right)
