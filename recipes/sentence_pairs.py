"""STS benchmark's tables and a text for pretraining, as llmctl reads them.

    python recipes/sentence_pairs.py STSB_FOLDER PAIRS.jsonl OUT [TEXT …]

STSB_FOLDER has sts-train.csv, sts-dev.csv and sts-test.csv as they are distributed: fields between
tabs, quotes that mean nothing, more fields in some rows than in others. OUT gets sts-train.jsonl,
sts-dev.jsonl and sts-test.jsonl with sentence1, sentence2 and score, and sentences.txt: the
sentences of the training parts of both, each once, a line each, and the lines of further texts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

SCORE, FIRST, SECOND = 4, 5, 6
"""Fields of a row of the STS benchmark."""


def scored_pairs(path: Path) -> Iterator[dict[str, str | float]]:
    """The pairs of a part of the benchmark."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) <= SECOND:
            sys.exit(f"{path}:{number} has {len(fields)} fields; at least {SECOND + 1} are needed")
        yield {
            "sentence1": fields[FIRST],
            "sentence2": fields[SECOND],
            "score": float(fields[SCORE]),
        }


def main(stsb: Path, pairs: Path, out: Path, *texts: Path) -> None:
    """Write the files."""
    out.mkdir(parents=True, exist_ok=True)
    sentences: dict[str, None] = {}
    for part in ("train", "dev", "test"):
        rows = list(scored_pairs(stsb / f"sts-{part}.csv"))
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (out / f"sts-{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if part == "train":
            for row in rows:
                sentences |= {str(row["sentence1"]): None, str(row["sentence2"]): None}
    for line in pairs.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sentences |= {
            value: None for value in row.values() if isinstance(value, str) and " " in value
        }
    for text in texts:
        sentences |= dict.fromkeys(filter(None, text.read_text(encoding="utf-8").splitlines()))
    (out / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("give the benchmark's folder, a table of pairs and a folder to write to")
    main(*map(Path, sys.argv[1:]))
