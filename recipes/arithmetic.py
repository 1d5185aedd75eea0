"""Write sums for recipes/grpo.sh: text with their results to pretrain on, a few as questions with
answers, many as questions to be tried, and others to test on.

    python recipes/arithmetic.py FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

LARGEST = 49
"""Both numbers are at most this: 2,500 sums."""
KNOWN, TEST = 700, 500
"""Sums whose results are told, and those to test on; the others are to be tried."""
TEXT_LINES = 20_000


def main(folder: Path) -> None:
    """Write the files; none of the sums of one is in another."""
    generator = random.Random(0)
    sums = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    generator.shuffle(sums)
    known, test, tried = sums[:KNOWN], sums[KNOWN : KNOWN + TEST], sums[KNOWN + TEST :]
    folder.mkdir(parents=True, exist_ok=True)
    lines = (generator.choice(known) for _ in range(TEXT_LINES))
    text = "".join(f"{a}+{b}={a + b}\n" for a, b in lines)
    (folder / "sums.txt").write_text(text)
    for name, part in {"known": known, "tried": tried, "test": test}.items():
        rows = ({"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in part)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(known):,} sums are told, {len(tried):,} are to be tried, {len(test):,} tested")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
