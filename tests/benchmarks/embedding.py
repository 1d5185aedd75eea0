"""Training speed of an embedder beside sentence-transformers' own trainer; run by hand.

    python tests/benchmarks/embedding.py MODEL PAIRS.jsonl [--steps 12] [--batch 64]

MODEL: a folder of sentence-transformers, such as MiniLM's. PAIRS: sentence1 and sentence2, or
premise and hypothesis. Both train the same weights in fp32 on the same pairs in the same order with
the multiple negatives ranking loss (scale 20), AdamW and clipping at 1, dropout as the model has
it. They take turns; the first steps of each, in which memory is found, are not counted. The median
time of a step is compared, and the losses of the first step without dropout, which are equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.formats.open import open_folder
from llmctl.tasks.embed.batches import EmbedBatch, EncodedTexts, collate
from llmctl.tasks.embed.loss import EmbedLoss
from llmctl.tasks.embed.texts import new_embedder
from llmctl.training.batches import Objective
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.trainer import Trainer

WARM_UP = 3
"""Steps that are not counted."""
RATE = 2e-5

Pairs = list[tuple[str, str]]


def read(path: Path, count: int) -> Pairs:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    names = ("premise", "hypothesis") if "premise" in rows[0] else ("sentence1", "sentence2")
    return [(row[names[0]], row[names[1]]) for row in rows]


def our_batches(model: Any, pairs: Pairs, size: int) -> list[EmbedBatch]:
    texts = [text for pair in pairs for text in pair]
    examples = [Example(text, None, None, "") for text in texts]
    ids = [e.ids for e in encode_examples(model.tokenizer, examples, model.max_length)]
    key = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    rows = [
        EncodedTexts((ids[2 * n], ids[2 * n + 1]), (key[a], key[b]))
        for n, (a, b) in enumerate(pairs)
    ]
    pad = pad_token(model.tokenizer)
    # Theirs masks no false negatives.
    return [
        collate(rows[n : n + size], pad, mask_false_negatives=False)
        for n in range(0, len(rows), size)
    ]


def ours(path: str, pairs: Pairs, size: int) -> tuple[list[float], float]:
    """Seconds of each step with making its batch, and the loss before training."""
    model = open_folder(Path(path))
    loss = EmbedLoss("infonce", 0.05, 0.3, False, (None,))
    began = time.perf_counter()
    batches = our_batches(model, pairs, size)
    making = (time.perf_counter() - began) / len(batches)
    plain = new_embedder(model, "mean").eval()
    with torch.no_grad():
        first = float(loss(plain, batches[0]).total)
    network = new_embedder(model, "mean", dropout=0.1)
    config = TrainingConfig(
        max_steps=len(batches), learning_rate=RATE, log_every=1, precision="fp32", warmup=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Objective(network, loss), lambda n: batches[n % len(batches)], config,
            total_steps=len(batches), seed=0, device=torch.device("cpu"), precision="fp32",
            store=CheckpointStore(Path(folder), keep=1),
        )  # fmt: skip
        marks = [time.perf_counter()]
        for record in trainer.run():
            if record.kind == "train":
                marks.append(time.perf_counter())
    steps = [b - a + making for a, b in pairwise(marks)]
    return steps, first


def theirs(path: str, pairs: Pairs, size: int) -> tuple[list[float], float]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    model = SentenceTransformer(path, device="cpu")
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    marks: list[float] = []

    class Marks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    class InOrder(SentenceTransformerTrainer):
        def get_batch_sampler(self, dataset: Any, batch_size: int, *_: Any, **__: Any) -> Any:
            from sentence_transformers.base.sampler import DefaultBatchSampler

            sampler = SequentialSampler(range(len(dataset)))
            return DefaultBatchSampler(sampler, batch_size=batch_size, drop_last=False)

    preprocess = getattr(model, "preprocess", None) or model.tokenize
    with torch.no_grad():
        model.eval()
        sides = [preprocess([pair[side] for pair in pairs[:size]]) for side in (0, 1)]
        first = float(loss(sides, None))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, max_steps=len(pairs) // size, per_device_train_batch_size=size,
            learning_rate=RATE, report_to=[], disable_tqdm=True, save_strategy="no",
            logging_strategy="no", use_cpu=True,
        )  # fmt: skip
        data = Dataset.from_dict(
            {"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]}
        )
        trainer = InOrder(
            model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[Marks()]
        )
        trainer.train()
    return [b - a for a, b in pairwise(marks)], first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    pairs = read(options.pairs, options.steps * options.batch)
    times: dict[str, list[float]] = {"llmctl": [], "sentence-transformers": []}
    losses = {}
    for _ in range(2):
        for name, train in (("llmctl", ours), ("sentence-transformers", theirs)):
            steps, losses[name] = train(options.model, pairs, options.batch)
            times[name] += steps[WARM_UP:]
    texts = 2 * options.batch
    for name, steps in times.items():
        step = median(steps)
        print(
            f"{name}: {step:.3f} s a step, {texts / step:.0f} texts/s, "
            f"first loss {losses[name]:.5f}"
        )
    print(f"ratio {median(times['sentence-transformers']) / median(times['llmctl']):.2f}")


if __name__ == "__main__":
    main()
