"""Training on one GPU: tokens a second of GPT-2 124M at context 1,024 and of BERT-base at 512, by
llmctl's own trainer, beside nanoGPT and Hugging Face, in one run.

    python -m tests.benchmarks.gpu [--nanogpt FOLDER] [--only NAME …] [--fp8]

All compute in bf16 with weights in fp32, AdamW, gradients clipped, kernels compiled; batches are
random tokens, made beforehand. BERT's rows hold texts of 60 to 300 tokens, packed; Hugging Face's
are full rows, which spares it masks and padding. FLOPs of a token: 6 for each weight that is
multiplied, 12 · layers · width · context for attention (PaLM, Chowdhery et al. 2022, appendix B),
BERT's head at the masked 15 % alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers.packing import PackedSequences
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.masked_lm.batches import MaskedBatch
from llmctl.tasks.masked_lm.loss import masked_lm_loss
from llmctl.training.batches import Objective, TensorBatch
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.trainer import Trainer

LAYERS, WIDTH, HEADS = 12, 768, 12
GPT_CONTEXT, GPT_PIECES = 1024, 50_304
BERT_CONTEXT, BERT_PIECES, MASKED = 512, 30_528, 0.15
DATASHEET = 990e12
WARM_UP, STEPS = 10, 30

BLOCKS = LAYERS * 12 * WIDTH**2
GPT_FLOPS = 6 * (BLOCKS + WIDTH * GPT_PIECES) + 12 * LAYERS * WIDTH * GPT_CONTEXT
BERT_FLOPS = (
    6 * (BLOCKS + MASKED * (WIDTH * BERT_PIECES + WIDTH**2)) + 12 * LAYERS * WIDTH * BERT_CONTEXT
)

Speed = tuple[float, float]
"""Tokens a second, and the peak of memory in bytes."""


def gpt_batch(step: int, rows: int) -> CausalBatch:
    ids = torch.randint(
        GPT_PIECES, (rows, GPT_CONTEXT + 1), generator=torch.Generator().manual_seed(step)
    )
    full = np.full(rows, GPT_CONTEXT)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return CausalBatch(full, inputs, labels, full, full)


def bert_batch(step: int, rows: int) -> MaskedBatch:
    generator = torch.Generator().manual_seed(step)
    lengths = np.random.default_rng(step)
    number, place = (np.zeros((rows, BERT_CONTEXT), dtype=np.int64) for _ in range(2))
    first = []
    for row in range(rows):
        begin = 0
        while begin < BERT_CONTEXT:
            stop = min(begin + int(lengths.integers(60, 300)), BERT_CONTEXT)
            number[row, begin:stop] = len(first) + 1
            place[row, begin:stop] = np.arange(stop - begin)
            first.append(row * BERT_CONTEXT + begin)
            begin = stop
    ids = torch.randint(BERT_PIECES, (rows, BERT_CONTEXT), generator=generator)
    chosen = torch.randperm(ids.numel(), generator=generator)[: int(MASKED * ids.numel())]
    chosen = chosen.sort().values
    return MaskedBatch(
        np.full(rows, BERT_CONTEXT), ids, torch.from_numpy(place % 2), torch.from_numpy(place),
        PackedSequences.of(number), chosen, ids.flatten()[chosen], torch.tensor(first),
        torch.zeros(len(first), dtype=torch.int64), True,
    )  # fmt: skip


def ours(arch: str, rows: int, precision: str = "bf16") -> Speed:
    """llmctl's trainer: the median of its own figures, ten steps each."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[arch]
    shape: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS}
    if arch == "bert":
        config = architecture.config(vocab_size=BERT_PIECES, max_positions=BERT_CONTEXT, **shape)
        model: torch.nn.Module = MaskedLM(architecture.build(config))  # type: ignore[arg-type]
    else:
        config = architecture.config(vocab_size=GPT_PIECES, max_positions=GPT_CONTEXT, **shape)
        model = CausalLM(architecture.build(config))
    made = [bert_batch(n, rows) if arch == "bert" else gpt_batch(n, rows) for n in range(4)]

    def batches(step: int) -> TensorBatch:
        return made[step % len(made)]

    total = WARM_UP + STEPS
    with tempfile.TemporaryDirectory() as folder:
        loss = masked_lm_loss if arch == "bert" else causal_lm_loss
        trainer = Trainer(
            Objective(model, loss), batches,
            TrainingConfig(
                max_steps=total, learning_rate=1e-4, log_every=10, checkpoint_every=10**6
            ),
            total_steps=total, seed=0, device=torch.device("cuda"), precision=precision,
            store=CheckpointStore(Path(folder), keep=1), compiled=True,
        )  # fmt: skip
        trainer._save_if_due = lambda *_: iter(())  # type: ignore[method-assign]
        records = [record for record in trainer.run() if record.kind == "train"][1:]
    speeds = [record.values["tokens_per_second"] for record in records]
    return float(np.median(speeds)), records[-1].values["memory_bytes"]


