"""Losses on preferences and rewards beside TRL's, on the same weights and the same batch; by hand.

    pip install trl
    python -m tests.benchmarks.preferences RUN_FOLDER PAIRS

RUN_FOLDER: that of a finished run which answers. The weights in training are the run's with some
noise; the reference's are the run's. TRL's own trainers compute theirs, from transformers' logits.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from llmctl.formats.open import open_folder
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.answers import answer_rows
from llmctl.tasks.dpo.task import DpoTask
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.grpo.loss import advantages, clipped_loss, kl_estimate
from llmctl.tasks.kto.task import KtoTask
from llmctl.training.device import Machine

CPU = Machine(torch.device("cpu"), "fp32", False)
NOISE = 0.02


class Fused:
    """A model of transformers as TRL calls it: log-probabilities of the labels, a place each."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        target = labels[:, 1:]
        log_probs = F.log_softmax(logits, -1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
        none = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs * (target != -100), entropy=none, mean_logits=none,
            is_top1=none.bool(),
        )  # fmt: skip


def stub(**fields: Any) -> Any:
    """What a trainer of TRL has of itself."""
    same = lambda x: x  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=same, gather_for_metrics=same, num_processes=1,
        reduce=lambda x, reduction: x,
    )  # fmt: skip
    return SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(training=True), _total_train_tokens=0,
        _metrics={"train": defaultdict(list)}, aux_loss_enabled=False, _tp_size=1, **fields,
    )  # fmt: skip


def tensors(answers: Any) -> dict[str, torch.Tensor]:
    """Answers as TRL has them."""
    longest = max(len(answer.ids) for answer in answers)
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.ids)] = torch.from_numpy(answer.ids)
        mask[row, : len(answer.ids)] = 1
        completion[row, answer.start : len(answer.ids)] = 1
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}


@torch.no_grad()
def totals(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each answer."""
    labels = given["input_ids"].masked_fill(given["completion_mask"] == 0, -100)
    return Fused(model)(given["input_ids"], given["attention_mask"], labels).log_probs.sum(-1)


def norm(loss: torch.Tensor, model: torch.nn.Module) -> float:
    """The norm of a loss's gradient."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())


def tell(name: str, ours: torch.Tensor, own: Any, theirs: torch.Tensor, trl: Any) -> None:
    """Print both losses and the norms of their gradients."""
    a, b = float(ours.detach()), float(theirs.detach())
    x, y = norm(ours, own), norm(theirs, trl)
    print(f"{name:<28} {a:.7f} {b:.7f} {abs(a - b):.1e}   {x:.6f} {y:.6f} {abs(x / y - 1):.1e}")


def dpo(base: Any, policy: Any, theirs: Any, start: Any, pairs: Path) -> None:
    kinds = {"sigmoid": {}, "ipo": {"loss": "ipo"}, "sigmoid_norm": {"length_normalised": True}}
    for kind, objective in kinds.items():
        for beta in (0.1, 0.5):
            fields = {"objective": {**objective, "beta": beta}, "training": {"batch_size": 8}}
            task = DpoTask(pairs, base, resolve("dpo", fields), start="x", reporter=Reporter())
            with tempfile.TemporaryDirectory() as folder:
                task.before_training(Path(folder), CPU, Reporter())
            batch = task.batch(0)
            chosen = [task._pairs[n] for n in batch.pair_B]
            given = tensors([pair[side] for side in (0, 1) for pair in chosen])
            reference = totals(start, given).chunk(2)
            given |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference, strict=True))
            trainer = stub(
                beta=beta, loss_types=[kind], loss_weights=[1.0], precompute_ref_logps=True,
                ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False,
            )  # fmt: skip
            loss = DPOTrainer._compute_loss(trainer, Fused(theirs), given, False)
            tell(f"DPO {kind}, beta {beta}", task.loss(policy, batch).total, policy, loss, theirs)


