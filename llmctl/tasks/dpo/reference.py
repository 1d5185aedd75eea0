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
from pydantic import BaseModel, ValidationError
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.parsing import read_json_object
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.answers import EncodedAnswer, answer_log_probs, answer_rows
from llmctl.training.device import Machine
from llmctl.training.precision import autocast
from llmctl.workspace.files import published_folder, sha256_file, sha256_json, write_json
from llmctl.workspace.tensors import read_tensors, write_tensors

REFERENCE = "reference"
"""The folder of a run that they are kept in."""
KEPT_LOG_PROBS, KEPT_RECORD = "log_probs.safetensors", "record.json"
TOKENS_AT_ONCE = 1 << 13
"""Tokens, padding counted, of the answers that are read together."""


class _KeptRecord(BaseModel):
    """What the kept figures are of, and the digest of their file."""

    of: str
    sha256: str


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
    of = _digest(base, answers, machine)
    path, found = folder / REFERENCE, None
    if path.exists():
        try:
            found = _kept(path, of)
        except InputError as error:
            reporter.note(f"{error}; the reference's log-probabilities are computed again")
    if machine.world.all_reduce_min(int(found is not None)):
        assert found is not None
        return found
    computed = _computed(base, answers, machine, reporter)
    if machine.world.is_main:
        with published_folder(path) as hidden:
            write_tensors(hidden / KEPT_LOG_PROBS, {"log_probs": computed})
            record = _KeptRecord(of=of, sha256=sha256_file(hidden / KEPT_LOG_PROBS))
            write_json(hidden / KEPT_RECORD, record.model_dump())
    machine.world.barrier()
    return computed


def _digest(base: Pretrained, answers: Sequence[EncodedAnswer], machine: Machine) -> str:
    """The digest of all that decides the figures."""
    hashed = hashlib.sha256()
    for answer in answers:
        hashed.update(np.asarray([len(answer.ids), answer.start]).tobytes())
        hashed.update(answer.ids.tobytes())
    return sha256_json([base.digest(), hashed.hexdigest(), machine.precision])


def _kept(folder: Path, of: str) -> Tensor:
    """What a folder keeps. Raises InputError where it is damaged or of something else."""
    try:
        record = _KeptRecord.model_validate(read_json_object(folder / KEPT_RECORD))
    except ValidationError:
        raise InputError(f"{folder / KEPT_RECORD} is damaged") from None
    if record.of != of:
        raise InputError(f"{folder} is of another model or of other answers")
    path = folder / KEPT_LOG_PROBS
    if not path.is_file() or sha256_file(path) != record.sha256:
        raise InputError(f"{path} is missing or damaged")
    return read_tensors(path)["log_probs"]


def _computed(
    base: Pretrained, answers: Sequence[EncodedAnswer], machine: Machine, reporter: Reporter
) -> Tensor:
    model = base.causal_lm().to(machine.device).eval()
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
