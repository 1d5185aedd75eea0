"""Preferences by DPO and IPO: the losses, the kept reference, and what comes of it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import InputError, Interrupted
from llmctl.formats.open import open_folder
from llmctl.inference.engine import Engine
from llmctl.reporting.reporter import Record, Reporter
from llmctl.stages.train import finetune
from llmctl.tasks.dpo.loss import ordered_right, pair_loss
from llmctl.tasks.dpo.task import DpoTask
from llmctl.tasks.dpo.untuned import AnsweringModel
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.opened import OpenedModel
from llmctl.training.device import Machine
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import sha256_file
from tests.conftest import SAYINGS
from tests.run import llmctl, one_sentence

CPU = Machine(torch.device("cpu"), "fp32", False)
SHORT = {"precision": "fp32", "max_steps": 8, "batch_size": 6, "learning_rate": 1e-3,
         "checkpoint_every": 3, "log_every": 1}  # fmt: skip


def write_pairs(path: Path, count: int = 40) -> Path:
    """Questions with their own answer and another question's."""
    items = list(SAYINGS.items())
    lines = []
    for number in range(count):
        (asked, answer), (_, other) = items[number % 3], items[(number + 1 + number % 2) % 3]
        lines.append({"prompt": f"{asked} ({number})", "chosen": answer, "rejected": other})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl")


