"""How long a language model takes to be loaded and how much memory, beside transformers; by hand.

    python -m tests.benchmarks.loading MODEL [--rounds 5] [--threads 2]

MODEL: a folder of transformers' with safetensors. Each of the two loads it with its tokenizer, in
processes of its own and in turns, from the system's cache of files, and looks at a number in every
page of the weights, so that they are in memory. Shown are

- whole: seconds from the start of the process, with all that each imports;
- loading: those behind the imports;
- of the two, how much a core computed for it (CPU), which other work on the machine changes less;
- peak: the greatest resident memory since the imports (VmHWM, set back there) less that of before,
  as a multiple of the weights' bytes; and how much at the end is the process's own (RssAnon), for
  what it has mapped of a file counts as resident too, but the system takes that back when it likes.

Then, of whole programs that write one token behind a prompt, ``llmctl generate`` and a script of
five lines with transformers: seconds from start to end, and of computing.

Medians, least to greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

HOW = ("llmctl", "transformers")
PAGE = 4096
COLUMNS = {
    "whole": "whole, s", "whole_cpu": "CPU, s", "loading": "loading, s",
    "loading_cpu": "CPU, s", "peak": "peak, × weights", "own": "own, × weights",
}  # fmt: skip


def memory(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def load(how: str, folder: Path, started: float) -> dict[str, float]:
    """One loading, in this process, which was started then."""
    import torch

    opened: Any
    if how == "llmctl":
        from llmctl.formats.open import open_folder as opened
    else:
        import transformers
        from transformers.models.llama import modeling_llama as opened
    Path("/proc/self/clear_refs").write_text("5")
    before, own = memory("VmRSS"), memory("RssAnon")
    start, start_cpu = time.monotonic(), time.process_time()
    if how == "llmctl":
        model = opened(folder)
        network = model.causal_lm().eval()
    else:
        model = transformers.AutoTokenizer.from_pretrained(folder)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    weights = list(dict.fromkeys(network.parameters()))
    with torch.no_grad():
        total = sum(float(w.view(-1)[:: PAGE // w.element_size()].sum()) for w in weights)
    end, end_cpu = time.monotonic(), time.process_time()
    size = sum(weight.nbytes for weight in weights)
    return {
        "whole": end - started, "whole_cpu": end_cpu, "loading": end - start,
        "loading_cpu": end_cpu - start_cpu, "peak": (memory("VmHWM") - before) / size,
        "own": (memory("RssAnon") - own) / size, "bytes": size, "sum": total,
    }  # fmt: skip


PROMPT = "The capital of France is"
SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[3]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = model.generate(
    **tokenizer(sys.argv[2], return_tensors="pt"), max_new_tokens=1, do_sample=False
)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""


def write_one_token(how: str, model: Path, threads: int) -> dict[str, float]:
    """One program from its start to its end."""
    words = [sys.executable, "-c", SCRIPT, str(model), PROMPT, str(threads)]
    if how == "llmctl":
        words = [sys.executable, "-m", "llmctl", "generate", "--from", str(model)]
        words += ["--prompt", PROMPT, "--max-new-tokens", "1", "--generation-config", "none"]
        words += ["--threads", str(threads)]
    before, start = os.times(), time.monotonic()
    result = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds, after = time.monotonic() - start, os.times()
    assert result.stdout.startswith(PROMPT), result.stdout
    computed = after.children_user + after.children_system
    return {
        "seconds": seconds,
        "cpu": computed - before.children_user - before.children_system,
        "said": hash(result.stdout.strip()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=HOW, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps(load(options.only, options.model, options.started)))
        return
    for path in options.model.glob("*.safetensors"):
        path.read_bytes()
    found: dict[str, list[dict[str, float]]] = {how: [] for how in HOW}
    programs: dict[str, list[dict[str, float]]] = {how: [] for how in HOW}
    words = [sys.executable, "-m", "tests.benchmarks.loading", str(options.model)]
    words += ["--threads", str(options.threads), "--only"]
    for number in range(options.rounds):
        for how in HOW if number % 2 else reversed(HOW):
            asked = [*words, how, "--started", str(time.monotonic())]
            result = subprocess.run(asked, check=True, capture_output=True, text=True)
            found[how].append(json.loads(result.stdout.splitlines()[-1]))
        for how in HOW if number % 2 else reversed(HOW):
            programs[how].append(write_one_token(how, options.model, options.threads))
    ours, theirs = (found[how] for how in HOW)
    assert len({run["sum"] for run in ours + theirs}) == 1, "other weights"
    print(f"{ours[0]['bytes'] / 1e6:.0f} MB of weights")
    table(found, COLUMNS)
    assert len({run["said"] for runs in programs.values() for run in runs}) == 1, "other texts"
    table(programs, {"seconds": "one token, s", "cpu": "CPU, s"})


def table(found: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> None:
    """Print medians of some figures, and their ratios."""
    print(f"| | {' | '.join(columns.values())} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for how, runs in found.items():
        values = {name: sorted(run[name] for run in runs) for name in columns}
        cells = [f"{median(v):.2f} ({v[0]:.2f} to {v[-1]:.2f})" for v in values.values()]
        print(f"| {how} | {' | '.join(cells)} |")
    ours, theirs = found.values()
    shares = [
        f"{median(r[name] for r in ours) / median(r[name] for r in theirs):.2f}" for name in columns
    ]
    print(f"| ours / theirs | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
