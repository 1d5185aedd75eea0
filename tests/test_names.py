"""A name stands for one thing in the whole package, and a docstring for itself: from the source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmctl"
MODULES = sorted(PACKAGE.rglob("*.py"))

EVERYWHERE = {
    "EXAMPLE", "EXPLAINED", "FIELDS", "FIGURES", "PRESETS", "SPEC", "WEIGHTS", "__all__",
}  # fmt: skip
"""What each module of a kind has of its own: a command its example, an architecture its presets."""

NOT_BY_ITSELF = ("Of ", "As ", "…", "And ", "Likewise", "The same")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def target_of(node: ast.AST) -> str:
    """What a statement gives a value to, or defines; empty where it does neither."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return getattr(node, "name", "")


def docstrings(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Name, arguments and docstring of classes, functions, fields and constants."""
    for node in ast.walk(tree_of(path)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([node, *body], body, strict=False):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and not isinstance(before, ast.Module):
                    arguments = getattr(before, "args", None)
                    nodes = ast.walk(arguments) if isinstance(arguments, ast.arguments) else ()
                    names = [node.arg for node in nodes if isinstance(node, ast.arg)]
                    yield f"{path.name}: {target_of(before)}", names, text.strip()


def test_a_class_name_stands_for_one_class():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def constants(path: Path) -> Iterator[tuple[str, str]]:
    """Names that a module gives a value to, one by one or several in a tuple, and the values."""
    for node in tree_of(path).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Tuple):
            yield ast.unparse(target), ast.unparse(node.value)
        elif isinstance(node.value, ast.Tuple):
            names, values = map(ast.unparse, target.elts), map(ast.unparse, node.value.elts)
            yield from zip(names, values, strict=True)


def test_a_constant_has_one_value():
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in MODULES:
        for name, value in constants(path):
            values[name][value].append(str(path.relative_to(PACKAGE)))
    several = {name: dict(found) for name, found in values.items() if len(found) > 1}
    assert {name: found for name, found in several.items() if name not in EVERYWHERE} == {}


def test_a_docstring_is_a_sentence_that_stands_alone():
    """It begins with a capital, a quoted name or an argument's, and ends as a sentence does."""
    seen = 0
    for path in MODULES:
        for name, arguments, text in docstrings(path):
            seen += 1
            prose = text.partition(">>>")[0].strip()
            first = re.match(r"(\w+): ", prose)
            assert not prose.startswith(NOT_BY_ITSELF), (name, text)
            assert not prose[0].islower() or (first and first[1] in arguments), (name, text)
            assert prose.endswith((".", "!", "?", "``", ")", '"')), (name, text)
    assert seen > 1000
