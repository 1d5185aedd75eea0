"""Draws labelled examples from a table: some to train on, others to test on, always the same.

python recipes/split_labels.py TABLE FOLDER writes FOLDER/NAME-train.csv and FOLDER/NAME-test.csv
with the columns label and text, and the first of the latter as FOLDER/NAME-few.csv, to look at.
The draw is by a hash of the text.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

from llmctl.data.tables.labelled import read_examples, resolve_columns
from llmctl.data.text.hashing import text_hash

FEW = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=1000)
    options = parser.parse_args()
    columns = resolve_columns(
        options.table,
        text_column=options.text_column,
        label_column=options.label_column,
        need_label=True,
    )
    unique = {e.text: e.label or "" for e in read_examples(options.table, columns) if e.text}
    rows = sorted(unique.items(), key=lambda row: text_hash(row[0]))
    name = re.sub(r"[^A-Za-z0-9_-]", "-", options.table.name.partition(".")[0])
    options.folder.mkdir(parents=True, exist_ok=True)
    end = options.train + options.test
    train, test = rows[: options.train], rows[options.train : end]
    for part, chosen in (("train", train), ("test", test), ("few", test[:FEW])):
        path = options.folder / f"{name}-{part}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text"])
            writer.writerows((label, text) for text, label in chosen)


if __name__ == "__main__":
    main()
