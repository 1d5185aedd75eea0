"""SetFit beside the library of that name, all weights and TF-IDF, from the same few labels.

python -m tests.benchmarks.few_labels MODEL TABLE [--sizes 8,16,64] [--seeds 3] [--test 500]

MODEL is a sentence-transformers folder, TABLE has the columns label and text. Sizes are labels a
class. The library (pip install setfit datasets) is left out where it isn't installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.data.random import key_of
from llmctl.data.tables.labelled import read_examples, resolve_columns
from llmctl.evaluation.baselines import tfidf_logistic_regression
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import resolve
from llmctl.workspace.artefacts import Workspace


def ours(task: str) -> Callable[..., list[str]]:
    def run(model: str, few: Any, tests: Any, seed: int) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "few.jsonl"
            rows = [json.dumps({"label": e.label, "text": e.text}) + "\n" for e in few]
            data.write_text("".join(rows))
            place, layer = Workspace(Path(folder) / "w"), {"seed": seed, "data": {"validation": 0}}
            finetune(place, model, data, resolve(task, layer), name="run")
            return [answer.label for answer in predict(place, "run", tests)]  # type: ignore[attr-defined]

    return run


def library(model: str, few: Any, tests: Any, seed: int) -> list[str]:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    network = SetFitModel.from_pretrained(model)
    rows = Dataset.from_dict({"text": [e.text for e in few], "label": [e.label for e in few]})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, batch_size=16, num_epochs=1, num_iterations=20, seed=seed,
            report_to="none",
        )  # fmt: skip
        Trainer(model=network, args=arguments, train_dataset=rows).train()
    return [str(label) for label in network.predict([e.text for e in tests])]


def tfidf(model: str, few: Any, tests: Any, seed: int) -> list[str]:
    names = sorted({e.label for e in few})
    shares = tfidf_logistic_regression(
        [e.text for e in few], [names.index(e.label) for e in few], [e.text for e in tests],
        len(names), seed,
    )  # fmt: skip
    return [names[place] for place in shares.argmax(-1)]


WAYS = {"setfit": ours("setfit"), "the library": library, "all weights": ours("classify"),
        "TF-IDF": tfidf}  # fmt: skip


def drawn(rows: list[Any], each: int, seed: int) -> list[Any]:
    """So many rows of each class."""
    of_class = defaultdict(list)
    for row in sorted(rows, key=lambda row: key_of(seed, row.text)):
        of_class[row.label].append(row)
    return [row for part in of_class.values() for row in part[:each]]


def measured(options: argparse.Namespace) -> Iterator[tuple[int, str, list[float], float]]:
    columns = resolve_columns(options.table, need_label=True)
    rows = sorted(read_examples(options.table, columns), key=lambda row: key_of(row.text))
    tests, pool = rows[: options.test], rows[options.test :]
    for each in options.sizes:
        for name in options.ways or WAYS:
            shares, seconds = [], 0.0
            for seed in range(options.seeds):
                few, begun = drawn(pool, each, seed), time.perf_counter()
                found = WAYS[name](options.model, few, tests, seed)
                seconds += (time.perf_counter() - begun) / options.seeds
                right = [a == row.label for a, row in zip(found, tests, strict=True)]
                shares.append(float(np.mean(right)))
            yield each, name, shares, seconds


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("--sizes", type=numbers, default=[8, 16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--ways", type=lambda text: text.split("+"))
    for each, name, shares, seconds in measured(parser.parse_args()):
        shown = " ".join(f"{share:.1%}" for share in shares)
        print(f"{each:>3} a class  {name:<12} {np.mean(shares):.1%}  ({shown})  {seconds:.0f} s",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
