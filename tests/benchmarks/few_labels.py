"""SetFit beside the library of that name, all weights and TF-IDF, from the same few labels.

python -m tests.benchmarks.few_labels MODEL TABLE [--sizes 8,16,64] [--seeds 3] [--test 500]
    [--ways "setfit+the library"] [--label-column 1 --text-column 2,3]

MODEL is a sentence-transformers folder, TABLE has labels and texts. Sizes are labels a class; each
seed draws others, the same for all ways, and the rows to test on are the same for all. The interval
is a bootstrap's over the rows, of the mean over the seeds. Times are of training and answering.
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
from numpy.typing import NDArray

from llmctl.data.random import key_of
from llmctl.data.tables.labelled import read_examples, resolve_columns
from llmctl.evaluation.baselines import tfidf_logistic_regression
from llmctl.evaluation.bootstrap import percentile_interval
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


def interval(right_SN: NDArray[np.bool_], resamples: int = 2000) -> tuple[float, float]:
    """Where the mean over seeds lies, by drawing the rows to test on anew."""
    generator, count = np.random.default_rng(0), right_SN.shape[1]
    means_N = right_SN.mean(0)
    drawn = [means_N[generator.integers(count, size=count)].mean() for _ in range(resamples)]
    return percentile_interval(drawn)


def measured(
    options: argparse.Namespace,
) -> Iterator[tuple[int, str, NDArray[np.bool_], float]]:
    """Of each size and way which rows each seed got right (S, N), and the seconds of a seed."""
    columns = resolve_columns(
        options.table,
        text_column=options.text_column,
        label_column=options.label_column,
        need_label=True,
    )
    rows = sorted(read_examples(options.table, columns), key=lambda row: key_of(row.text))
    tests, pool = rows[: options.test], rows[options.test :]
    for each in options.sizes:
        for name in options.ways or WAYS:
            right, seconds = [], 0.0
            for seed in range(options.seeds):
                few, begun = drawn(pool, each, seed), time.perf_counter()
                found = WAYS[name](options.model, few, tests, seed)
                seconds += (time.perf_counter() - begun) / options.seeds
                right.append([a == row.label for a, row in zip(found, tests, strict=True)])
            yield each, name, np.array(right), seconds


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--sizes", type=numbers, default=[8, 16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--ways", type=lambda text: text.split("+"))
    for each, name, right_SN, seconds in measured(parser.parse_args()):
        low, high = interval(right_SN)
        shown = " ".join(f"{share:.1%}" for share in right_SN.mean(1))
        print(f"{each:>3} a class  {name:<12} {right_SN.mean():.1%} ({low:.1%} to {high:.1%})  "
              f"seeds {shown}  {seconds:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
