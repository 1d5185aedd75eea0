"""Thumbs up and down: KTO's loss, and the other answers that it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.formats.open import open_folder
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.kto.loss import kto_losses
from llmctl.tasks.kto.task import KtoTask
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl, one_sentence
from tests.tasks.test_dpo import CPU, SHORT, moved, plain_log_probs, sigmoid, write_pairs


class Noted(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("far", [2.0, -2.0])
def test_the_loss_is_the_paper_s(far: float):
    """Ethayarajh et al. 2024, §4.1, in NumPy; far: the mean of the other answers' ratios."""
    generator = np.random.default_rng(1)
    ratio, other = generator.normal(0, 3, 50), generator.normal(far, 1, 50)
    good = generator.random(50) < 0.4
    z_0 = max(0.0, other.mean())
    expected = np.where(
        good,
        1.5 * (1 - sigmoid(0.2 * (ratio - z_0))),
        0.5 * (1 - sigmoid(0.2 * (z_0 - ratio))),
    )
    found, kl = kto_losses(
        *map(torch.from_numpy, (ratio, other, good)),
        beta=0.2, desirable_weight=1.5, undesirable_weight=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert float(kl) == pytest.approx(z_0)


def task_of(place: Workspace, path: Path, reporter: Reporter, **fields: Any) -> KtoTask:
    base = open_folder(place.path("run", "talker") / "model")
    config = resolve("kto", {"training": SHORT, **fields})
    return KtoTask(path, base, config, start="talker", reporter=reporter)  # type: ignore[arg-type]


def test_loss_and_gradient_are_those_of_whole_logits(decoder_workspace: Path, tmp_path: Path):
    place, data = Workspace(decoder_workspace), write_pairs(tmp_path / "pairs.jsonl", 12)
    objective = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    task = task_of(place, data, Reporter(), objective=objective, data={"validation": 0.0})
    task.before_training(tmp_path, CPU, Reporter())
    policy, start, batch = moved(task.build_model()), task.build_model(), task.batch(0)
    numbers = batch.answer_B.tolist()
    ratios = []
    for answers in (task._own, task._other):
        chosen = [answers[n] for n in numbers]
        both = [
            plain_log_probs(
                lambda ids, model=model: model.logits(model.body(torch.tensor([ids]))[0]), chosen
            )
            for model in (policy, start)
        ]
        ratios.append(both[0] - both[1].detach())
    z_0 = ratios[1].detach().mean().clamp(min=0)
    good = torch.tensor([task._desirable[n] for n in numbers])
    expected = torch.where(
        good,
        1.2 * (1 - torch.sigmoid(0.3 * (ratios[0] - z_0))),
        0.7 * (1 - torch.sigmoid(0.3 * (z_0 - ratios[0]))),
    ).mean()
    found = task.loss(policy, batch)
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-5, atol=1e-6)
    weights = list(policy.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found.total, weights),
        torch.autograd.grad(expected, weights),
        strict=True,
    ):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-4, atol=1e-4)
    assert float(found.metrics["kl"].mean) == pytest.approx(float(z_0), abs=1e-4)


def test_each_prompt_has_another_s_answer(decoder_workspace: Path, tmp_path: Path):
    data = write_pairs(tmp_path / "pairs.jsonl", 12)
    task = task_of(Workspace(decoder_workspace), data, Reporter())
    taken = []
    for own, other in zip(task._own, task._other, strict=True):
        assert np.array_equal(own.ids[: own.start], other.ids[: other.start])
        taken.append(other.ids[other.start :].tobytes())
    assert sorted(taken) == sorted(own.ids[own.start :].tobytes() for own in task._own)


def test_thumbs_that_weigh_unevenly_are_told(decoder_workspace: Path, tmp_path: Path):
    place = Workspace(decoder_workspace)
    data = tmp_path / "thumbs.jsonl"
    line = '{{"prompt": "a {}", "completion": "b {}", "label": {}}}\n'
    thumbs = ["true"] * 3 + ["false"] * 9
    data.write_text("".join(line.format(n, n, thumb) for n, thumb in enumerate(thumbs)))
    reporter = Noted()
    task_of(place, data, reporter)
    assert any("3 answers have a thumb up and 9 a thumb down" in note and "to 3 up to 4" in note
               for note in reporter.notes)  # fmt: skip
    reporter = Noted()
    task_of(place, data, reporter, objective={"desirable_weight": 3.5})
    assert not any("thumb" in note for note in reporter.notes)
    data.write_text("".join(line.format(n, n, "true") for n in range(4)))
    reporter = Noted()
    task_of(place, data, reporter)
    assert any("all answers have a thumb up" in note for note in reporter.notes)


def test_a_label_that_is_no_thumb_is_refused(decoder_workspace: Path, tmp_path: Path):
    data = tmp_path / "thumbs.jsonl"
    data.write_text('{"prompt": "a", "completion": "b", "label": "good"}\n')
    words = ["finetune", "--task", "kto", "--from", "talker", "--data", data, "--name", "x"]
    result = llmctl(decoder_workspace, *words, code=3)
    assert "thumbs.jsonl:1: the label is 'good'; write true" in one_sentence(result)
    data.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    result = llmctl(decoder_workspace, *words, code=3)
    assert "has one rated answer" in one_sentence(result)
