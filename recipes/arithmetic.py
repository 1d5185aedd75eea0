"""Write sums for recipes/grpo.sh: many told with their results, of which a careless teacher got a
good part wrong, others to be tried, and others to test on.

    python recipes/arithmetic.py FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

LARGEST = 99
"""Both numbers are at most this: 10,000 sums."""
KNOWN, TEST = 6000, 1000
"""Sums whose results are told, and those to test on; the others are to be tried."""
CARELESS = 2 / 3
"""Share of the told sums whose carries are forgotten. More than half, so that the likeliest answer
is wrong wherever something is carried, which is in seven sums of ten; less than all, so that the
right one is sometimes tried."""


def without_carries(a: int, b: int) -> int:
    """The sum of each pair of digits, its last digit alone: 57 + 66 gives 13."""
    return (a // 10 + b // 10) % 10 * 10 + (a + b) % 10


def main(folder: Path) -> None:
    """Write the files; none of the sums of one is in another."""
    generator = random.Random(0)
    sums = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    generator.shuffle(sums)
    known, test, tried = sums[:KNOWN], sums[KNOWN : KNOWN + TEST], sums[KNOWN + TEST :]
    told = [
        (a, b, without_carries(a, b) if generator.random() < CARELESS else a + b) for a, b in known
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums.txt").write_text("".join(f"{a}+{b}={result}\n" for a, b, result in told))
    right = {"tried": tried, "test": test}
    parts = {name: [(a, b, a + b) for a, b in part] for name, part in right.items()}
    for name, part in {"known": told, **parts}.items():
        rows = ({"prompt": f"{a}+{b}=", "completion": str(result)} for a, b, result in part)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = sum(a + b != result for a, b, result in told)
    print(
        f"{len(told):,} sums are told, {wrong:,} of them wrongly; "
        f"{len(tried):,} are to be tried, {len(test):,} tested"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
