"""Writes questions with their answers to learn from, and a few others to ask afterwards.

python recipes/questions.py STEM makes them of the standard library's docstrings, in Alpaca's
layout: what a function does, given how it is called, and how the function is called that does
something. python recipes/questions.py STEM DATA takes the conversations of a file, in any layout
that `llmctl finetune --task instruct` reads.

STEM.jsonl is to learn from. What STEM-few.txt asks, a question a line, is left out of it; it is
chosen by a hash: always the same.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.data.tables.conversations import read_conversations
from llmctl.data.text.hashing import text_hash
from llmctl.data.text.python_corpora import python_modules
from llmctl.errors import LlmctlError

FEW = 3
LONGEST = 160
"""Characters of a call and of a sentence; functions with longer ones are left out."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Entry = tuple[str | None, list[dict[str, Any]]]
"""A question that could be asked afterwards, and what is learned if it isn't."""


def public_functions() -> Iterator[tuple[str, str]]:
    """(call, what it does) of each function and method that says so in its first sentence."""
    for file, tree in python_modules():
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name, function in _functions_of(tree, module):
            first = (ast.get_docstring(function) or "").partition("\n\n")[0]
            sentence = " ".join(first.split())
            if sentence.endswith(".") and not any(w.startswith("_") for w in name.split(".")):
                yield f"{name}({_arguments(function)})", sentence


def _functions_of(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, Function]]:
    for child in node.body:
        if isinstance(child, Function):
            yield f"{name}.{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions_of(child, f"{name}.{child.name}")


def _arguments(function: Function) -> str:
    """As a caller sees them."""
    arguments = function.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    return ast.unparse(arguments)


def of_the_library() -> Iterator[Entry]:
    """One question about each function, and another where only one does what it does."""
    functions = dict(public_functions())
    doing = Counter(functions.values())
    for call, sentence in functions.items():
        if len(call) <= LONGEST and len(sentence) <= LONGEST:
            question = f"What does {call} do?"
            pairs = {question: sentence}
            if doing[sentence] == 1:
                pairs[f"Which function does this? {sentence}"] = call
            yield question, [{"instruction": q, "output": a} for q, a in pairs.items()]


def of_a_file(data: Path) -> Iterator[Entry]:
    """The conversations of a file; those of one short line can be asked."""
    for conversation in read_conversations(data):
        first = conversation.turns[0]
        is_line = len(conversation.turns) == 2 and "\n" not in first.content.strip()
        question = first.content.strip() if is_line and len(first.content) <= LONGEST else None
        yield question, [{"messages": conversation.messages}]


def main(stem: Path, data: Path | None = None) -> None:
    entries = list(of_a_file(data) if data else of_the_library())
    asked = sorted({question for question, _ in entries if question}, key=text_hash)[:FEW]
    stem.parent.mkdir(parents=True, exist_ok=True)
    few = stem.with_name(f"{stem.name}-few.txt")
    few.write_text("".join(f"{question}\n" for question in asked), encoding="utf-8")
    learned = [line for question, lines in entries if question not in asked for line in lines]
    with stem.with_name(f"{stem.name}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in learned)
    print(f"{len(learned)} conversations to learn from, {len(asked)} to ask", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except LlmctlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