@pytest.fixture
def place(decoder_workspace: Path, tmp_path: Path) -> Workspace:
    """The decoders, in a workspace of a test's own."""
    return Workspace(Path(shutil.copytree(decoder_workspace, tmp_path / "own")))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_losses_are_those_of_the_papers():
    delta = np.random.default_rng(0).normal(0, 8, 200)
    given = torch.from_numpy(delta)
    for beta in (0.05, 0.1, 0.7):
        for eps in (0.0, 0.1, 0.3):
            # Rafailov et al. 2023, eq. 7, with the labels of Mitchell 2023.
            expected = -(1 - eps) * np.log(sigmoid(beta * delta)) - eps * np.log(
                sigmoid(-beta * delta)
            )
            found = pair_loss(given, kind="sigmoid", beta=beta, label_smoothing=eps)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
        # Azar et al. 2023, eq. 17.
        expected = (delta - 1 / (2 * beta)) ** 2
        found = pair_loss(given, kind="ipo", beta=beta, label_smoothing=0.0)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert ordered_right(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def task_of(
    place: Workspace, path: Path, *, start: str = "talker", **fields: Any
) -> tuple[DpoTask, Any]:
    base = open_folder(place.path("run", start) / "model")
    config = resolve("dpo", {"training": SHORT, **fields})
    task = DpoTask(path, base, config, start=start, reporter=Reporter())  # type: ignore[arg-type]
    return task, base


def moved(model: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    """A model a little away from where it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


def plain_log_probs(logits: Callable[[list[int]], torch.Tensor], answers: Any) -> torch.Tensor:
    """log P of each answer, one text at a time, from logits (T, V) of the whole."""
    totals = []
    for answer in answers:
        ids = answer.ids.tolist()
        scores = logits(ids).double().log_softmax(-1)
        totals.append(sum(scores[t - 1, ids[t]] for t in range(answer.start, len(ids))))
    return torch.stack(totals)


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"label_smoothing": 0.2, "beta": 0.5},
        {"loss": "ipo"},
        {"loss": "ipo", "length_normalised": False, "beta": 0.02},
        {"length_normalised": True, "beta": 2.0},
    ],
)
def test_loss_and_gradient_are_those_of_whole_logits(
    place: Workspace, pairs_file: Path, tmp_path: Path, objective: dict[str, Any]
):
    """As TRL computes them, from transformers' logits of the same weights; the gradient by
    autograd through our own network and the table of all logits."""
    transformers = pytest.importorskip("transformers")
    task, base = task_of(place, pairs_file, objective=objective)
    task.before_training(tmp_path, CPU, Reporter())
    policy = moved(task.build_model())
    batch = task.batch(1)
    pairs = [task._pairs[n] for n in batch.pair_B]
    answers = [answer for pair in pairs for answer in pair]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base.path)

    @torch.no_grad()
    def reference(ids: list[int]) -> torch.Tensor:
        return theirs(torch.tensor([ids])).logits[0]

    def ours(ids: list[int]) -> torch.Tensor:
        return policy.logits(policy.body(torch.tensor([ids]))[0])

    ratio = (plain_log_probs(ours, answers) - plain_log_probs(reference, answers)).view(-1, 2)
    config = task.config.objective
    if config.by_length:
        ratio = ratio / torch.tensor([answer.tokens for answer in answers]).view(-1, 2)
    delta = ratio[:, 0] - ratio[:, 1]
    if config.loss == "ipo":
        expected = ((delta - 1 / (2 * config.beta)) ** 2).mean()
    else:
        eps = config.label_smoothing
        right = torch.sigmoid(config.beta * delta).log()
        wrong = torch.sigmoid(-config.beta * delta).log()
        expected = (-(1 - eps) * right - eps * wrong).mean()
    wanted = torch.autograd.grad(expected, list(policy.parameters()))
    found = task.loss(policy, batch)
    # fp32 sums of a hundred log-probabilities, divided by β / 2 in IPO's square.
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(
        torch.autograd.grad(found.total, list(policy.parameters())), wanted, strict=True
    ):
        scale = float(other.abs().max()) + 1e-6
        torch.testing.assert_close(gradient / scale, other / scale, rtol=1e-4, atol=1e-4)
    margin = config.beta * delta.detach().mean()
    torch.testing.assert_close(found.metrics["margin"].mean.double(), margin, rtol=1e-4, atol=1e-4)


def test_answers_that_are_measured_are_written_by_the_engine(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
):
    """More than are written at once, drawn too: those that a batch of rows comes to."""
    steps = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: steps.append(engine) or step(engine))
    model = AnsweringModel(OpenedModel.open(place, "talker"), "cpu", max_new_tokens=8, seed=3)
    asked = [f"{word} {number}" for number in range(35) for word in ("Hens", "The ship")]
    prompts = [model.prompt([{"role": "user", "content": text}]) or [] for text in asked]
    for temperature in (0.0, 1.0):
        found = model.answers(prompts, Reporter(), temperature=temperature)
        assert steps
        steps.clear()
        rows = model._sampler(model.network, prompts, temperature=temperature)
        assert not steps
        assert [(one.ids, one.text) for one in found] == [(one.ids, one.text) for (one,) in rows]


def test_only_the_last_answer_counts(place: Workspace, tmp_path: Path):
    turns = [{"role": "user", "content": "Where does the ship sail?"},
             {"role": "assistant", "content": "Over the wide sea."},
             {"role": "user", "content": "What does the farmer feed?"}]  # fmt: skip
    path = tmp_path / "turns.jsonl"
    lines = [{"prompt": turns, "chosen": c, "rejected": "At the square."}
             for c in ("The cows.", "The cows at dawn.", "Cows.")]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task, _ = task_of(place, path, data={"validation": 0.0})
    chosen, rejected = task._pairs[0]
    tokenizer = task._tokenizer
    assert tokenizer.decode(chosen.ids[chosen.start :].tolist()).startswith("The cows.")
    assert tokenizer.decode(rejected.ids[rejected.start :].tolist()).startswith("At the square.")
    assert np.array_equal(chosen.ids[: chosen.start], rejected.ids[: rejected.start])
    rows = task.batch(0)
    scored = (rows.labels_B2T != -100).sum(-1)
    assert sorted(scored.flatten().tolist()) == sorted(
        answer.tokens for pair in task._pairs for answer in pair
    )


def test_parts_give_the_loss_of_the_whole(place: Workspace, pairs_file: Path, tmp_path: Path):
    """Added up by rows, as processes and accumulated parts do it."""
    task, _ = task_of(place, pairs_file)
    task.before_training(tmp_path, CPU, Reporter())
    policy, batch = moved(task.build_model()), task.batch(0)
    whole = task.loss(policy, batch)
    parts = [task.loss(policy, batch.rows(*edges)) for edges in ((0, 1), (1, 4), (4, 6))]
    total = sum(part.losses["dpo_loss"].total for part in parts) / len(batch)
    torch.testing.assert_close(total, whole.total, rtol=1e-6, atol=1e-6)


def test_the_reference_is_computed_once_and_checked(
    place: Workspace, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notes: list[str] = []

    class Noting(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    task, base = task_of(place, pairs_file)
    task.before_training(tmp_path, CPU, Noting())
    computed = task.reference
    model = base.causal_lm()
    plain = plain_log_probs(
        lambda ids: model.logits(model.body(torch.tensor([ids]))[0]).detach(), task.answers
    )
    torch.testing.assert_close(computed.double(), plain, rtol=1e-5, atol=1e-5)
    again, _ = task_of(place, pairs_file)
    with monkeypatch.context() as patch:
        patch.setattr("llmctl.tasks.dpo.reference._computed", None)
        again.before_training(tmp_path, CPU, Noting())
    assert torch.equal(again.reference, computed)
    # Damaged, it is told and computed again.
    kept = tmp_path / "reference" / "log_probs.safetensors"
    data = bytearray(kept.read_bytes())
    data[-2] ^= 1
    kept.write_bytes(data)
    assert not notes
    again.before_training(tmp_path, CPU, Noting())
    assert torch.equal(again.reference, computed)
    assert "log_probs.safetensors is missing or damaged; the reference's" in notes[0]
    # Another model's figures are not taken for this one's.
    other, _ = task_of(place, pairs_file, start="tiny-llama")
    other.before_training(tmp_path, CPU, Noting())
    assert "of another model" in notes[1]
    assert not torch.allclose(other.reference, computed)


class StopsAt(Reporter):
    """Sends SIGINT when a step has been logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, record: Record, total: int | None, seconds: float | None = None) -> None:
        if record.kind == "train" and record.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "dpo"},
        {"task": "dpo", "method": "lora", "lora": {"dropout": 0.1}, "objective": {"loss": "ipo"}},
        {"task": "kto"},
    ],
)
def test_a_stopped_run_ends_the_same_to_the_bit(
    place: Workspace, pairs_file: Path, fields: dict[str, Any]
):
    config = resolve(None, {"training": SHORT, "patience": 0, **fields})
    whole, _ = finetune(place, "talker", pairs_file, config, name="whole")
    with pytest.raises(Interrupted):
        finetune(place, "talker", pairs_file, config, name="cut", reporter=StopsAt(4))
    kept = sha256_file(place.path("run", "cut") / "reference" / "log_probs.safetensors")
    cut, _ = finetune(place, "talker", pairs_file, config, name="cut")
    for run in (whole, cut):
        assert sha256_file(run.folder / "reference" / "log_probs.safetensors") == kept
    files = [sha256_file(run.folder / "model" / "model.safetensors") for run in (whole, cut)]
    assert files[0] == files[1]


