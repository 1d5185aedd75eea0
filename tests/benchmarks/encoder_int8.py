"""How much faster a classifier reads in int8 than in fp32; run by hand.

    python tests/benchmarks/encoder_int8.py MODEL [--batches 1 32] [--tokens 16 64] [--rounds 15]

MODEL: a folder of an encoder, such as MiniLM's, with weights of which a classifier of two classes
is made; its output layer is random, which no time depends on. The same classifier twice, once as it
is and once with the matrices of its body in int8 as ``predict --dtype int8`` has them, reads the
same batches in turns: one time of each, and which comes first changes with every round. Shown are
the medians in milliseconds, the median of the rounds' ratios with the least and the greatest, and
how far the hidden states are from fp32's, as a share of their norm. With --peers transformers' BERT
of the same folder takes its turns too: in fp32, by PyTorch's dynamic quantisation (x86 kernels),
and by torchao's int8 weights and dynamic int8 activations, where that is installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.formats.base import Pretrained
from llmctl.formats.open import open_folder
from llmctl.inference.weights import WeightType, prepare_reader

WARM_UP = 3
"""Rounds that are not counted."""


def classifier(folder: Pretrained, dtype: WeightType, rows: int) -> Any:
    model = folder.new_classifier(2, dropout=0.0, scratch=False).eval()
    prepare_reader(model.body, dtype, rows=rows)
    return model


def seconds(model: Any, ids_BT: Tensor, repeats: int) -> float:
    before = time.perf_counter()
    for _ in range(repeats):
        model(ids_BT, torch.zeros_like(ids_BT), torch.ones_like(ids_BT, dtype=torch.bool))
    return (time.perf_counter() - before) / repeats


def peers(folder: Path) -> dict[str, Any]:
    """Others' ways with transformers' network, by name."""
    import importlib
    import importlib.util
    import warnings

    from transformers import BertModel

    def fresh() -> Any:
        return BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = "x86"
    found = {
        "transformers, fp32": fresh(),
        "PyTorch's dynamic int8": torch.ao.quantization.quantize_dynamic(
            fresh(), {torch.nn.Linear}, dtype=torch.qint8
        ),
    }
    if importlib.util.find_spec("torchao"):
        torchao = importlib.import_module("torchao.quantization")
        found["torchao, int8"] = fresh()
        torchao.quantize_(found["torchao, int8"], torchao.Int8DynamicActivationInt8WeightConfig())
    return found


@torch.inference_mode()
def compare_peers(
    path: Path, folder: Pretrained, batch: int, length: int, rounds: int
) -> list[str]:
    """A row for each way: milliseconds, and how far its states are from transformers' in fp32."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1000, 20_000, (batch, length), generator=generator)
    around = torch.zeros_like(ids_BT), torch.ones_like(ids_BT, dtype=torch.bool)
    ways = {
        "llmctl, fp32": classifier(folder, "fp32", batch * length).body,
        "llmctl, int8": classifier(folder, "int8", batch * length).body,
    }
    reads = {name: lambda body=body: body(ids_BT, *around) for name, body in ways.items()}
    for name, model in peers(path).items():
        reads[name] = lambda model=model: model(ids_BT).last_hidden_state
    exact = reads["transformers, fp32"]()
    times: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(WARM_UP + rounds):
        for name, read in reads.items():
            before = time.perf_counter()
            read()
            times[name].append(time.perf_counter() - before)
    rows = []
    for name, seconds_taken in times.items():
        apart = float((reads[name]() - exact).norm() / exact.norm())
        spent = median(seconds_taken[WARM_UP:]) * 1000
        rows.append(f"| {batch} | {length} | {name} | {spent:.2f} | {apart:.3f} |")
    return rows


@torch.inference_mode()
def compare(folder: Pretrained, batch: int, length: int, rounds: int) -> str:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    plain, quantised = (classifier(folder, dtype, batch * length) for dtype in ("fp32", "int8"))
    ids_BT = torch.randint(1000, 20_000, (batch, length), generator=generator)
    exact, near = plain.body(ids_BT), quantised.body(ids_BT)
    apart = float((near - exact).norm() / exact.norm())
    repeats = max(1, round(0.03 / seconds(plain, ids_BT, 2)))
    times: list[tuple[float, float]] = []
    for number in range(WARM_UP + rounds):
        first, second = (plain, quantised) if number % 2 else (quantised, plain)
        pair = seconds(first, ids_BT, repeats), seconds(second, ids_BT, repeats)
        times.append(pair if number % 2 else pair[::-1])
    fp32, int8 = (median(column) * 1000 for column in zip(*times[WARM_UP:], strict=True))
    ratios = [plain / quantised for plain, quantised in times[WARM_UP:]]
    return (
        f"| {batch} | {length} | {fp32:.2f} | {int8:.2f} | {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {apart:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    folder = open_folder(options.model)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.peers:
        print("| texts | tokens each | by | ms | apart |\n| --- | --- | --- | --- | --- |")
        for batch in options.batches:
            for length in options.tokens:
                rows = compare_peers(options.model, folder, batch, length, options.rounds)
                print("\n".join(rows), flush=True)
        return
    print("| texts | tokens each | fp32, ms | int8, ms | times as fast | apart |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch in options.batches:
        for length in options.tokens:
            print(compare(folder, batch, length, options.rounds), flush=True)


if __name__ == "__main__":
    main()
