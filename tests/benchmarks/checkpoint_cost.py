"""What a checkpoint costs training; run by hand.

    python tests/benchmarks/checkpoint_cost.py [--size small] [--rounds 5]

mini: 6 layers × 384 with 16,000 tokens. small: GPT-2's 124 M. Steps are timed undisturbed, then
from the call of ``save`` until the checkpoint is on the disk; the cost is what those took longer,
the wait for the copy included, as a share of the minute between checkpoints. Beside it stand a
``save`` that is waited for and its processor time, which other load on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from llmctl.tasks.causal_lm.loss import causal_lm_loss

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.training.checkpoints import CheckpointStore, optimiser_tensors
from llmctl.training.planning.memory import keep_freed_memory

SIZES = {
    "mini": ({"num_layers": 6, "hidden_size": 384, "num_heads": 6}, 16_000, 12),
    "small": ({"num_layers": 12, "hidden_size": 768, "num_heads": 12}, 50_257, 2),
}
"""Shape, vocabulary, and rows of 256 in a batch."""
SEQUENCE, BETWEEN = 256, 60.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="undisturbed, in a round")
    parser.add_argument("--folder", help="where checkpoints go; by default the temporary folder")
    options = parser.parse_args()
    keep_freed_memory()
    shape, vocabulary, rows = SIZES[options.size]
    architecture = ARCHITECTURES["gpt"]
    config = architecture.config(vocab_size=vocabulary, max_positions=SEQUENCE, **shape)
    model = CausalLM(architecture.build(config))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    full = np.full(rows, SEQUENCE)

    def step() -> float:
        begun = time.perf_counter()
        ids = torch.randint(vocabulary, (rows, SEQUENCE + 1))
        inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        batch = CausalBatch(full, inputs, labels, full, full)
        optimiser.zero_grad(set_to_none=True)
        causal_lm_loss(model, batch).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return time.perf_counter() - begun

    def save(number: int, *, wait: bool) -> None:
        moments = optimiser_tensors(model, optimiser)
        store.save(number, model.state_dict(), moments, {}, wait=wait)

    stalls, costs, waited, processor, undisturbed = [], [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store = CheckpointStore(Path(name), keep=2)
        number = 0
        for round_number in range(options.rounds + 1):
            usual = [step() for _ in range(options.steps)]
            number += 1
            begun = time.perf_counter()
            save(number, wait=False)
            stall = time.perf_counter() - begun
            disturbed = []
            while store.steps()[-1:] != [number]:
                disturbed.append(step())
            store.wait()
            number += 1
            begun, used = time.perf_counter(), time.process_time()
            save(number, wait=True)
            if round_number:  # in the first one memory is laid out
                undisturbed += usual
                stalls.append(stall)
                costs.append(stall + sum(disturbed) - len(disturbed) * median(usual))
                waited.append(time.perf_counter() - begun)
                processor.append(time.process_time() - used)
        folder = Path(name) / f"step-{number:08d}"
        sizes = [path.stat().st_size for path in folder.iterdir()]
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, {sum(sizes) / 1e6:,.0f} MB a checkpoint, "
        f"{torch.get_num_threads()} threads, a step of {median(undisturbed):.2f} s"
    )
    print("| | seconds (median) | of training at one a minute |\n| --- | --- | --- |")
    for label, seconds in (
        ("the copy, which training waits for", median(stalls)),
        ("the copy and what steps take longer meanwhile", median(costs)),
        ("a checkpoint that is waited for", median(waited)),
        ("its processor time", median(processor)),
    ):
        print(f"| {label} | {seconds:.2f} | {seconds / BETWEEN:.1%} |")


if __name__ == "__main__":
    main()
