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

from llmctl.data.documents import Corpus
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

    from llmctl.data.shards import ShardReader
    from llmctl.models.bert import Bert
    from llmctl.objectives.masked_lm import from_hugging_face
    from llmctl.stages.pretrain import VALIDATION_SEED, Pretraining, resolve
    from llmctl.stages.session import Machine
    from llmctl.training.plan import plan_masked_lm
    from llmctl.training.precision import matrix_rate
    from llmctl.training.trainer import evaluate
    from llmctl.workspace.artefacts import Workspace

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        llmctl(root, "tokenize", options.corpus, "--vocab-size", VOCABULARY, "--name", "corpus")
        workspace = Workspace(root)
        shards = workspace.get("shards", "corpus")
        config = resolve(
            "bert", "mini",
            {"data": {"sequence_length": SEQUENCE}, "training": {"batch_size": BATCH}},
        )  # fmt: skip
        stage = Pretraining(shards, config)
        held_out = stage.batches("validation", seed=VALIDATION_SEED)
        batches = [
            stage.collate(held_out, n, seed=VALIDATION_SEED)
            for n in range(held_out.batches_per_epoch)
        ]

        def score(model: Any) -> dict[str, float]:
            return evaluate(model, batches.__getitem__, len(batches), device=torch.device("cpu"))

        def score_theirs(model: Any) -> dict[str, float]:
            body = Bert(stage.config.model)
            return score(from_hugging_face(body, model.state_dict()))

        reader = ShardReader(shards.folder, "train")
        documents = []
        for number in range(len(reader)):
            ids, starts = reader.tokens(number), reader.sentence_starts(number).tolist()
            ends = [*starts[1:], len(ids)]
            documents.append(
                [
                    stage.tokenizer.decode(ids[a:b].tolist())
                    for a, b in zip(starts, ends, strict=True)
                ]
            )
        rows: list[list[object]] = [
            ["", "tokens/s", "padding", "MLM loss", "NSP loss", "real tokens"]
        ]
        speeds: dict[str, list[float]] = {"llmctl fp32": [], "llmctl auto": [], "Hugging Face": []}
        for repeat in range(options.repeats):
            for precision in ("fp32", "auto"):
                steps = options.tokens // (SEQUENCE * BATCH)
                name = f"{precision}-{repeat}"
                summary = llmctl(
                    root, "pretrain", "--shards", "corpus", "--preset", "mini", "--name", name,
                    "--set", f"training.max_steps={steps}", "--set", f"training.batch_size={BATCH}",
                    "--set", f"training.precision={precision}",
                    "--set", f"training.eval_every={steps}", "--seed", repeat,
                )  # fmt: skip
                log = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
                logged = [r for r in map(json.loads, log) if r["kind"] == "train"]
                speed = median(r["tokens_per_second"] for r in logged[1:])
                speeds[f"llmctl {precision}"].append(speed)
                from llmctl.interop.model_folder import read_model_folder

                ours = score(read_model_folder(root / "runs" / name / "model").masked_lm())
                rows.append(
                    [f"llmctl {precision} ({summary['precision']})", f"{speed:,.0f}",
                     f"{logged[-1]['padding']:.1%}", f"{ours['mlm_loss']:.3f}",
                     f"{ours['nsp_loss']:.3f}", f"{summary['tokens']:,}"]
                )  # fmt: skip
            theirs = peers.hugging_face_bert_pretraining(
                documents, str(shards.folder / "tokenizer"), sequence_length=SEQUENCE,
                batch_size=BATCH, real_tokens=summary["tokens"], learning_rate=options.peer_rate,
                seed=repeat, evaluate=score_theirs,
            )  # fmt: skip
            speeds["Hugging Face"].append(theirs["tokens_per_second"])
            rows.append(
                ["Hugging Face", f"{theirs['tokens_per_second']:,.0f}",
                 f"{theirs['padding_share']:.1%}", f"{theirs['evaluation']['mlm_loss']:.3f}",
                 f"{theirs['evaluation']['nsp_loss']:.3f}", f"{theirs['real_tokens']:,}"]
            )  # fmt: skip
        table(rows)
        peer = median(speeds["Hugging Face"])
        with torch.device("meta"):
            model = stage.build_model()
        machine = Machine(torch.device("cpu"), "fp32")
        for name, dtype in (("fp32", torch.float32), ("auto", torch.bfloat16)):
            ours_speed = median(speeds[f"llmctl {name}"])
            plan = plan_masked_lm(
                model, stage.config.model, sequence_length=SEQUENCE, batch_size=BATCH,
                mask_rate=0.15, total_steps=None, device=machine.device, precision=name,
            )  # fmt: skip
            rate = matrix_rate(machine.device, dtype)
            used = ours_speed * plan.flops_per_token
            print(
                f"llmctl {name}: {ours_speed / peer:.2f} times Hugging Face; "
                f"{used / 1e9:.0f} GFLOP/s, {used / rate:.0%} of this machine's "
                f"{dtype} matrix peak ({rate / 1e9:.0f})"
            )


def tokenizing(options: argparse.Namespace) -> None:
    """The same tokenizer and the same number of processes, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = root / "text.jsonl"
        write_corpus(options.corpus, text, options.megabytes)
        size = text.stat().st_size / 1e6
        llmctl(root / "w", "tokenize", text, "--vocab-size", VOCABULARY, "--name", "learn")
        tokenizer = root / "w" / "tokenizers" / "learn"
        ours, theirs = [], []
        for repeat in range(options.repeats):
            begun = time.perf_counter()
            llmctl(
                root / "w", "tokenize", text, "--tokenizer", "learn", "--name", f"r{repeat}",
                "--workers", options.workers,
            )  # fmt: skip
            ours.append(size / (time.perf_counter() - begun))
            result = peers.hugging_face_tokenize(
                [str(text)], str(tokenizer), options.workers, str(root / f"out{repeat}")
            )
            theirs.append(result["mb_per_second"])
        table(
            [["", "MB/s (median)", "runs"],
             ["llmctl tokenize (whole command)", f"{median(ours):.1f}",
              [round(x, 1) for x in ours]],
             ["datasets.map + save", f"{median(theirs):.1f}", [round(x, 1) for x in theirs]]]
        )  # fmt: skip
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"ratio {median(ratios):.2f} ({size:.0f} MB, {options.workers} processes each)")


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
        command.add_argument("--megabytes", type=float, default=20)
        command.add_argument("--workers", type=int, default=2)
        if function is topics:
            command.add_argument("data", help="a labelled table")
            command.add_argument("columns", nargs="*", help="as llmctl finetune takes them")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
