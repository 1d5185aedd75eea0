"""Sentences a second at beam search beside transformers' generate; run by hand, on a quiet machine.

    python -m tests.benchmarks.translating [--sentences 256] [--rounds 5]

Both have three blocks of 256 to read and three to write with, 6,000 pieces and random weights: ours
a GPT-2 with a decoder attached, laid out as `llmctl generate` does it, theirs Marian's encoder and
decoder (Junczys-Dowmunt et al. 2018), the smallest of their translators. Sources have 8 to 24
tokens, as Multi30k's, sorted by length; every target has 20, so that both do the same steps. Both
write 64 sentences at once. Medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from llmctl.inference.decoder import SourceDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig, generate
from llmctl.inference.weights import WeightType, prepare
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.seq2seq import Seq2SeqShape, build
from llmctl.training.precision import choose_device
from tests.benchmarks.generation import NoText

LAYERS, WIDTH, HEADS, PIECES = 3, 256, 4, 6_000
NEW, BEAMS, SENTENCES = 20, 4, 64
START = 1

Write = Callable[[list[list[int]]], int]
"""From sources to how many tokens were written for the best of each."""


def ours(dtype: WeightType) -> Write:
    torch.manual_seed(0)
    architecture = ARCHITECTURES["gpt"]
    shape: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS}
    config = architecture.config(vocab_size=PIECES, max_positions=128, **shape)
    model = build(config, Seq2SeqShape(), architecture).eval()
    head = prepare(model.decoder, dtype, rows=BEAMS * SENTENCES, reader=model.reader)
    decoder = SourceDecoder(model, start=[START], head=head)
    rules = CompiledSamplingParams(
        GenerationConfig(max_new_tokens=NEW, num_beams=BEAMS),
        NoText(),  # type: ignore[arg-type]
    )

    def write(sources: list[list[int]]) -> int:
        answers = generate(decoder, sources, rules, batch_size=BEAMS * SENTENCES)
        return sum(len(completions[0].ids) for completions in answers)

    return write


def hugging_face(dtype: torch.dtype) -> Write:
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=PIECES, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH, max_position_embeddings=128,
        pad_token_id=0, eos_token_id=None, decoder_start_token_id=START, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config).eval().to(dtype)

    def write(sources: list[list[int]]) -> int:
        tokens = 0
        for begin in range(0, len(sources), SENTENCES):
            rows = sources[begin : begin + SENTENCES]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            out = model.generate(
                input_ids=ids, attention_mask=mask, num_beams=BEAMS, do_sample=False,
                max_new_tokens=NEW, min_new_tokens=NEW,
            )  # fmt: skip
            tokens += len(rows) * (out.shape[1] - 1)
        return tokens

    return write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    choose_device("cpu")  # as the commands do, with what it sets
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 25, (options.sentences,), generator=generator).sort().values
    sources = [
        torch.randint(2, PIECES, (length,), generator=generator).tolist()
        for length in lengths.tolist()
    ]
    engines = {
        "llmctl fp32": ours("fp32"),
        "transformers fp32": hugging_face(torch.float32),
        "llmctl bf16": ours("bf16"),
        "transformers bf16": hugging_face(torch.bfloat16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(options.rounds + 1):
        for name, write in engines.items():
            begun = time.perf_counter()
            tokens = write(sources)
            if number:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun)
            assert tokens == NEW * len(sources), (name, tokens)
    print(f"{options.sentences} sentences, {BEAMS} beams, {torch.get_num_threads()} threads")
    speeds = {name: len(sources) / median(taken) for name, taken in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name}: {speed:.1f} sentences/s")
    for dtype in ("fp32", "bf16"):
        pairs = zip(seconds[f"llmctl {dtype}"], seconds[f"transformers {dtype}"], strict=True)
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        print(f"ratio in {dtype}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
