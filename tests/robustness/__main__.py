"""``python -m tests.robustness --inputs 3000``: what every reader makes of inputs that are not as
they should be. Prints a table, and for each kind of failure the command that makes it again."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter

from tests.robustness.children import KINDS, RIGHT, Ending, Limits, base_files, run, sound
from tests.robustness.readers import READERS

SHOWN = 6
"""Failures of a reader that are shown, each of another kind."""
SCRATCH = re.compile(r"/\S*/robustness-[^/]*/")
"""A folder that is another for every child."""


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
    failed = False
    begun = time.monotonic()
    for reader in chosen:
        counts, slowest = Counter[str](), 0.0
        shown: set[str] = set()
        base = base_files(reader)
        untouched = sound(reader, base, limits)
        if untouched.kind != "ok":
            failed = True
            tell(f"{reader.name}: the sound files themselves are {untouched.kind}", untouched)
            continue
        inputs = max(1, given.inputs // 10) if reader.slow else given.inputs
        for ending in run(reader, base, range(given.begin, given.begin + inputs), limits):
            counts[ending.kind] += 1
            slowest = max(slowest, ending.seconds)
            alike = f"{ending.kind} {SCRATCH.sub('', ending.detail)[:60]}"
            if ending.kind not in RIGHT and alike not in shown and len(shown) < given.show:
                shown.add(alike)
                again = f"--reader '{reader.name}' --begin {ending.number} --inputs 1"
                tell(f"python -m tests.robustness {again}", ending)
        failed = failed or bool(shown)
        cells = " | ".join(str(counts[kind]) for kind in KINDS)
        print(f"| {reader.name} | {counts.total()} | {cells} | {slowest:.1f} s |", flush=True)
        total += counts
    cells = " | ".join(str(total[kind]) for kind in KINDS)
    seconds = time.monotonic() - begun
    print(f"| all {len(chosen)} | {total.total()} | {cells} | {seconds:.0f} s in all |")
    return int(failed)


def tell(what: str, ending: Ending) -> None:
    """Tell of a failure at once, beside the table."""
    print(f"{what}\n    {ending.kind}: {ending.detail}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
