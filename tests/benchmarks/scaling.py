"""The constants of llmctl/models/scaling.py: small trainings and the law fitted to them.

    python tests/benchmarks/scaling.py measure POINTS.jsonl [--jobs 2]   # adds what is missing
    python tests/benchmarks/scaling.py fit POINTS.jsonl

Each training ends with a decayed learning rate. The losses don't depend on the machine's speed, so
others may compute beside it. The fit minimises Hoffmann's Huber loss of the logarithm's residuals.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.models.scaling import ScalingLaw, entropy, repeated

DATA = Path(os.environ.get("LLMCTL_DATA", Path(__file__).parents[3] / "shared" / "data"))

BPE = ["--tokenizer", "bpe", "--vocab-size", 8000]
SHARDS: dict[str, list[object]] = {
    "code": ["python:code", *BPE, "--validation", 0.05],
    "wiki": [DATA / "wiki_sample" / "wiki.txt", DATA / "wikitext-2" / "valid.txt", *BPE,
             "--validation", 0.05],
    "shakespeare": [DATA / "tinyshakespeare" / "input.txt", "--tokenizer", "characters",
                    "--document", "file", "--split", "tail"],
    "docs": ["python:docs", "--tokenizer", "wordpiece", "--vocab-size", 8000],
}  # fmt: skip

# Shards, architecture, layers, width, rows of a step, steps.
VOCABULARY = {"code": 8000, "wiki": 8000, "shakespeare": 65, "docs": 8000}

DELTA = 0.03
"""Of the Huber loss."""
BELIEVED = np.log([0.2, 15.0, 0.34, 15.0, 0.28, 0.15, 8192.0])
"""E, A, α, B, β, γ and the critical batch: the exponents as Hoffmann's …"""
PRIOR = np.array([3e-4, 0, 1e-2, 0, 1e-2, 0, 3e-4])
"""… and how much is lost by the logarithm's square beside them."""

RUNS: list[tuple[str, str, int, int, int, int]] = [
    ("code", "nanochat", 2, 64, 8, 128),
    ("docs", "bert", 2, 128, 32, 128),
    ("code", "nanochat", 2, 128, 2, 512),
    ("code", "nanochat", 4, 256, 8, 128),
    ("docs", "bert", 2, 64, 32, 128),
    ("code", "gpt", 2, 128, 8, 128),
    ("shakespeare", "nanochat", 2, 64, 8, 256),
    ("docs", "bert", 2, 128, 32, 384),
    ("code", "nanochat", 2, 128, 8, 512),
    ("code", "llama", 2, 128, 8, 128),
    ("docs", "bert", 4, 256, 32, 128),
    ("code", "gpt", 2, 128, 8, 512),
    ("wiki", "nanochat", 2, 128, 8, 256),
    ("code", "nanochat", 2, 128, 32, 128),
    ("code", "nanochat", 3, 192, 8, 384),
    ("docs", "bert", 2, 128, 8, 512),
    ("shakespeare", "nanochat", 2, 128, 8, 512),
    ("code", "nanochat", 2, 64, 8, 512),
    ("code", "nanochat", 2, 128, 8, 128),
    ("docs", "modernbert", 2, 64, 8, 512),
    ("docs", "modernbert", 2, 128, 8, 512),
    ("docs", "modernbert", 4, 256, 8, 512),
    ("docs", "modernbert", 2, 128, 32, 384),
    ("docs", "modernbert", 2, 64, 8, 2048),
    ("docs", "modernbert", 2, 128, 8, 2048),
    ("docs", "modernbert", 4, 256, 8, 2048),
    ("docs", "modernbert", 2, 128, 8, 6144),
]


@dataclass(frozen=True)
class Point:
    """A training and what it came to."""

    shards: str
    arch: str
    layers: int
    width: int
    tokens_per_step: float
    weights: float
    tokens: float
    unique: float
    entropy: float
    loss: float


def _published(
    shards: str, arch: str, layers: int, width: int, step: int, steps: int, loss: float
) -> Point:
    """A training of RESULTS.md, at the default rates; the text's figures are those of ``measure``.

    step: tokens in one.
    """
    unique, entropy_ = {"code": (2_742_793, 6.8680), "shakespeare": (1_003_854, 3.3115)}[shards]
    weights = 12 * layers * width**2 + width * VOCABULARY[shards]
    return Point(
        shards, arch, layers, width, step, weights, step * steps, unique, entropy_, loss
    )  # fmt: skip


