"""Templates end, and say why where they were ended."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from llmctl.tokenizers.sandbox import MOST_ROUNDS, BoundedEnvironment

LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
ENDS = "{% endfor %}" * 3


def render(source: str, **values: Any) -> str:
    environment = BoundedEnvironment()
    template = environment.from_string(source)
    environment.begin()
    return template.render(**values)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (LOOPS + ENDS, "rounds"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
         "{{ f(25) }}", "rounds"),
        ("{% for c in text %}{% for d in text %}{% endfor %}{% endfor %}", "rounds"),
        ("{{ 'a' * 10 ** 10 }}", "characters"),
        ("{{ ['a'] * 10 ** 10 }}", "characters"),
        ("{{ 2 ** (10 ** 10) }}", "bits"),
        ("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}"
         "{% endfor %}", "characters"),
        ("{% set n = namespace(s=3) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}"
         "{% endfor %}", "bits"),
    ],
)  # fmt: skip
def test_what_may_never_end_is_ended(source: str, says: str):
    with pytest.raises(SecurityError, match=says):
        render(source, text="a" * 2000)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m }}"
        "{{ ', ' if not loop.last }}{% endfor %}",
        "{% for m in messages[1:] if m != 'b' %}{{ m }}{% else %}none{% endfor %}",
        "{% for m in [] %}{{ m }}{% else %}none{% endfor %}",
        "{% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a' + 'b') }}{{ f(2 * 3) }}{{ '-' * 4 }}",
        "{% for i in range(3) %}{% for j in range(i) %}{{ i ** j }}{% endfor %}{% endfor %}",
        "{{ [1] + [2] }}{{ 1.5 + 2 }}{{ 2.0 ** 0.5 }}",
    ],
)
def test_others_give_what_jinja_gives(source: str):
    values = {"messages": ["a", "b", "c"]}
    assert render(source, **values) == jinja2.Template(source).render(**values)


def test_each_rendering_has_its_own_rounds():
    environment = BoundedEnvironment()
    template = environment.from_string("{% for c in text %}{% endfor %}")
    for _ in range(2):
        environment.begin()
        template.render(text="a" * (MOST_ROUNDS - 1))


@pytest.mark.parametrize(
    "source",
    ["{{ " + "[" * 5000 + "]" * 5000 + " }}", "{{ " + "-" * 5000 + "1 }}",
     "{{ " + "9" * 5000 + " }}",
     "{% if a %}" * 400 + "{% endif %}" * 400, "{% for a in b %}" * 40 + "{% endfor %}" * 40],
)  # fmt: skip
def test_what_no_compiler_takes_is_a_mistake_in_the_template(source: str):
    with pytest.raises(jinja2.TemplateSyntaxError):
        BoundedEnvironment().from_string(source)
