"""Functions of modules that no model has seen: asks for their bodies, and judges what comes.

python recipes/complete_functions.py ask SHARDS FILE writes prompts from the held-out part of
shards of Python source, a JSON object a line: each is the head of a function with its docstring,
and the body's first line stands beside it.

python recipes/complete_functions.py judge FILE NAME=COMPLETIONS … reads what `llmctl generate
--output` made of them and prints how many functions parse, cut behind their last whole line, and
how many begin with the original's first line.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.data.duplicates import text_hash
from llmctl.data.shards import ShardReader

MOST, LONGEST = 100, 400
"""Prompts, and the characters of one."""


def held_out_modules(shards: Path) -> Iterator[str]:
    """The sources of the validation part: byte-level BPE gives them back as they were."""
    tokenizer, reader = tokenizers.load(shards / "tokenizer"), ShardReader(shards, "validation")
    for number in range(len(reader)):
        yield tokenizer.decode(reader.tokens(number).tolist())


def documented_functions(source: str) -> Iterator[tuple[str, str]]:
    """(head with docstring, first line of the body) of each top-level function that has both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a template or a file of another version
            return
    lines = source.split("\n")
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) and len(node.body) > 1:
            end = node.body[0].end_lineno
            assert end is not None
            following = (line for line in lines[end:] if line.strip())
            yield "\n".join(lines[node.lineno - 1 : end]) + "\n", next(following)


def ask(shards: Path, file: Path) -> None:
    """Write the prompts."""
    found = {
        prompt: line
        for source in held_out_modules(shards)
        for prompt, line in documented_functions(source)
        if len(prompt) <= LONGEST
    }
    chosen = sorted(found.items(), key=lambda item: text_hash(item[0]))[:MOST]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for prompt, line in chosen:
            out.write(json.dumps({"prompt": prompt, "line": line}) + "\n")
    print(f"{len(chosen)} of {len(found)} functions held out", file=sys.stderr)


def whole_lines(completion: dict[str, Any]) -> list[str]:
    """The lines of a completion that are the function's, the last one only if it is whole."""
    lines = completion["text"].split("\n")
    if completion["finish"] == "length":
        del lines[-1]
    return list(takewhile(lambda line: not line or line[0].isspace(), lines))


def is_python(source: str) -> bool:
    """Whether it parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError):  # ValueError: a null byte
            return False
    return True


def judge(file: Path, *named: str) -> None:
    """Print a line of figures for each NAME=COMPLETIONS."""
    asked = {entry["prompt"]: entry["line"] for entry in read_lines(file)}
    print(f"\n{len(asked)} functions{'parse':>27}{'first line as in the original':>33}\n")
    for name, _, path in (word.partition("=") for word in named):
        parsed = alike = 0
        for entry in read_lines(Path(path)):
            prompt, body = entry["prompt"], whole_lines(entry["completions"][0])
            first = next((line for line in body if line.strip()), None)
            # A docstring alone would parse too.
            parsed += first is not None and is_python(prompt + "\n".join(body))
            alike += first is not None and first.strip() == asked[prompt].strip()
        print(f"{name:<30}{parsed / len(asked):>9.0%}{alike / len(asked):>33.0%}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(task: str, *words: str) -> None:
    if task == "ask":
        shards, file = map(Path, words)
        ask(shards, file)
    else:
        file, *named = words
        judge(Path(file), *named)


if __name__ == "__main__":
    main(*sys.argv[1:])
