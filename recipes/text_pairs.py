"""Writes pairs of a source and a target to learn from, and others to be measured on.

python recipes/text_pairs.py docstrings STEM
    the standard library's docstrings: the body to its first line
python recipes/text_pairs.py columns STEM FILE [SOURCE TARGET]
    two columns of a table; where none is named nor has an obvious name, the longest texts are the
    source and the next longest the target
python recipes/text_pairs.py dialogues STEM FILE
    what one side says to the other's answer, in any layout of `llmctl finetune --task instruct`

STEM-train.jsonl is to learn from, STEM-test.jsonl a tenth chosen by the source's hash: always the
same.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from llmctl.data.tables.conversations import read_conversations
from llmctl.data.tables.parallel_text import read_pairs, resolve_pair_columns
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.hashing import is_held_out
from llmctl.data.text.python_corpora import python_modules
from llmctl.errors import LlmctlError, UsageError

HELD_OUT = 0.1
LONGEST = 1500
"""Characters of a source; of longer ones the beginning is taken."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Pairs = Iterator[tuple[str, str]]


def docstrings() -> Pairs:
    """Bodies of docstrings and the lines that sum them up."""
    for _, tree in python_modules():
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED):
                first, _, body = (ast.get_docstring(node) or "").partition("\n\n")
                if body.strip() and "\n" not in first:
                    yield body, first


def columns(file: Path, source: str | None, target: str | None) -> Pairs:
    """Two columns of a table."""
    try:
        resolve_pair_columns(file, source_column=source, target_column=target)
    except UsageError:
        if source is not None:
            raise
        source, target = _longest_columns(file)
        print(f"source: column {source}, target: column {target}", file=sys.stderr)
    for pair in read_pairs(file, source_column=source, target_column=target):
        assert pair.target is not None
        yield pair.source, pair.target


def _longest_columns(file: Path) -> tuple[str, str]:
    lengths: dict[str, int] = defaultdict(int)
    for row in RowReader(file):
        for name, value in row.values.items():
            lengths[name] += len(value) if isinstance(value, str) else 0
    source, target, *_ = sorted(lengths, key=lambda name: -lengths[name])
    return source, target


def dialogues(file: Path) -> Pairs:
    """Each turn of a user and the answer to it."""
    for conversation in read_conversations(file):
        turns = [turn for turn in conversation.turns if turn.role != "system"]
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            yield asked.content, answered.content


def write(stem: Path, pairs: Pairs) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    seen = set()
    for source, target in pairs:
        source, target = " ".join(source.split())[:LONGEST], " ".join(target.split())
        if source and target and source not in seen:
            seen.add(source)
            part = "test" if is_held_out(source, HELD_OUT) else "train"
            row = {"source": source, "target": target}
            lines[part].append(json.dumps(row, ensure_ascii=False) + "\n")
    if not (lines["train"] and lines["test"]):
        sys.exit("error: too few pairs to learn from some and to be measured on others")
    for part, rows in lines.items():
        Path(f"{stem}-{part}.jsonl").write_text("".join(rows), encoding="utf-8")
    print(f"{len(lines['train']):,} pairs to learn from, {len(lines['test']):,} held out")


def main() -> None:
    kind, stem, *rest = sys.argv[1:]
    file = Path(rest[0]) if rest else Path()
    names = (*rest[1:], None, None)
    made = {
        "docstrings": docstrings,
        "columns": lambda: columns(file, names[0], names[1]),
        "dialogues": lambda: dialogues(file),
    }
    try:
        write(Path(stem), made[kind]())
    except LlmctlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
