"""How fast a ModernBERT trains beside transformers' own class in a plain loop, on the same shards.

    llmctl tokenize python:docs --name docs --vocab-size 8000
    python tests/benchmarks/encoder_training.py WORKSPACE docs

Theirs is ``ModernBertForMaskedLM`` with AdamW and transformers' own masking, fed in the two ways of
its example script: a text a row, padded to the longest of its batch (``--line_by_line``), and texts
run together and cut into full rows. Steps take turns in one process; real tokens for each second of
the processor, the median of several steps, so that who computes meanwhile takes little away.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn

from llmctl.data.shards.files import ShardReader
from llmctl.models import ARCHITECTURES
from llmctl.tasks.pretraining import open_pretraining, resolve
from llmctl.training.optim.optimiser import build_optimiser
from llmctl.workspace.artefacts import Workspace
from tests.benchmarks.run import table

SEQUENCE, MASK_RATE = 128, 0.3
UNTIMED = 1
Step = Callable[[], tuple[torch.Tensor, int]]
"""A batch's loss, and its real tokens."""


def ours(task: Any, model: nn.Module) -> Step:
    numbers = iter(range(10**6))

    def step() -> tuple[torch.Tensor, int]:
        batch = task.batch(next(numbers))
        return task.loss(model, batch).total, int(batch.tokens_B.sum())

    return step


def rows_of(documents: list[list[int]], tokenizer: Any, full: bool) -> list[dict[str, Any]]:
    """The examples of transformers' script: a text a row, or full rows."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if full:
        stream = [token for ids in documents for token in (cls, *ids, sep)]
        cuts = range(0, len(stream) - SEQUENCE + 1, SEQUENCE)
        return [{"input_ids": stream[cut : cut + SEQUENCE]} for cut in cuts]
    return [{"input_ids": [cls, *ids[: SEQUENCE - 2], sep]} for ids in documents]


def theirs(model: Any, rows: list[dict[str, Any]], tokenizer: Any, batch_size: int) -> Step:
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForLanguageModeling

    random.Random(0).shuffle(rows)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE)

    def batches() -> Iterator[Any]:
        while True:
            yield from DataLoader(rows, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]

    endless = batches()

    def step() -> tuple[torch.Tensor, int]:
        batch = next(endless)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return model(**inputs).loss, int(batch["attention_mask"].sum())

    return step


def tokens_a_second(step: Step, optimiser: torch.optim.Optimizer, *, bf16: bool) -> float:
    """A whole step: loss, gradients, clipping, update."""
    started = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss, tokens = step()
    loss.backward()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return tokens / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("shards")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    shards = Workspace(options.workspace).get("shards", options.shards)
    training = {"batch_size": options.batch_size, "learning_rate": 1e-3}
    task = open_pretraining(shards, resolve("modernbert", options.preset, {"training": training}))
    mine, architecture = task.network().train(), ARCHITECTURES["modernbert"]
    fields = architecture.to_hugging_face(task.config.model)
    peer = ModernBertForMaskedLM(ModernBertConfig(**fields)).train()
    tokenizer = AutoTokenizer.from_pretrained(shards.folder / "tokenizer")
    reader = ShardReader(shards.folder, "train")
    documents = [reader.tokens(number).tolist() for number in range(min(len(reader), 3000))]
    peer_optimiser = torch.optim.AdamW(peer.parameters(), lr=1e-3)
    kinds = {
        "llmctl": (ours(task, mine), build_optimiser(mine, task.config.training)),
        **{
            name: (
                theirs(peer, rows_of(documents, tokenizer, full), tokenizer, options.batch_size),
                peer_optimiser,
            )
            for name, full in (("a text a row", False), ("full rows", True))
        },
    }
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(UNTIMED + options.steps):
        for name, (step, optimiser) in kinds.items():
            speeds[name].append(tokens_a_second(step, optimiser, bf16=options.bf16))
    found = {name: median(values[UNTIMED:]) for name, values in speeds.items()}
    table(
        [
            ["", "tokens a second", "llmctl times as many"],
            *([name, f"{value:,.0f}", f"{found['llmctl'] / value:.2f}"]
              for name, value in found.items()),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
