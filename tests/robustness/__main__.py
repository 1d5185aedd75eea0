"""``python -m tests.robustness --inputs 3000``: what every reader makes of inputs that are not as
they should be. Prints a table, and for each kind of failure the command that makes it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.robustness.children import KINDS, RIGHT, Ending, Limits, Reader, base_files, run, sound
from tests.robustness.readers import READERS

SHOWN = 6
"""Failures of a reader that are shown, each of another kind."""


def main() -> int:
    """Returns 1 if any reader failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--inputs", type=int, default=3000, help="For each reader.")
    parser.add_argument("--begin", type=int, default=0, help="Number of the first.")
    parser.add_argument("--reader", action="append", help="Those whose names contain this.")
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="Of one input.")
    parser.add_argument("--show", type=int, default=SHOWN, help="Failures shown of a reader.")
    given = parser.parse_args()
    chosen = [
        r for r in READERS if not given.reader or any(part in r.name for part in given.reader)
    ]
    limits = Limits(seconds=given.seconds)
    print(f"| reader | inputs | {' | '.join(KINDS)} | slowest |")
    print("| --- |" + " ---: |" * (len(KINDS) + 2), flush=True)
    total: Counter[str] = Counter()
    failures: list[tuple[Reader, Ending]] = []
    begun = time.monotonic()
    for reader in chosen:
        counts, slowest = Counter[str](), 0.0
        shown: set[str] = set()
        base = base_files(reader)
        untouched = sound(reader, base, limits)
        if untouched.kind != "ok":
            print(f"{reader.name}: the sound files are {untouched.kind}: {untouched.detail}")
            return 1
        for ending in run(reader, base, range(given.begin, given.begin + given.inputs), limits):
            counts[ending.kind] += 1
            slowest = max(slowest, ending.seconds)
            kind = f"{ending.kind} {ending.detail[:60]}"
            if ending.kind not in RIGHT and kind not in shown and len(shown) < given.show:
                shown.add(kind)
                failures.append((reader, ending))
        cells = " | ".join(str(counts[kind]) for kind in KINDS)
        print(f"| {reader.name} | {counts.total()} | {cells} | {slowest:.1f} s |", flush=True)
        total += counts
    cells = " | ".join(str(total[kind]) for kind in KINDS)
    seconds = time.monotonic() - begun
    print(f"| all {len(chosen)} | {total.total()} | {cells} | {seconds:.0f} s in all |")
    for reader, ending in failures:
        print(f"\n{reader.name}, {ending.kind}: {ending.detail}")
        where = f"--reader '{reader.name}' --begin {ending.number} --inputs 1"
        print(f"  python -m tests.robustness {where}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