PUBLISHED = [
    _published("shakespeare", "nanochat", 4, 128, 2048, 751, 1.5477),
    _published("shakespeare", "nanochat", 4, 128, 2048, 903, 1.5307),
    _published("shakespeare", "nanochat", 4, 128, 2048, 5758, 1.4130),
    _published("shakespeare", "nanochat", 4, 128, 2048, 600, 1.599),
    _published("shakespeare", "nanochat", 4, 128, 2048, 2000, 1.462),
    _published("shakespeare", "nanochat", 4, 128, 4096, 2000, 1.449),
    _published("shakespeare", "gpt", 4, 128, 2048, 600, 1.676),
    _published("shakespeare", "llama", 4, 128, 2048, 600, 1.640),
    # Given in bits per byte there, 2.7265 nats of a token each.
    _published("code", "nanochat", 4, 256, 2048, 500, 4.221),
    _published("code", "nanochat", 4, 256, 2048, 1918, 3.469),
]
"""So many steps that this file would take hours."""


def llmctl(workspace: Path, *words: object, threads: int = 0) -> dict[str, Any]:
    environment = {**os.environ, "LLMCTL_WORKSPACE": str(workspace)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "llmctl", *map(str, words), "--json", "--quiet"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def measure(options: argparse.Namespace) -> None:
    """Run what POINTS.jsonl does not hold yet."""
    from llmctl.models.flops import multiplied_weights
    from llmctl.models.spec import backbones
    from llmctl.tasks.pretraining import open_pretraining, resolve
    from llmctl.workspace.artefacts import Workspace

    path: Path = options.points
    root = options.workspace
    lock = threading.Lock()
    known = [json.loads(line)["run"] for line in path.open()] if path.exists() else []
    for name, words in SHARDS.items():
        llmctl(root, "tokenize", *words, "--name", name)

    def one(run: tuple[str, str, int, int, int, int]) -> None:
        shards, arch, layers, width, rows, steps = run
        model = {"num_layers": layers, "hidden_size": width, "num_heads": width // 64}
        training = {"batch_size": rows, "max_steps": steps, "compile": "off", "precision": "bf16"}
        data = {"eval_batches": 64}
        given = {"model": model, "training": training, "data": data}
        sets = [f"{table}.{key}={value}" for table, part in given.items()
                for key, value in part.items()]  # fmt: skip
        summary = llmctl(
            root, "pretrain", "--arch", arch, "--shards", shards,
            "--name", "-".join(map(str, run)),
            *[word for text in sets for word in ("--set", text)], threads=options.threads,
        )  # fmt: skip
        folder = Workspace(root).get("shards", shards)
        task = open_pretraining(folder, resolve(arch, "mini", given))
        reader = task.reader("train")
        counts = reader.token_counts(task.config.model.vocab_size)
        point = {
            "run": list(run),
            "tokens_per_step": summary["tokens"] / summary["steps"],
            "weights": multiplied_weights(backbones(task.build_model())["body."]),
            "tokens": summary["tokens"],
            "unique": int(reader.document_lengths.sum()),
            "entropy": entropy(counts),
            "loss": summary["validation"]["loss"],
            "seconds": summary["seconds"],
        }
        with lock, path.open("a") as stream:
            stream.write(json.dumps(point) + "\n")
        print(point, flush=True)

    missing = [run for run in RUNS if list(run) not in known]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, missing))


def fit(options: argparse.Namespace) -> None:
    """Print the constants, and what they predict beside what was measured."""
    points = []
    for line in options.points.open():
        record = json.loads(line)
        shards, arch, layers, width, *_ = record.pop("run")
        record.pop("seconds")
        points.append(Point(shards, arch, layers, width, **record))
    # With Muon at the usual rate too few tokens a step learn less: none of those is chosen.
    encoders = {arch: [p for p in points if p.arch == arch] for arch in ("bert", "modernbert")}
    causal = [
        p for p in [*points, *PUBLISHED] if p.arch not in encoders and p.tokens_per_step > 1500
    ]
    # A text and a shape are kept to see how well the law carries over.
    fitted = [point for point in causal if point.shards != "wiki" and point.layers != 3]
    laws, spread = _fit(fitted)
    _report(causal, laws, spread)
    for arch, masked in encoders.items():
        if len(masked) > 3:
            law, spread = _fit_masked(masked, laws["nanochat"])
            _report(masked, {arch: law}, spread)


