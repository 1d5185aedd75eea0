"""A process that computes rewards: run by its path, so that it loads nothing of this package.

    python worker.py regex PATTERN
    python worker.py function FILE NAME

Each line of its input is a JSON list, the answer and the row of the data that it answers; each line
of its output a reward, or what went wrong. What a function prints goes to the standard error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def line_of(error: BaseException, file: str) -> int | None:
    """The last line of a file that an error came through."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return lines[-1] if lines else None


def failure(error: BaseException, file: str) -> dict[str, Any]:
    """What went wrong, as the other side reads it."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return {"error": said, "line": line_of(error, file)}


def loaded(file: str, name: str) -> Callable[..., Any]:
    """A function of a file. Raises LookupError if there is none of the name."""
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location("rewards", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        others = f", but {', '.join(known)}" if known else ", nor another"
        raise LookupError(f"there is no function {name!r}{others}")
    return function


def matched(pattern: str) -> Callable[[str, Mapping[str, Any]], float]:
    """1 for an answer in which a pattern is found."""
    compiled = re.compile(pattern)
    return lambda answer, row: float(compiled.search(answer) is not None)


def main(kind: str, *words: str) -> None:
    """Tell whether the rewards can be computed, then compute them."""
    # Ctrl-C goes to the training, which stops this by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(value: Mapping[str, Any]) -> None:
        told.write(json.dumps(value) + "\n")
        told.flush()

    file = words[0] if kind == "function" else ""
    try:
        reward = matched(words[0]) if kind == "regex" else loaded(*words)
    except BaseException as error:  # whatever a file does when it is loaded
        tell(failure(error, file))
        return
    tell({"ready": True})
    for line in sys.stdin:
        answer, row = json.loads(line)
        try:
            value = reward(answer, row)
            number = float(value) if hasattr(value, "__float__") else None
            tell({"reward": number} if number is not None else {"returned": repr(value)[:80]})
        except BaseException as error:  # a test of code that exits, too
            tell(failure(error, file))


if __name__ == "__main__":
    main(*sys.argv[1:])
