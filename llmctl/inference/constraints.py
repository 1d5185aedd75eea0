"""What a text may be like: JSON of a schema, a regular expression, one of some choices, a grammar.

Before each token llguidance says which may come, by walking an automaton of the grammar along the
vocabulary's bytes; a text ends where the grammar does. Grammars are looked at before anything is
written, and one that can't be used is an error of whoever gave it.

V vocabulary.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llmctl.errors import InputError, UsageError
from llmctl.tokenizers import Tokenizer

FORMS = ("schema", "regex", "choice", "grammar")
"""What commands and configurations call what a text may be like; see ``form_of``."""

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

MOST_GRAMMAR = 200_000
"""Characters of a schema, an expression or a grammar."""
LEXER_FUEL, STEP_FUEL, LEXER_STATES = 200_000, 100_000, 50_000
"""What llguidance may spend on a grammar at its start and at a token: half of its own bounds and
less, with which an expression such as ``(a{1000}){1000}`` holds every other text up for seconds; a
multiple of 997 below 99,999 needs more than 20,000 at a token."""
MOST_MULTIPLE = 50_000
"""The largest ``multipleOf`` of a schema, in units of its last digit: its automaton has a state for
each remainder, which llguidance counts nowhere (1,000,003 takes 24 s and 300 MB)."""


class GrammarError(InputError):
    """A schema, an expression or a grammar that can't be used."""


class Grammars:
    """Makes the constraints of texts in one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        """ends: the tokens that end a text. Raises UsageError where llguidance isn't installed."""
        try:
            import llguidance
        except ImportError:
            raise UsageError(
                "constrained output needs llguidance, which is not installed: pip install "
                "'llmctl[constrained]'"
            ) from None
        self._ends = ends
        if not ends:
            raise UsageError(
                "the model's tokenizer has no token that ends a text, which constrained output "
                "needs"
            )
        vocabulary = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, ends))
        self._vocabulary = llguidance.LLTokenizer(vocabulary, eos_token=sorted(ends))
        self._size = tokenizer.vocab_size

    def constraint(self, kind: GrammarKind, value: Any = None) -> Callable[[], GrammarConstraint]:
        """What makes a constraint for a text. value: the schema (a table or JSON), the expression,
        the choices or the grammar in Lark's notation. Raises GrammarError for one that can't be
        used."""
        from llguidance import LLMatcher, LLParserLimits

        grammar = _grammar(kind, value)
        limits = LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL, step_lexer_fuel=STEP_FUEL, max_lexer_states=LEXER_STATES
        )
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(
                f"{GRAMMAR_NAMES[kind]} can't be used: {_reason(matcher.get_error())}"
            )
        if warnings := matcher.get_grammar_warnings():
            raise GrammarError(f"{GRAMMAR_NAMES[kind]} can't be used: {_reason(warnings[0])}")
        matcher.compute_bitmask()
        if matcher.is_error():  # too complex to be followed
            raise GrammarError(
                f"{GRAMMAR_NAMES[kind]} can't be used: {_reason(matcher.get_error())}"
            )
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        return lambda: GrammarConstraint(matcher.deep_copy(), self._size, self._ends)


def form_of(values: Mapping[str, Any]) -> tuple[GrammarKind, Any] | None:
    """The one of ``FORMS`` that is set. Raises UsageError for several."""
    given = [name for name in FORMS if values.get(name)]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]}: a text can be kept to one; leave one out")
    if not given:
        return None
    kinds: dict[str, GrammarKind] = {
        "schema": "json_schema",
        "regex": "regex",
        "choice": "choice",
        "grammar": "grammar",
    }
    return kinds[given[0]], values[given[0]]


GRAMMAR_NAMES: Mapping[GrammarKind, str] = {
    "json_object": "the schema of any object",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
}
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: with free white space a model may never come to an end."""


def _grammar(kind: GrammarKind, value: Any) -> str:
    from llguidance import LLMatcher

    if kind == "json_object":
        value = {"type": "object"}
    if kind in ("json_object", "json_schema"):
        if isinstance(value, str):
            _check_length(kind, value)
            try:
                value = json.loads(value)
            except ValueError as error:
                raise GrammarError(f"the JSON schema is not JSON: {error}") from None
            except RecursionError:
                raise GrammarError("the JSON schema is nested too deep") from None
        if not isinstance(value, dict | bool):
            raise GrammarError('the JSON schema is no object; write for example {"type": "object"}')
        text = json.dumps(value)
        _check_length(kind, text)
        _check_multiples(value)
        try:
            return LLMatcher.grammar_from_json_schema(text, defaults=JSON_STYLE)
        except ValueError as error:
            raise GrammarError(f"the JSON schema can't be used: {_reason(str(error))}") from None
    if kind == "choice":
        if not (
            isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value)
        ):
            raise GrammarError("the list of choices has to have one text at least, and texts only")
        if "" in value:
            raise GrammarError("the list of choices has an empty text; leave it out")
        value = "|".join(map(re.escape, value))
    if not isinstance(value, str) or not value:
        raise GrammarError(f"{GRAMMAR_NAMES[kind]} has to be a text")
    _check_length(kind, value)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(value)
    return LLMatcher.grammar_from_regex(value)


def _check_multiples(schema: Any) -> None:
    """Raises GrammarError for multiples whose automaton would be too large."""
    found, merged, pending = [1], False, [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            merged = merged or "allOf" in part or "$ref" in part
            given = part.get("multipleOf")
            if isinstance(given, int | float) and math.isfinite(given) and given:
                digits = "".join(map(str, Decimal(repr(given)).as_tuple().digits))
                found.append(int(digits.rstrip("0")))
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    largest = math.lcm(*found) if merged else max(found)
    if largest > MOST_MULTIPLE:
        together = " together, as parts of the schema are merged," if merged else ""
        raise GrammarError(
            f"the JSON schema can't be used: its multipleOf come{together} to "
            f"{str(largest)[:30]}, more than {MOST_MULTIPLE:,}; leave it out, or take a smaller one"
        )


def _check_length(kind: GrammarKind, text: str) -> None:
    if len(text) > MOST_GRAMMAR:
        raise GrammarError(f"{GRAMMAR_NAMES[kind]} has more than {MOST_GRAMMAR:,} characters")


def _reason(message: str) -> str:
    # What comes behind is llguidance's own state.
    return " ".join(message.partition("<state>")[0].split())[:300]


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.eos_token_id, self.bos_token_id = min(ends), tokenizer.special.get("bos")
        special = tokenizer.special_ids | ends
        self.special_token_ids = sorted(special)
        # Special tokens have no bytes of their own; a name keeps them apart from text.
        self.tokens = [
            f"<|special {number}|>".encode()
            if number in special
            else tokenizer.decode_bytes([number])
            for number in range(tokenizer.vocab_size)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> Sequence[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class GrammarConstraint:
    """A text's place in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, ends: frozenset[int]) -> None:
        self._matcher, self._size, self._ends = matcher, vocab_size, ends

    def barred(self) -> Tensor:
        """Which tokens may not come next, (V,), True there. Raises GrammarError where the grammar
        can't be followed any further."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._size]
        return torch.from_numpy(allowed_V == 0)

    def accept(self, token: int) -> bool:
        """Take a token into account; returns whether the text is complete with it."""
        if token in self._ends:
            return True
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                f"the output can't be kept to what was asked: {_reason(self._matcher.get_error())}"
            )
