"""Divides pairs of answers by their prompts: a fifth to test on, always the same.

python recipes/split_pairs.py PAIRS STEM writes STEM-train.jsonl and STEM-test.jsonl; of the former
the better answers as conversations, STEM-chosen.jsonl, and their text, STEM.txt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llmctl.data.tables.preferences import PreferencePair, read_preferences
from llmctl.data.text.hashing import is_held_out

TEST = 0.2


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as JSON, a line each."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def row_of(pair: PreferencePair) -> dict[str, object]:
    """A pair as it was read."""
    messages = pair.answered(pair.chosen).messages[:-1]
    return {"prompt": messages, "chosen": pair.chosen, "rejected": pair.rejected}


def main() -> None:
    """Write the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("stem", type=Path)
    options = parser.parse_args()
    train: list[PreferencePair] = []
    test: list[PreferencePair] = []
    for pair in read_preferences(options.pairs):
        (test if is_held_out(pair.asked, TEST) else train).append(pair)
    stem: Path = options.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    write(stem.with_name(f"{stem.name}-train.jsonl"), [row_of(pair) for pair in train])
    write(stem.with_name(f"{stem.name}-test.jsonl"), [row_of(pair) for pair in test])
    chosen = [pair.answered(pair.chosen).messages for pair in train]
    write(stem.with_name(f"{stem.name}-chosen.jsonl"), [{"messages": each} for each in chosen])
    texts = ("\n".join(turn["content"] for turn in each) for each in chosen)
    stem.with_name(f"{stem.name}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"{len(train):,} pairs to train on, {len(test):,} to test on")


if __name__ == "__main__":
    main()
