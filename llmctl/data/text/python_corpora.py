"""Two corpora that every Python installation carries, so that a first run needs no download.

``python:docs``: the language reference in ``pydoc_data`` and the standard library's docstrings.
``python:code``: the standard library's source. Files are parsed, never imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__",
     "pydoc_data", "lib-dynload", "ensurepip", "turtledemo"}
)  # fmt: skip
"""Folders without prose or code worth reading, and what is not the standard library's."""

SHORTEST_LABELLED = 40
"""Characters; a shorter docstring seldom tells where it is from."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _source_files() -> tuple[tuple[str, Path], ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not LEFT_OUT.intersection(parts[:-1]):
            files.append(("/".join(parts), path))
    return tuple(sorted(files))


def python_code() -> Iterator[tuple[str, str]]:
    """(file, source) of each module of the standard library."""
    for name, path in _source_files():
        yield name, path.read_text(encoding="utf-8", errors="replace")


@cache  # parsing the library takes seconds, its text two megabytes
def python_docs() -> tuple[tuple[str, str], ...]:
    """(name, text) of the language reference's topics and the standard library's docstrings.

    A module's docstring is a document, a top-level function's is one, a class's with those of
    its methods is one.
    """
    return tuple(_extract_docs())


def _extract_docs() -> Iterator[tuple[str, str]]:
    yield from _topics()
    for name, tree in python_modules():
        own = ast.get_docstring(tree)
        if own:
            yield name, own
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                texts = [text for _, text in _docstrings(node, node.name)]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                texts = [ast.get_docstring(node) or ""]
            else:
                continue
            joined = "\n\n".join(text for text in texts if text)
            if joined:
                yield f"{name}:{node.lineno}", joined


def labelled_docstrings() -> Iterator[tuple[str, str, str]]:
    """(label, qualified name, docstring): which top-level module or package each belongs to.

    Every docstring of some length once: a text found in two places is left out of the second.
    """
    seen: set[str] = set()
    for name, tree in python_modules():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for qualified, text in _docstrings(tree, module):
            if len(text) >= SHORTEST_LABELLED and text not in seen:
                seen.add(text)
                yield module.partition(".")[0], qualified, text


def _topics() -> Iterator[tuple[str, str]]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions package it apart
        return
    for name in sorted(topics):
        yield f"topic {name}", inspect.cleandoc(topics[name])


def python_modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module's file and its syntax tree."""
    for name, source in python_code():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(source)
            except SyntaxError:  # a template or a file of another version
                continue
        yield name, tree


def _docstrings(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