def loop(
    model: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor
) -> Speed:
    """A plain loop, as others' scripts have it."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    begun = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss(ids)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    tokens = STEPS * len(ids) * (ids.shape[1] - 1) / (time.perf_counter() - begun)
    return tokens, float(torch.cuda.max_memory_allocated())


def nanogpt(folder: str, rows: int) -> Speed:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(
        GPTConfig(block_size=GPT_CONTEXT, vocab_size=GPT_PIECES, n_layer=LAYERS, n_head=HEADS,
                  n_embd=WIDTH, dropout=0.0, bias=False)
    ).cuda()  # fmt: skip
    step = torch.compile(model)
    ids = torch.randint(GPT_PIECES, (rows, GPT_CONTEXT + 1), device="cuda")
    return loop(model, lambda x: step(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1], ids)


def hugging_face_gpt(rows: int) -> Speed:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=GPT_PIECES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).cuda().train()
    step = torch.compile(model)
    ids = torch.randint(GPT_PIECES, (rows, GPT_CONTEXT + 1), device="cuda")
    return loop(model, lambda x: step(input_ids=x[:, :-1], labels=x[:, :-1]).loss, ids)


def hugging_face_bert(rows: int) -> Speed:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=BERT_PIECES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = BertForMaskedLM(config).cuda().train()
    step = torch.compile(model)
    ids = torch.randint(BERT_PIECES, (rows, BERT_CONTEXT + 1), device="cuda")
    labels = ids[:, :-1].where(torch.rand(rows, BERT_CONTEXT, device="cuda") < MASKED, -100)
    return loop(model, lambda x: step(input_ids=x[:, :-1], labels=labels).loss, ids)


def matrix_peak() -> float:
    """Operations a second of a large bf16 product of random numbers."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nanogpt", help="folder of its clone")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--fp8", action="store_true", help="also llmctl in eight bits")
    options = parser.parse_args()
    made: dict[str, tuple[Callable[[], Speed], int]] = {
        "GPT-2 124M, llmctl, 64 rows": (lambda: ours("gpt", 64), GPT_FLOPS),
        "GPT-2 124M, llmctl, 128 rows": (lambda: ours("gpt", 128), GPT_FLOPS),
        "GPT-2 124M, Hugging Face, 32 rows": (lambda: hugging_face_gpt(32), GPT_FLOPS),
        "BERT-base, llmctl, 128 rows": (lambda: ours("bert", 128), BERT_FLOPS),
        "BERT-base, Hugging Face, 64 rows": (lambda: hugging_face_bert(64), BERT_FLOPS),
    }
    if options.nanogpt:
        made["GPT-2 124M, nanoGPT, 64 rows"] = (lambda: nanogpt(options.nanogpt, 64), GPT_FLOPS)
    if options.fp8:
        made["GPT-2 124M, llmctl fp8, 64 rows"] = (lambda: ours("gpt", 64, "fp8"), GPT_FLOPS)
    peak = matrix_peak()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 {peak / 1e12:.0f} TFLOP/s"
    )
    print(
        "| | tokens/s | of 990 TFLOP/s | of the measured rate | GiB |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name, (run, flops) in made.items():
        if options.only and not any(part in name for part in options.only):
            continue
        torch.cuda.reset_peak_memory_stats()
        try:
            tokens, memory = run()
        except Exception as error:
            print(f"| {name} | failed: {type(error).__name__}: {str(error)[:300]} |", flush=True)
            continue
        print(
            f"| {name} | {tokens:,.0f} | {tokens * flops / DATASHEET:.1%} | "
            f"{tokens * flops / peak:.1%} | {memory / 2**30:.1f} |",
            flush=True,
        )
        torch._dynamo.reset()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
