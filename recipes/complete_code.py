"""Code of modules that no model has seen, to complete: asks, and judges what comes.

python recipes/complete_code.py ask SHARDS FOLDER takes the held-out part of shards of Python
source. It writes FOLDER/lines.jsonl, places in it with what stands before, where the next line is
asked, and FOLDER/functions.jsonl, the heads of functions with their docstrings. Which ones is
chosen by a hash: always the same.

python recipes/complete_code.py judge FOLDER NAME=WAY … reads what `llmctl generate --output` made
of both, FOLDER/lines-WAY.jsonl and FOLDER/functions-WAY.jsonl, and prints two shares: of lines that
are the original's, and of functions that parse, cut behind their last whole line.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.data.shards.files import ShardReader
from llmctl.data.text.hashing import text_hash

LINES, FUNCTIONS = 400, 100
"""So many of each are asked."""
CONTEXT = 500
"""Characters before a line."""
LONGEST = 170
"""Tokens of a prompt, so that a context of 256 has room for what is asked."""
SHORTEST = 8
"""Characters of a line; others are brackets, pass, else and the like."""


def places(source: str) -> Iterator[dict[str, str]]:
    """Each line of some length behind another one, and what stands before it."""
    lines = source.split("\n")
    begin = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if before.strip() and len(line.strip()) >= SHORTEST:
            yield {"prompt": source[max(0, begin - CONTEXT) : begin], "line": line.strip()}
        begin += len(line) + 1


def heads(source: str) -> Iterator[dict[str, str]]:
    """The head and the docstring of each top-level function that has a body besides."""
    tree = parsed(source)
    lines = source.split("\n")
    for node in tree.body if tree else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]) + "\n"
            if ast.get_docstring(node) and len(node.body) > 1:
                yield {"prompt": head}


def parsed(source: str) -> ast.Module | None:
    """Its tree, or None if it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):  # ValueError: a null byte
            return None


def ask(shards: Path, folder: Path) -> None:
    """Write the prompts."""
    tokenizer, reader = tokenizers.load(shards / "tokenizer"), ShardReader(shards, "validation")
    # Byte-level BPE gives sources back as they were.
    modules = [tokenizer.decode(reader.tokens(number).tolist()) for number in range(len(reader))]
    folder.mkdir(parents=True, exist_ok=True)
    for name, find, most in (("lines", places, LINES), ("functions", heads, FUNCTIONS)):
        found = {entry["prompt"]: entry for module in modules for entry in find(module)}
        ordered = sorted(found.values(), key=lambda entry: text_hash(entry["prompt"]))
        fitting = (e for e in ordered if len(tokenizer.encode(e["prompt"])) <= LONGEST)
        chosen = list(islice(fitting, most))
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in chosen)
        print(f"{len(chosen)} of {len(found)} {name} held out", file=sys.stderr)


def whole_lines(completion: dict[str, Any]) -> list[str]:
    """The lines of a completion that are the function's, the last one only if it is whole."""
    lines = completion["text"].split("\n")
    if completion["finish"] == "length":
        del lines[-1]
    return list(takewhile(lambda line: not line or line[0].isspace(), lines))


def is_function(answer: dict[str, Any]) -> bool:
    """Whether what was written behind a head makes a function of it."""
    body = "\n".join(whole_lines(answer["completions"][0]))
    # A docstring alone would parse too.
    return bool(body.strip()) and parsed(answer["prompt"] + body) is not None


def judge(folder: Path, named: Iterable[str]) -> None:
    """Print a line of figures for each NAME=WAY."""
    lines = {entry["prompt"]: entry["line"] for entry in read_lines(folder / "lines.jsonl")}
    print(f"\n{'':<28}{'lines right':>12}{'functions that parse':>24}\n")
    for name, _, way in (word.partition("=") for word in named):
        alike = [
            answer["completions"][0]["text"].strip() == lines[answer["prompt"]]
            for answer in read_lines(folder / f"lines-{way}.jsonl")
        ]
        parse = [is_function(a) for a in read_lines(folder / f"functions-{way}.jsonl")]
        print(f"{name:<28}{_share(alike):>12}{_share(parse):>24}")


def _share(true: list[bool]) -> str:
    return f"{sum(true)} of {len(true)}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main(task: str, first: str, *others: str) -> None:
    if task == "ask":
        ask(Path(first), Path(others[0]))
    else:
        judge(Path(first), others)


if __name__ == "__main__":
    main(*sys.argv[1:])
