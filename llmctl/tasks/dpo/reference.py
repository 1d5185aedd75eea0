"""What the model that training starts from, the reference, makes of the answers: computed once and
kept beside the run, as it never changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.answers import EncodedAnswer, answer_log_probs, answer_rows
from llmctl.tasks.kept_tensors import kept_tensor
from llmctl.training.device import Machine
from llmctl.training.precision import autocast
from llmctl.workspace.files import sha256_json

REFERENCE = "reference"
"""The folder of a run that they are kept in."""
KEPT_LOG_PROBS = "log_probs"
TOKENS_AT_ONCE = 1 << 13
"""Tokens, padding counted, of the answers that are read together."""


def reference_log_probs(
    folder: Path,
    base: Pretrained,
    answers: Sequence[EncodedAnswer],
    machine: Machine,
    reporter: Reporter,
) -> Tensor:
    """Log-probability of each answer under the reference (A,), in nats: those that a run's folder
    keeps, where they are of the same model and answers and whole; otherwise computed, and kept
    there. All processes must call it, which divide the work."""
    return kept_tensor(
        folder / REFERENCE,
        KEPT_LOG_PROBS,
        _digest(base, answers, machine),
        lambda: _computed(base, answers, machine, reporter),
        machine,
        reporter,
        "the reference's log-probabilities",
    )


def _digest(base: Pretrained, answers: Sequence[EncodedAnswer], machine: Machine) -> str:
    """The digest of all that decides the figures."""
    hashed = hashlib.sha256()
    for answer in answers:
        hashed.update(np.asarray([len(answer.ids), answer.start]).tobytes())
        hashed.update(answer.ids.tobytes())
    return sha256_json([base.digest(), hashed.hexdigest(), machine.precision])


def _computed(
    base: Pretrained, answers: Sequence[EncodedAnswer], machine: Machine, reporter: Reporter
) -> Tensor:
    model = base.owning().causal_lm().to(machine.device).eval()
    log_probs = answers_under(model, answers, machine, reporter, "answers under the reference")
    if not bool(log_probs.isfinite().all()):
        raise InputError(
            f"{base.path} gives an answer no finite log-probability, so it is no reference; take "
            "another model"
        )
    return log_probs


def answers_under(
    model: Any, answers: Sequence[EncodedAnswer], machine: Machine, reporter: Reporter, told: str
) -> Tensor:
    """Log-probability of each answer under a model (A,), in nats; all processes must call it. told:
    what it is called while it goes on."""
    batches = _batches(answers)
    # What processes tell each other is text, which has every digit; rows come in this order.
    order = np.concatenate(batches)
    totals: list[float] = []
    asked = machine.world.map_sharded(
        batches,
        lambda part, first: _scored_batches(model, answers, part, machine),
        block=1,
        kind=list[float],
    )
    for scores in asked:
        totals += scores
        reporter.progress(told, len(totals), len(answers))
    log_probs = torch.empty(len(answers))
    log_probs[torch.from_numpy(order)] = torch.tensor(totals)
    return log_probs


def _batches(answers: Sequence[EncodedAnswer]) -> list[NDArray[np.int64]]:
    """Answers of like length together, by their numbers."""
    lengths = np.asarray([len(answer.ids) for answer in answers])
    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        rows = max(1, TOKENS_AT_ONCE // math.ceil(lengths[order[begin]]))
        batches.append(order[begin : begin + rows])
        begin += rows
    return batches


@torch.no_grad()
def _scored_batches(
    model: Any,
    answers: Sequence[EncodedAnswer],
    batches: Iterable[NDArray[np.int64]],
    machine: Machine,
) -> Iterator[list[float]]:
    for numbers in batches:
        rows = answer_rows([answers[n] for n in numbers])
        given = (
            torch.from_numpy(part).to(machine.device)
            for part in (rows.input_ids, rows.labels, rows.mask)
        )
        with autocast(machine.device, machine.precision):
            log_probs_A, _ = answer_log_probs(model, *given)
        yield log_probs_A.tolist()
