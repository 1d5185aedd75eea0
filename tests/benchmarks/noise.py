"""What it costs to make batches: plain rows, rows for fill-in-the-middle, and each noise.

    python tests/benchmarks/noise.py WORKSPACE SHARDS

Processor time of one thread for a batch of 32 rows, which training has made in another thread while
it computes. The shards' tokenizer needs sentinels and the tokens of fill-in-the-middle.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmctl.tasks.pretraining import open_pretraining, resolve
from llmctl.workspace.artefacts import Workspace

BATCHES = 20
CASES = (
    ("llama", {}),
    ("llama", {"fim": 0.5}),
    ("t5", {"noise": "spans"}),
    ("bart", {"noise": "infilling"}),
    ("bart", {"noise": "infilling+permutation"}),
    ("bart", {"noise": "infilling+permutation+rotation"}),
    ("bart", {"noise": "deletion"}),
    ("t5", {"noise": "prefix"}),
)
"""Architectures, and what is changed of their objectives."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("shards")
    words = parser.parse_args()
    shards = Workspace(words.workspace).get("shards", words.shards)
    print("| rows | tokens of a side | ms a batch | million tokens a second | not padding |")
    print("| --- | --- | --- | --- | --- |")
    for arch, objective in CASES:
        for length in (128, 512):
            layers = {
                "objective": objective,
                "data": {"sequence_length": length},
                "training": {"batch_size": 32},
                "model": {"max_positions": 512},
            }
            task = open_pretraining(shards, resolve(arch, "nano", layers))
            task.batch(0)
            began, tokens, positions = time.process_time(), 0, 0
            for number in range(1, BATCHES + 1):
                batch = task.batch(number)
                tokens, positions = tokens + batch.real_tokens, positions + batch.num_positions
            seconds = time.process_time() - began
            what = ", ".join(f"{key} {value}" for key, value in objective.items()) or "plain"
            print(
                f"| {what} | {length} | {1000 * seconds / BATCHES:.1f} | "
                f"{tokens / seconds / 1e6:.1f} | {tokens / positions:.1%} |"
            )


if __name__ == "__main__":
    main()
