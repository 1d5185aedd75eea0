"""How fast a ModernBERT trains beside transformers' own class in a plain loop, on the same shards.

    llmctl tokenize python:docs --name docs --vocab-size 8000
    python tests/benchmarks/encoder_training.py WORKSPACE docs

Theirs is ``ModernBertForMaskedLM`` with AdamW, clipped gradients and transformers' own masking, fed
in the two ways of its example script: a text a row, padded to the longest of its batch
(``--line_by_line``), and texts run together and cut into full rows. Steps in turn; tokens are real
ones, and the first steps of each aren't timed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.run import llmctl, table

SEQUENCE, BATCH, MASK_RATE = 128, 32, 0.3
UNTIMED = 3


def ours(root: Path, shards: str, preset: str, precision: str, steps: int) -> float:
    """Tokens a second of ``llmctl pretrain``."""
    with tempfile.TemporaryDirectory(prefix="speed-", dir=root / "runs") as folder:
        name = Path(folder).name.replace("_", "-") + precision
    sets = {"max_steps": steps, "batch_size": BATCH, "eval_every": steps, "log_every": 5,
            "precision": precision}  # fmt: skip
    words = [word for key, value in sets.items() for word in ("--set", f"training.{key}={value}")]
    llmctl(root, "pretrain", "--arch", "modernbert", "--preset", preset, "--shards", shards,
           "--name", name, *words, "--set", "data.eval_batches=1")  # fmt: skip
    log = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    logged = [record for record in map(json.loads, log) if record["kind"] == "train"]
    return median(record["tokens_per_second"] for record in logged[1:])


def rows_of(documents: list[list[int]], tokenizer: Any, full: bool) -> list[dict[str, Any]]:
    """The examples of transformers' script: a text a row, or full rows."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if full:
        stream = [token for ids in documents for token in (cls, *ids, sep)]
        cuts = range(0, len(stream) - SEQUENCE + 1, SEQUENCE)
        return [{"input_ids": stream[cut : cut + SEQUENCE]} for cut in cuts]
    return [{"input_ids": [cls, *ids[: SEQUENCE - 2], sep]} for ids in documents]


def theirs(
    folder: Path, documents: list[list[int]], *, full: bool, bf16: bool, steps: int
) -> float:
    """Tokens a second of the plain loop, of a model of the same shape."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        ModernBertForMaskedLM,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ModernBertForMaskedLM(AutoConfig.from_pretrained(folder)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE)
    rows = rows_of(documents, tokenizer, full)
    random.Random(0).shuffle(rows)

    def batches() -> Iterator[Any]:
        while True:
            yield from DataLoader(rows, batch_size=BATCH, collate_fn=collator)  # type: ignore[arg-type]

    tokens, started, endless = 0, 0.0, batches()
    for step in range(steps):
        if step == UNTIMED:
            tokens, started = 0, time.perf_counter()
        batch = next(endless)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                         labels=batch["labels"]).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(batch["attention_mask"].sum())
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("shards")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer-steps", type=int, default=13)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    options = parser.parse_args()
    from llmctl.data.shards.files import ShardReader

    (options.workspace / "runs").mkdir(exist_ok=True)
    reader = ShardReader(options.workspace / "shards" / options.shards, "train")
    documents = [reader.tokens(number).tolist() for number in range(min(len(reader), 3000))]
    like = options.workspace / "runs" / "speed-like"
    if not like.exists():
        llmctl(options.workspace, "pretrain", "--arch", "modernbert", "--preset", options.preset,
               "--shards", options.shards, "--name", like.name, "--set", "training.max_steps=1",
               "--set", "data.eval_batches=1")  # fmt: skip
    rows: list[list[object]] = [
        ["precision", "llmctl", "a text a row", "full rows", "times", "times"]
    ]
    for precision in options.precisions:
        mine = ours(options.workspace, options.shards, options.preset, precision, options.steps)
        padded, full = (
            theirs(like / "model", documents, full=full, bf16=precision == "bf16",
                   steps=options.peer_steps)
            for full in (False, True)
        )  # fmt: skip
        rows.append([precision, f"{mine:,.0f}", f"{padded:,.0f}", f"{full:,.0f}",
                     f"{mine / padded:.2f}", f"{mine / full:.2f}"])  # fmt: skip
    table(rows)


if __name__ == "__main__":
    main()