def _predicted(point: Point, law: ScalingLaw) -> float:
    """In units of the entropy."""
    worth = law.worth(point.tokens, point.unique, point.tokens_per_step)
    return law.loss(point.weights, worth, VOCABULARY[point.shards])


def _spread(points: list[Point], laws: dict[str, ScalingLaw], constants: int) -> float:
    errors = [np.log(_predicted(p, laws[p.arch]) * p.entropy / p.loss) for p in points]
    return 2 * float(np.sqrt(np.square(errors).sum() / max(1, len(points) - constants)))


def _fit(points: list[Point]) -> tuple[dict[str, ScalingLaw], float]:
    """All constants, with B by architecture."""
    from scipy.optimize import minimize

    archs = ["nanochat", *sorted({point.arch for point in points} - {"nanochat"})]

    def laws(logs: np.ndarray) -> dict[str, ScalingLaw]:
        e, a, alpha, b, beta, gamma, critical, *rest = np.exp(np.clip(logs, -20, 20)).tolist()
        return {
            arch: ScalingLaw(e, a, alpha, b * factor, beta, gamma, critical)
            for arch, factor in zip(archs, [1.0, *rest], strict=True)
        }

    def objective(logs: np.ndarray) -> float:
        found = laws(logs)
        total = 0.0
        for point in points:
            error = abs(np.log(_predicted(point, found[point.arch]) * point.entropy / point.loss))
            small = error < DELTA
            total += error**2 / 2 if small else DELTA * (error - DELTA / 2)
        # So few points hardly tell the exponents and E apart.
        return float(total + np.sum(PRIOR * (logs[: len(BELIEVED)] - BELIEVED) ** 2))

    best = None
    for scale in (0.5, 1.0, 2.0):
        start = np.concatenate([BELIEVED + np.log([1, scale, 1, 1 / scale, 1, 1, 1]),
                                np.zeros(len(archs) - 1)])  # fmt: skip
        for _ in range(3):  # begun anew, the simplex leaves where it was stuck
            result = minimize(objective, start, method="Nelder-Mead",
                              options={"maxiter": 20_000, "maxfev": 20_000})  # fmt: skip
            start = result.x
        if best is None or result.fun < best.fun:
            best = result
    assert best is not None
    found = laws(best.x)
    return found, _spread(points, found, len(best.x))


def _fit_masked(points: list[Point], like: ScalingLaw) -> tuple[ScalingLaw, float]:
    """E, A and B alone, with the exponents of the causal law."""
    from scipy.optimize import nnls

    worth = [like.worth(p.tokens, p.unique, p.tokens_per_step) for p in points]
    ones = [ScalingLaw(*unit) for unit in (
        (1, 0, like.weights_exponent, 0, like.tokens_exponent),
        (0, 1, like.weights_exponent, 0, like.tokens_exponent),
        (0, 0, like.weights_exponent, 1, like.tokens_exponent, like.vocabulary_exponent),
    )]  # fmt: skip
    target = np.array([p.loss / p.entropy for p in points])
    columns = np.array([[one.loss(p.weights, w, VOCABULARY[p.shards]) for one in ones]
                        for p, w in zip(points, worth, strict=True)])  # fmt: skip
    (e, a, b), _ = nnls(columns / target[:, None], np.ones(len(points)))
    law = replace(
        like, irreducible=float(e), weights_factor=float(a), tokens_factor=float(b)
    )  # fmt: skip
    return law, _spread(points, {points[0].arch: law}, 3)


def _report(points: list[Point], laws: dict[str, ScalingLaw], spread: float) -> None:
    for arch, law in laws.items():
        print(arch, law)
    print(f"two standard deviations of the residuals: {spread:.1%}")
    print("| text | architecture | layers × width | N | a step | D | new text | loss | fitted |")
    print("| --- |" + " --- |" * 8)
    for point in points:
        fresh = repeated(point.tokens, point.unique)
        loss = _predicted(point, laws[point.arch]) * point.entropy
        print(
            f"| {point.shards} | {point.arch} | {point.layers} × {point.width} | "
            f"{point.weights / 1e6:.2f} M | {point.tokens_per_step:,.0f} | "
            f"{point.tokens / 1e6:.2f} M | {fresh / 1e6:.2f} M | {point.loss:.3f} | {loss:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for function in (measure, fit):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("points", type=Path)
        command.add_argument("--workspace", type=Path, default=Path("workspace"))
        command.add_argument("--jobs", type=int, default=1)
        command.add_argument("--threads", type=int, default=0, help="of each; 0: PyTorch's choice")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
