"""Four hosts train one model; one is cut off from the others, comes back, and the run goes on.

    python -m tests.benchmarks.four_hosts [--away 40] [--steps 400]

The hosts are network namespaces on a bridge, each with a torchrun of its own that is started again
whenever it ends, as a cluster's scheduler does; they share the disk alone. It needs root. What is
checked: while the host is away no step is taken; after its return every step is in the log once,
and losses agree with those of a run of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llmctl.workspace.tensors import read_tensors
from tests.conftest import SUBJECTS, make_sentences

HOSTS = 4
BRIDGE, NET, PORT = "llmctl-br", "10.77.0", 29400


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def hosts() -> Iterator[list[str]]:
    """Names of namespaces that reach each other and nothing else."""
    names = [f"llmctl-h{number}" for number in range(HOSTS)]
    with contextlib.ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("link", "add", cable(number), "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", cable(number), "master", BRIDGE, "up")
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{NET}.{number + 1}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")
        yield names


def cable(number: int) -> str:
    return f"llmctl-v{number}"


def training(root: Path, name: str, steps: int) -> list[str]:
    return [
        "-m", "llmctl", "pretrain", "--workspace", str(root), "--arch", "nanochat",
        "--preset", "nano", "--set", "model.hidden_size=32", "--set", "model.num_heads=2",
        "--set", "data.sequence_length=64", "--set", "model.max_positions=64",
        "--set", "training.batch_size=12", "--set", f"training.max_steps={steps}",
        "--set", "training.log_every=5", "--set", "training.checkpoint_every=20",
        "--set", "training.eval_every=100", "--set", "training.precision=fp32",
        "--set", "training.compile=off", "--quiet", "--name", name,
    ]  # fmt: skip


def start_host(number: int, name: str, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A host that starts its part of the training until it has ended well."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(HOSTS),
        "--nproc-per-node", "1", "--max-restarts", "9", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{NET}.1:{PORT}", "--rdzv-id", "four",
        "--rdzv-conf", f"read_timeout=10,is_host={number == 0}",
        "--local-addr", f"{NET}.{number + 1}",
    ]  # fmt: skip
    loop = 'until "$@"; do sleep 1; done'
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "bash", "-c", loop, "host", *torchrun, *words],
            env=environment, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps_done(root: Path, name: str) -> int:
    try:
        return int(json.loads((root / "runs" / name / "progress.json").read_text()).get("step", 0))
    except (OSError, ValueError):
        return 0


def wait_until(root: Path, name: str, step: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while (done := steps_done(root, name)) < step:
        if time.monotonic() > deadline:
            raise SystemExit(f"run {name} is at step {done} after {seconds:.0f} s")
        time.sleep(0.2)
    return done


def losses(root: Path, name: str) -> list[tuple[str, int, float]]:
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, lines)]


def check(root: Path) -> None:
    ours, theirs = losses(root, "four"), losses(root, "alone")
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs], "steps differ"
    most = max(abs(a[2] - b[2]) / b[2] for a, b in zip(ours, theirs, strict=True))
    weights = [
        read_tensors(root / "runs" / name / "model" / "model.safetensors")
        for name in ("four", "alone")
    ]
    apart = max(float((value - weights[1][key]).abs().max()) for key, value in weights[0].items())
    print(f"{len(ours)} records, each step once; at most losses differ by {most:.1e} of "
          f"themselves, weights by {apart:.1e}")  # fmt: skip
    assert most < 1e-3, "losses differ"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--away", type=float, default=40.0, help="seconds")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as undo:
        root = Path(folder)
        generator, corpus = random.Random(0), root / "stories.txt"
        subjects = generator.choices(list(SUBJECTS), k=300)
        corpus.write_text("".join(f"{make_sentences(s, 6, generator)}\n" for s in subjects))
        tokenize = ["-m", "llmctl", "tokenize", str(corpus), "--workspace", str(root),
                    "--tokenizer", "bpe", "--vocab-size", "300", "--document", "line",
                    "--validation", "0.1", "--quiet"]  # fmt: skip
        subprocess.run([sys.executable, *tokenize], check=True)
        subprocess.run([sys.executable, *training(root, "alone", options.steps)], check=True)
        names = undo.enter_context(hosts())
        words = training(root, "four", options.steps)
        logs = [root / f"host-{number}.log" for number in range(HOSTS)]
        processes = []
        for number, name in enumerate(names):
            process = start_host(number, name, words, logs[number])
            undo.callback(end, process)
            processes.append(process)
        try:
            begun = wait_until(root, "four", options.steps // 4, 90)
            print(f"host {HOSTS} is cut off at step {begun}")
            ip("link", "set", cable(HOSTS - 1), "down")
            time.sleep(5)
            held = steps_done(root, "four")
            time.sleep(max(0.0, options.away - 5))
            assert steps_done(root, "four") == held, "steps were taken without it"
            ip("link", "set", cable(HOSTS - 1), "up")
            back = time.monotonic()
            print(f"host {HOSTS} is back after {options.away:.0f} s, the run at step {held}")
            wait_until(root, "four", held + 1, 300)
            print(f"the run goes on after {time.monotonic() - back:.0f} s")
            for process in processes:
                process.wait(300)
        except BaseException:
            for log in logs:
                print(f"== {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise
        check(root)


if __name__ == "__main__":
    main()
