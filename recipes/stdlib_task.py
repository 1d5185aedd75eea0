"""Writes a labelled task made from the standard library's docstrings: which part is each from?

python recipes/stdlib_task.py FOLDER  writes FOLDER/stdlib-train.csv (400 labels) and
FOLDER/stdlib-test.csv (all the others, at most 1,000). The split is by hash: always the same.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from llmctl.data.text.hashing import text_hash
from llmctl.data.text.python_corpora import labelled_docstrings

PARTS = ("asyncio", "collections", "decimal", "distutils", "email", "http", "importlib", "logging",
         "multiprocessing", "tkinter", "turtle", "unittest")  # fmt: skip
"""Parts with many docstrings of their own vocabulary; those that this Python lacks are left out."""
TRAIN, TEST, FEWEST = 400, 1000, 40


def main(folder: Path) -> None:
    rows = [(label, text) for label, _, text in labelled_docstrings() if label in PARTS]
    counts = {part: sum(label == part for label, _ in rows) for part in PARTS}
    rows = [row for row in rows if counts[row[0]] >= FEWEST]
    rows.sort(key=lambda row: text_hash(row[1]))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:TRAIN]), ("test", rows[TRAIN : TRAIN + TEST])):
        with (folder / f"stdlib-{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text"])
            writer.writerows(part)
    parts = len({label for label, _ in rows})
    print(
        f"{len(rows)} docstrings of {parts} parts: {TRAIN} to train on, "
        f"{min(TEST, len(rows) - TRAIN)} to test on",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
