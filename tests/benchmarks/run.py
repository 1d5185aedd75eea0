"""Benchmarks, run by hand: each prints a table, and each ratio is measured side by side.

    pip install -e '.[bench]'
    python tests/benchmarks/run.py pretraining    # tokens/s and validation loss beside Hugging Face
    python tests/benchmarks/run.py tokenizing     # text to shards beside datasets.map
    python tests/benchmarks/run.py memory         # peak memory at 1 and 10 times the corpus
    python tests/benchmarks/run.py topics DIR     # 500 labels: pretrained, random weights, TF-IDF
    python tests/benchmarks/run.py startup        # time to --help and to the first step

Results go into RESULTS.md with date, hardware and command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.data.text.documents import Corpus
from tests.benchmarks import peers

MODEL = {"num_layers": 4, "hidden_size": 256}
SEQUENCE, BATCH, VOCABULARY = 128, 32, 16_000


def llmctl(workspace: Path, *words: object) -> dict[str, Any]:
    """Run a command with --json and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "llmctl", *map(str, words), "--json"],
        env={**os.environ, "LLMCTL_WORKSPACE": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def table(rows: list[list[object]]) -> None:
    """Print rows as a Markdown table, the first as its head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in body:
        print("| " + " | ".join(row) + " |")


def pretraining(options: argparse.Namespace) -> None:
    """Both train on the same shards' text, in turn, and are scored by the same evaluation."""
    import torch

    from llmctl.data.shards.files import ShardReader
    from llmctl.formats.filling import fill
    from llmctl.formats.huggingface.tensors import import_model
    from llmctl.formats.open import open_folder
    from llmctl.models.bert import SPEC, Bert
    from llmctl.models.heads.masked_lm import MaskedLM
    from llmctl.tasks.masked_lm.loss import masked_lm_loss
    from llmctl.tasks.pretraining import VALIDATION_SEED, open_pretraining, resolve
    from llmctl.training.batches import Objective
    from llmctl.training.precision import matrix_rate
    from llmctl.training.validation import evaluate
    from llmctl.workspace.artefacts import Workspace

    device = torch.device("cpu")
    steps = options.tokens // (SEQUENCE * BATCH)
    settings = {
        "data": {"sequence_length": SEQUENCE},
        "training": {"batch_size": BATCH, "max_steps": steps, "eval_every": steps},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        llmctl(root, "tokenize", options.corpus, "--vocab-size", VOCABULARY, "--name", "corpus")
        shards = Workspace(root).get("shards", "corpus")
        stage = open_pretraining(shards, resolve("bert", "mini", settings))
        config = stage.config
        held_out = stage.batches("validation", seed=VALIDATION_SEED)
        batches = [held_out(number) for number in range(held_out.per_epoch)]

        def score(model: Any) -> dict[str, float]:
            return evaluate(
                Objective(model, masked_lm_loss), batches.__getitem__, len(batches), device=device
            )

        def score_theirs(model: Any) -> dict[str, float]:
            same = MaskedLM(Bert(config.model))
            with torch.no_grad():
                fill(
                    same.state_dict(),
                    import_model(model.state_dict(), "masked_lm", SPEC, config.model),
                )
            return score(same)

        def ours(precision: str, repeat: int) -> dict[str, Any]:
            name = f"{precision}-{repeat}"
            given = [f"{table}.{key}={value}" for table, values in settings.items()
                     for key, value in values.items()]  # fmt: skip
            words = [word for setting in given for word in ("--set", setting)]
            summary = llmctl(
                root, "pretrain", "--shards", "corpus", "--preset", "mini", "--name", name,
                *words, "--set", f"training.precision={precision}", "--seed", repeat,
            )  # fmt: skip
            log = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
            logged = [r for r in map(json.loads, log) if r["kind"] == "train"]
            return {
                # The first steps allocate memory and choose kernels; nor are they timed over there.
                "tokens_per_second": median(r["tokens_per_second"] for r in logged[1:]),
                "padding_share": median(r["padding"] for r in logged),
                "real_tokens": summary["tokens"],
                "evaluation": score(open_folder(root / "runs" / name / "model").masked_lm()),
            }

        def theirs(precision: str, repeat: int, tokens: int) -> dict[str, Any]:
            return peers.hugging_face_bert_pretraining(
                documents, str(shards.folder / "tokenizer"), sequence_length=SEQUENCE,
                batch_size=BATCH, real_tokens=tokens, learning_rate=options.peer_rate,
                seed=repeat, bf16=precision == "bf16", evaluate=score_theirs,
            )  # fmt: skip

        documents = _sentences(ShardReader(shards.folder, "train"), stage.tokenizer)
        results: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(options.repeats):
            for precision in options.precisions:
                mine = ours(precision, repeat)
                results.setdefault(f"llmctl {precision}", []).append(mine)
                results.setdefault(f"Hugging Face {precision}", []).append(
                    theirs(precision, repeat, mine["real_tokens"])
                )
        rows: list[list[object]] = [
            ["", "tokens/s", "padding", "MLM loss", "NSP loss", "real tokens"]
        ]
        for name, runs in results.items():
            for run in runs:
                scores = run["evaluation"]
                rows.append(
                    [name, f"{run['tokens_per_second']:,.0f}", f"{run['padding_share']:.1%}",
                     f"{scores['mlm_loss']:.3f}", f"{scores['nsp_loss']:.3f}",
                     f"{run['real_tokens']:,}"]
                )  # fmt: skip
        table(rows)
        speed = {
            name: median(run["tokens_per_second"] for run in runs) for name, runs in results.items()
        }
        for precision in options.precisions:
            mine = speed[f"llmctl {precision}"]
            used = mine * stage.flops_per_token()
            rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
            against = ", ".join(
                f"{mine / speed[f'Hugging Face {other}']:.2f} times Hugging Face in {other}"
                for other in options.precisions
            )
            print(
                f"llmctl {precision}: {against}; {used / 1e9:.0f} GFLOP/s, {used / rate:.0%} of "
                f"this machine's {precision} matrix peak ({rate / 1e9:.0f})"
            )


def _sentences(reader: Any, tokenizer: Any) -> list[list[str]]:
    """The text of every sentence of every document."""
    documents = []
    for number in range(len(reader)):
        ids, starts = reader.tokens(number), reader.sentence_starts(number).tolist()
        spans = zip(starts, [*starts[1:], len(ids)], strict=True)
        documents.append([tokenizer.decode(ids[a:b].tolist()) for a, b in spans])
    return documents


def tokenizing(options: argparse.Namespace) -> None:
    """The same tokenizer and the same number of processes, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = root / "text.jsonl"
        write_corpus(options.corpus, text, options.megabytes)
        size = text.stat().st_size / 1e6
        llmctl(root / "w", "tokenize", text, "--vocab-size", VOCABULARY, "--name", "learn")
        tokenizer = root / "w" / "tokenizers" / "learn"
        seconds: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            begun = time.perf_counter()
            summary = llmctl(
                root / "w", "tokenize", text, "--tokenizer", "learn", "--name", f"r{repeat}",
                "--workers", options.workers,
            )  # fmt: skip
            whole = time.perf_counter() - begun
            result = peers.hugging_face_tokenize(
                [str(text)], str(tokenizer), options.workers, str(root / f"out{repeat}")
            )
            for name, value in (
                ("llmctl tokenize, the whole process", whole),
                ("llmctl tokenize, reading to shards", summary["seconds"]),
                ("datasets, map and save", result["seconds"]),
                ("datasets, load, map and save", result["read_seconds"] + result["seconds"]),
            ):
                seconds.setdefault(name, []).append(value)
        rows: list[list[object]] = [["", "MB/s (median)", "runs"]]
        for name, values in seconds.items():
            speeds = [size / value for value in values]
            rows.append([name, f"{median(speeds):.1f}", [round(speed, 1) for speed in speeds]])
        table(rows)
        _, ours, bare, theirs = seconds.values()
        for name, other in (("map and save", bare), ("load, map and save", theirs)):
            ratios = [b / a for a, b in zip(ours, other, strict=True)]
            print(
                f"reading to shards: {median(ratios):.2f} times {name} "
                f"({size:.0f} MB, {options.workers} processes each)"
            )


def write_corpus(source: str, target: Path, megabytes: float) -> None:
    """JSON lines of the corpus's documents, again and again with a number, up to a size."""
    documents = [document.text for document in Corpus([source])]
    written, turn = 0, 0
    with target.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            for text in documents:
                line = json.dumps({"text": f"{text} {turn}"}, ensure_ascii=False) + "\n"
                written += file.write(line)
                if written >= megabytes * 1e6:
                    break
            turn += 1


def memory(options: argparse.Namespace) -> None:
    """Peak memory of the largest process, at a corpus and at ten times it."""
    rows: list[list[object]] = [["corpus", "peak memory"]]
    peaks = []
    for factor in (1, 10):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            text = root / "text.jsonl"
            write_corpus(options.corpus, text, options.megabytes * factor)
            llmctl(root / "w", "tokenize", options.corpus, "--vocab-size", 8000, "--name", "learn")
            command = [
                sys.executable, "-m", "llmctl", "tokenize", str(text), "--tokenizer", "learn",
                "--workers", "1", "--quiet",
            ]  # fmt: skip
            process = subprocess.Popen(command, env={**os.environ, "LLMCTL_WORKSPACE": f"{root}/w"})
            _, _, usage = os.wait4(process.pid, 0)
            peaks.append(usage.ru_maxrss / 1024)
            rows.append([f"{options.megabytes * factor:.0f} MB", f"{peaks[-1]:.0f} MiB"])
    table(rows)
    print(f"ratio {peaks[1] / peaks[0]:.2f}")


def topics(options: argparse.Namespace) -> None:
    """recipes/topics.sh on a table: prints the report that it ends with."""
    subprocess.run(
        ["bash", str(Path(__file__).parents[2] / "recipes" / "topics.sh"), options.data,
         *options.columns],
        check=True,
        env={**os.environ, "LLMCTL_PYTHON": sys.executable},
    )  # fmt: skip


def startup(options: argparse.Namespace) -> None:
    """Whole processes."""

    def seconds(words: list[str], **environment: str) -> float:
        times = []
        for _ in range(options.repeats):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, *words], check=True, capture_output=True,
                env={**os.environ, **environment},
            )  # fmt: skip
            times.append(time.perf_counter() - begun)
        return median(times)

    from llmctl.cli.app import COMMANDS

    rows: list[list[object]] = [["command", "seconds (median)"]]
    rows.append(["python -c pass", f"{seconds(['-c', 'pass']):.3f}"])
    rows.append(["llmctl --help", f"{seconds(['-m', 'llmctl', '--help']):.3f}"])
    for name in COMMANDS:
        rows.append([f"llmctl {name} --help", f"{seconds(['-m', 'llmctl', name, '--help']):.3f}"])
    rows.append(["python -c 'import torch'", f"{seconds(['-c', 'import torch']):.3f}"])
    with tempfile.TemporaryDirectory() as folder:
        llmctl(Path(folder), "tokenize", "python:docs", "--name", "docs")
        firsts = []
        for repeat in range(options.repeats):
            name = f"r{repeat}"
            begun = time.time()
            llmctl(
                Path(folder), "pretrain", "--name", name, "--set", "training.max_steps=1",
                "--set", "training.log_every=1", "--set", "data.eval_batches=1",
            )  # fmt: skip
            log = Path(folder) / "runs" / name / "metrics.jsonl"
            first = json.loads(log.read_text().splitlines()[0])
            created = json.loads((log.parent / "progress.json").read_text())["started"]
            firsts.append(created - begun + first["elapsed"])
        rows.append(["llmctl pretrain: to the end of step 1", f"{median(firsts):.2f}"])
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for function in (pretraining, tokenizing, memory, topics, startup):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--corpus", default="python:docs", help="as llmctl tokenize takes it")
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--tokens", type=int, default=400_000, help="of each pretraining")
        command.add_argument("--peer-rate", type=float, default=1e-3, help="its learning rate")
        command.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
        command.add_argument("--megabytes", type=float, default=20)
        command.add_argument("--workers", type=int, default=2)
        if function is topics:
            command.add_argument("data", help="a labelled table")
            command.add_argument("columns", nargs="*", help="as llmctl finetune takes them")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
