"""Training and writing speed of T5 and BART beside transformers' own classes; run by hand.

    python -m tests.benchmarks.encoder_decoders [--arch t5] [--precision bf16] [--rounds 5]

Both have the same weights: 4 blocks of 256 to read and as many to write with, 16,000 tokens.
Training: 32 sources of 256 tokens with targets of 64, about what span corruption makes, AdamW and
clipping; transformers in a plain loop, llmctl's network and loss without the trainer around them.
Writing: 64 sources of 16 to 48 tokens, 24 tokens each, by 4 beams. They take turns in one process,
and medians of the rounds' ratios are given with the least and the largest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from llmctl.formats.huggingface.tensors import export_model
from llmctl.inference.decoder import SourceDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig, generate
from llmctl.inference.weights import WeightType, prepare
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.tasks.denoise.batches import DenoisingBatch
from llmctl.tasks.denoise.loss import denoising_loss
from llmctl.training.planning.memory import keep_freed_memory
from llmctl.training.precision import autocast, choose_device
from tests.benchmarks.generation import NoText

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 256, 4, 16_000
BATCH, SOURCE, TARGET = 32, 256, 64
SENTENCES, NEW, BEAMS = 64, 24, 4
START, PAD = 1, 0

Work = Callable[[], int]
"""Does something, and returns how many tokens it was."""


def pair(arch: str) -> tuple[EncoderDecoderLM, Any]:
    """One model twice: ours and theirs."""
    import transformers

    spec = ARCHITECTURES[arch]
    shape: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS}
    torch.manual_seed(0)
    config: Any = spec.config(vocab_size=VOCABULARY, max_positions=512, **shape)
    model = EncoderDecoderLM(spec.build(config))  # type: ignore[arg-type]
    fields = {**spec.to_hugging_face(config), "forced_eos_token_id": None}
    ids = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(
        transformers.AutoConfig.for_model(**fields, **ids, decoder_start_token_id=START)
    )
    theirs.load_state_dict(export_model(model.state_dict(), "seq2seq", spec, config), strict=False)
    theirs.tie_weights()
    return model, theirs


def training(arch: str, precision: Any) -> dict[str, Work]:
    """A step of each."""
    model, theirs = pair(arch)
    generator = torch.Generator().manual_seed(1)

    def step(network: Any, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Work:
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

        def work() -> int:
            sources = torch.randint(4, VOCABULARY, (BATCH, SOURCE), generator=generator)
            targets = torch.randint(4, VOCABULARY, (BATCH, TARGET + 1), generator=generator)
            with autocast(torch.device("cpu"), precision):
                loss = loss_of(sources, targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            return BATCH * (SOURCE + TARGET)

        return work

    def own(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        inputs, labels = targets[:, :-1].contiguous(), targets[:, 1:].contiguous()
        tokens = torch.full((BATCH,), SOURCE + TARGET).numpy()
        hidden = torch.ones_like(labels, dtype=torch.bool)
        batch = DenoisingBatch(tokens, sources, None, inputs, labels, hidden)
        return denoising_loss(model, batch).total

    def hugging_face(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        inputs, labels = targets[:, :-1].contiguous(), targets[:, 1:].contiguous()
        loss: torch.Tensor = theirs(sources, decoder_input_ids=inputs, labels=labels).loss
        return loss

    return {"llmctl": step(model, own), "transformers": step(theirs, hugging_face)}


def writing(arch: str, dtype: WeightType) -> dict[str, Work]:
    """Targets of one length from sources of several."""
    model, theirs = pair(arch)
    theirs = theirs.eval().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 49, (SENTENCES,), generator=generator).sort().values.tolist()
    sources = [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    head = prepare(model.eval(), dtype, rows=BEAMS * SENTENCES)
    decoder = SourceDecoder(model, start=[START], head=head)
    rules = CompiledSamplingParams(
        GenerationConfig(max_new_tokens=NEW, num_beams=BEAMS),
        NoText(),  # type: ignore[arg-type]
    )

    def own() -> int:
        answers = generate(decoder, sources, rules, batch_size=BEAMS * SENTENCES)
        return sum(len(completions[0].ids) for completions in answers)

    def hugging_face() -> int:
        longest = max(lengths)
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in sources])
        mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
        out = theirs.generate(
            input_ids=ids, attention_mask=mask, num_beams=BEAMS, do_sample=False,
            max_new_tokens=NEW, min_new_tokens=NEW,
        )  # fmt: skip
        return len(sources) * (out.shape[1] - 1)

    return {"llmctl": own, "transformers": hugging_face}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", choices=["t5", "bart"], default="t5")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    choose_device("cpu")  # as the commands do, with what it sets
    keep_freed_memory()
    works = {
        "training": training(options.arch, options.precision),
        "writing": writing(options.arch, options.precision),
    }
    print(f"{options.arch} in {options.precision}, {torch.get_num_threads()} threads")
    for what, engines in works.items():
        speeds: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(options.rounds + 1):
            for name, work in engines.items():
                begun = time.perf_counter()
                tokens = work()
                if number:  # in the first one kernels are chosen and compiled
                    speeds[name].append(tokens / (time.perf_counter() - begun))
        for name, values in speeds.items():
            print(f"{what}, {name}: {median(values):,.0f} tokens/s")
        ratios = sorted(a / b for a, b in zip(*speeds.values(), strict=True))
        print(f"{what}: {median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