def test_it_learns_what_is_preferred(place: Workspace, tmp_path: Path):
    """To speak of cows, whatever is asked: of held-out prompts too, by which weights are chosen."""
    lines = [
        {"prompt": f"{asked} ({n})", "chosen": "The cows at dawn.", "rejected": "At the square."}
        for n in range(12)
        for asked in SAYINGS
    ]
    path = tmp_path / "cows.json"
    path.write_text(json.dumps(lines))
    training = {**SHORT, "max_steps": 24, "learning_rate": 3e-3, "eval_every": 24}
    config = resolve("dpo", {"training": training, "data": {"validation": 0.3}})
    run, _ = finetune(place, "talker", path, config, name="cows")
    found = run.manifest.summary["validation"]
    assert found["preference_accuracy"] == 1.0
    assert found["margin"] > 0.5
    assert found["loss"] < 0.5


@pytest.mark.distributed
@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_two_processes_find_what_one_does(place: Workspace, pairs_file: Path, task: str):
    words = ["finetune", "--from", "talker", "--task", task, "--data", pairs_file, "--set",
             "patience=0", "--set", "training.micro_batch=2"]  # fmt: skip
    words += [w for k, v in SHORT.items() for w in ("--set", f"training.{k}={v}")]
    llmctl(place.root, *words, "--name", "one", "--set", "training.max_steps=3")
    llmctl(place.root, *words, "--name", "two", "--nproc", 2, "--set", "training.max_steps=3")
    losses = []
    for name in ("one", "two"):
        text = (place.path("run", name) / "metrics.jsonl").read_text()
        losses.append([json.loads(line)["loss"] for line in text.splitlines()])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("lines", "words", "code", "sentence"),
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], [], 3, "are the same answer"),
        (None, ["--set", "objective.beta=0"], 2, "objective.beta"),
        (None, ["--set", "objective.loss=ipo", "--set", "objective.label_smoothing=0.1"], 2,
         "label_smoothing is for the loss sigmoid"),
        (None, ["--set", "objective.loss=hinge"], 2, "'sigmoid' or 'ipo'"),
        (None, ["--set", "data.max_length=4"], 3, "no answer begins within 4 tokens"),
        (None, ["--set", "data.max_length=4000"], 2, "longer than the model's context"),
        (None, ["--set", "data.validation=0.999"], 3, "all pairs fell to validation"),
    ],
)  # fmt: skip
def test_what_can_t_be_learned_is_said_in_a_sentence(
    place: Workspace, pairs_file: Path, lines: Any, words: list[str], code: int, sentence: str
):
    if lines is not None:
        pairs_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = llmctl(place.root, "finetune", "--task", "dpo", "--from", "talker", "--data",
                    pairs_file, "--name", "x", *words, code=code)  # fmt: skip
    assert sentence in one_sentence(result)
    assert not place.path("run", "x").exists()


def test_random_weights_and_encoders_are_refused(place: Workspace, pairs_file: Path):
    words = ["finetune", "--task", "dpo", "--data", pairs_file]
    result = llmctl(place.root, *words, "--from", "scratch", "--like", "tiny-gpt", code=2)
    assert "--from scratch answers nothing" in one_sentence(result)


def test_a_reference_without_numbers_is_refused(
    place: Workspace, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task, base = task_of(place, pairs_file)
    model = base.causal_lm()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    monkeypatch.setattr(type(base), "causal_lm", lambda self: model)
    with pytest.raises(InputError, match="no finite log-probability"):
        task.before_training(tmp_path, CPU, Reporter())