def kto(base: Any, policy: Any, theirs: Any, start: Any, pairs: Path) -> None:
    objective = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    fields = {"objective": objective, "training": {"batch_size": 12}}
    task = KtoTask(pairs, base, resolve("kto", fields), start="x", reporter=Reporter())
    with tempfile.TemporaryDirectory() as folder:
        task.before_training(Path(folder), CPU, Reporter())
    batch = task.batch(0)
    numbers = batch.answer_B.tolist()
    own, other = ([part[n] for n in numbers] for part in (task._own, task._other))

    def kl_log_probs(model: Any) -> torch.Tensor:
        return totals(model, tensors(other))

    trainer = stub(
        beta=0.1, loss_type="kto", calculate_KL=True, desirable_weight=1.3, undesirable_weight=0.8,
        precompute_ref_logps=True, _compute_kl_logps=lambda model, _: kl_log_probs(theirs),
    )  # fmt: skip
    given = {
        **tensors(own), "label": batch.desirable_B,
        "ref_logps": totals(start, tensors(own)), "ref_KL_logps": kl_log_probs(start),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, Fused(theirs), given, False)
    tell("KTO", task.loss(policy, batch).total, policy, loss, theirs)


def grpo(base: Any, policy: Any, theirs: Any, start: Any, pairs: Path) -> None:
    fields = {"training": {"batch_size": 8}}
    task = DpoTask(pairs, base, resolve("dpo", fields), start="x", reporter=Reporter())
    answers = [pair[side] for pair in task._pairs[:6] for side in (0, 1)]
    rewards = torch.from_numpy(np.random.default_rng(0).random((6, 2), dtype=np.float32))
    worth = advantages(rewards).flatten()
    given = tensors(answers)
    labels = given["input_ids"].masked_fill(given["completion_mask"] == 0, -100)[:, 1:]
    mask = (labels != -100).long()

    def log_probs(model: Any) -> torch.Tensor:
        call = {name: given[name] for name in ("input_ids", "attention_mask")}
        return Fused(model)(**call, labels=torch.cat([labels[:, :1], labels], 1)).log_probs

    now, before = log_probs(theirs), log_probs(start).detach()
    for beta, clip in ((0.0, 0.2), (0.1, 0.05)):
        trainer = stub(
            beta=beta, loss_type="dr_grpo", max_completion_length=64, epsilon_low=clip,
            epsilon_high=clip, importance_sampling_level="token", top_entropy_quantile=1.0,
            off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
            current_gradient_accumulation_steps=1,
            _get_per_token_logps_and_entropies=lambda *a, now=now, **k: (
                now, torch.zeros_like(now), None
            ),
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        )  # fmt: skip
        inputs = {
            "prompt_ids": given["input_ids"][:, :1], "prompt_mask": mask[:, :1],
            "completion_ids": labels.clamp(min=0), "completion_mask": mask, "advantages": worth,
            "old_per_token_logps": before, "ref_per_token_logps": before,
        }  # fmt: skip
        loss = GRPOTrainer._compute_loss(trainer, None, inputs)
        rows = answer_rows(answers)
        ids, own_labels, own_mask = map(torch.from_numpy, (rows.input_ids, rows.labels, rows.mask))
        scored = own_mask & (own_labels >= 0)
        logits = policy.logits(policy.body(ids)[scored])
        ours = F.log_softmax(logits, -1).gather(-1, own_labels[scored][:, None])[:, 0]
        old = before[mask.bool()]
        owner = torch.nonzero(scored)[:, 0]
        total, _ = clipped_loss(ours, old, worth[owner], clip)
        total = (total + beta * kl_estimate(ours, old)) / (len(answers) * 64)
        tell(f"Dr. GRPO, beta {beta}", total, policy, loss, theirs)
        now = log_probs(theirs)  # its graph is used up


def main(run: Path, pairs: Path) -> None:
    """Compare all of them."""
    path = run / "model"
    base = open_folder(path)
    start, theirs = (
        transformers.AutoModelForCausalLM.from_pretrained(path).eval() for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += NOISE * torch.randn(weight.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for file in path.iterdir():
            if not (Path(folder) / file.name).exists():
                (Path(folder) / file.name).write_bytes(file.read_bytes())
        policy = open_folder(Path(folder)).causal_lm()
    print(f"{'loss':<28} {'llmctl':<9} {'TRL':<9} {'apart':<9} {'|gradient|, both':<17} apart")
    for compare in (dpo, kto, grpo):
        compare(base, policy, theirs, start, pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
