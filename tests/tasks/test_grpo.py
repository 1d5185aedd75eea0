"""Rewards make answers likelier: the loss, what is drawn, and what comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import Interrupted
from llmctl.formats.open import open_folder
from llmctl.reporting.reporter import Reporter
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.grpo.loss import advantages, clipped_loss, kl_estimate
from llmctl.tasks.grpo.task import GrpoTask
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import sha256_file
from tests.conftest import SAYINGS
from tests.run import llmctl, one_sentence
from tests.tasks.test_dpo import CPU, StopsAt, moved, plain_log_probs

SHORT = {"precision": "fp32", "max_steps": 6, "batch_size": 4, "learning_rate": 2e-3,
         "checkpoint_every": 2, "log_every": 1}  # fmt: skip
OBJECTIVE = {"reward": "regex", "pattern": "cows", "group_size": 4, "max_new_tokens": 12}


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Questions that the talker knows."""
    path = tmp_path / "asked.jsonl"
    lines = [{"prompt": f"{asked} ({n})", "answer": n} for n in range(8) for asked in SAYINGS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def place(decoder_workspace: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(decoder_workspace, tmp_path / "own")))


def task_of(place: Workspace, path: Path, **objective: Any) -> GrpoTask:
    base = open_folder(place.path("run", "talker") / "model")
    config = resolve("grpo", {"training": SHORT, "objective": {**OBJECTIVE, **objective}})
    return GrpoTask(path, base, config, start="talker", reporter=Reporter())  # type: ignore[arg-type]


def test_the_parts_of_the_loss_are_the_papers():
    generator = np.random.default_rng(0)
    rewards = generator.random((5, 8))
    found = advantages(torch.from_numpy(rewards)).numpy()
    # Dr. GRPO: the mean is taken off, the standard deviation is not divided by.
    np.testing.assert_allclose(found, rewards - rewards.mean(1, keepdims=True))
    new, old = generator.normal(-2, 0.5, 200), generator.normal(-2, 0.5, 200)
    worth = generator.normal(0, 1, 200)
    ratio = np.exp(new - old)
    gain = np.minimum(ratio * worth, np.clip(ratio, 0.8, 1.2) * worth)
    tensors = [torch.from_numpy(x) for x in (new, old, worth)]
    tensors[0].requires_grad_()
    loss, clipped = clipped_loss(*tensors, 0.2)
    assert float(loss.detach()) == pytest.approx(-gain.sum())
    # Where the ratio has gone beyond the clip in the direction that pays, there is no gradient.
    loss.backward()
    beyond = ((ratio > 1.2) & (worth > 0)) | ((ratio < 0.8) & (worth < 0))
    assert int(clipped) == beyond.sum() > 0
    expected = np.where(beyond, 0.0, -ratio * worth)
    np.testing.assert_allclose(tensors[0].grad.numpy(), expected, rtol=1e-9)
    difference = old - new
    kl = kl_estimate(torch.from_numpy(new), torch.from_numpy(old))
    assert float(kl) == pytest.approx((np.exp(difference) - difference - 1).sum())


def test_the_estimate_of_the_divergence_is_unbiased():
    """Over all tokens of a small vocabulary, by their probability, it is the divergence."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    each = [float(kl_estimate(torch.tensor([np.log(a)]), torch.tensor([np.log(b)])))
            for a, b in zip(p, q, strict=True)]  # fmt: skip
    assert (p * each).sum() == pytest.approx((p * np.log(p / q)).sum())


def test_the_loss_of_a_batch_is_that_of_whole_logits(place: Workspace, asked: Path, tmp_path: Path):
    task = task_of(place, asked, beta=0.3, temperature=1.5)
    task.before_training(tmp_path, CPU, Reporter())
    policy = moved(task.build_model()).train()
    batch = task.batch(0)
    found = task.loss(policy, batch)
    tried = task._tried[1]
    start = task.build_model()

    def scaled(model: Any) -> Any:
        return lambda ids: model.logits(model.body(torch.tensor([ids]))[0]) / 1.5

    count = len(batch) * 4 * 12
    policy_loss, kl = 0.0, 0.0
    for place_ in range(len(batch)):
        one = tried[place_]
        worth = np.asarray([rewards[0] for rewards in one.rewards])
        totals = plain_log_probs(scaled(policy), one.answers)
        # w is 1 and has the gradient of the log-probability: −A Σ log π, but for its value.
        policy_loss = policy_loss - (torch.tensor(worth - worth.mean()) * totals).sum()
        for answer in one.answers:
            ids = answer.ids.tolist()
            rows = [scaled(m)(ids).double().log_softmax(-1) for m in (policy, start)]
            for t in range(answer.start, len(ids)):
                d = rows[1][t - 1, ids[t]].detach() - rows[0][t - 1, ids[t]]
                kl = kl + d.exp() - d - 1
    assert float(found.metrics["kl"].total.detach()) == pytest.approx(float(kl.detach()), rel=1e-3)
    expected = policy_loss / count + 0.3 * kl / count
    weights = list(policy.parameters())
    ours = torch.autograd.grad(found.total, weights)
    theirs = torch.autograd.grad(expected, weights)
    for one_, other in zip(ours, theirs, strict=True):
        scale = float(other.abs().max()) + 1e-7
        torch.testing.assert_close(one_ / scale, other / scale, rtol=1e-3, atol=1e-3)


def test_what_is_drawn_does_not_depend_on_how_a_batch_is_divided(place: Workspace, asked: Path):
    texts, totals = [], []
    for edges in ([(0, 4)], [(0, 1), (1, 4)], [(2, 4), (0, 2)]):
        task = task_of(place, asked, temperature=2.0)
        policy, batch = task.build_model().train(), task.batch(1)
        parts = [task.loss(policy, batch.rows(*edge)) for edge in edges]
        tried = task._tried[1]
        texts.append([[one.text for one in tried[n].completions] for n in range(4)])
        total = sum(float(part.losses["policy_loss"].total.detach()) for part in parts)
        counts = sum(part.losses["policy_loss"].count for part in parts)
        assert counts == batch.loss_denominators["policy_loss"]
        totals.append(total)
    assert texts[0] == texts[1] == texts[2]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)
    assert len({text for group in texts[0] for text in group}) > 4
    other = task_of(place, asked, temperature=2.0)
    other.loss(other.build_model().train(), other.batch(2))
    assert other._tried[1][0].completions != task._tried[1][0].completions


def test_further_iterations_go_by_the_same_answers(place: Workspace, asked: Path):
    task = task_of(place, asked, iterations=2)
    policy = task.build_model().train()
    assert task.batch(0).rollout == task.batch(1).rollout != task.batch(2).rollout
    task.loss(policy, task.batch(0))
    before = [task._tried[1][n].completions for n in range(4)]
    old = [task._tried[1][n].old.clone() for n in range(4)]
    again = task.loss(moved(policy).train(), task.batch(1))
    assert [task._tried[1][n].completions for n in range(4)] == before
    assert all(torch.equal(task._tried[1][n].old, old[n]) for n in range(4))
    assert "clipped" in again.metrics


@pytest.mark.parametrize("fields", [{"method": "lora"}, {"objective": {"iterations": 2}}])
def test_a_stopped_run_ends_the_same_to_the_bit(
    place: Workspace, asked: Path, fields: dict[str, Any]
):
    objective = {**OBJECTIVE, "temperature": 1.5, "beta": 0.05, **fields.pop("objective", {})}
    config = resolve("grpo", {"training": SHORT, "objective": objective, **fields})
    whole, _ = finetune(place, "talker", asked, config, name="whole")
    with pytest.raises(Interrupted, match="after writing a checkpoint"):
        finetune(place, "talker", asked, config, name="cut", reporter=StopsAt(3))
    cut, _ = finetune(place, "talker", asked, config, name="cut")
    files = [sha256_file(run.folder / "model" / "model.safetensors") for run in (whole, cut)]
    assert files[0] == files[1]


def test_what_is_rewarded_becomes_likelier_and_is_measured(place: Workspace, asked: Path):
    """The talker answers three questions in turn; a third of its answers speak of cows."""
    objective = {**OBJECTIVE, "temperature": 1.5, "group_size": 8}
    training = {**SHORT, "max_steps": 16, "learning_rate": 5e-3, "eval_every": 16}
    config = resolve("grpo", {"training": training, "objective": objective})
    run, _ = finetune(place, "talker", asked, config, name="cows")
    assert run.manifest.summary["validation"]["reward"] > 0.9
    told = json.loads(llmctl(place.root, "status", "cows", "--json").stdout)["run"]
    assert len(told["rewards"]) == 16
    assert told["rewards"][-1] > 0.8 > 0.6 > told["rewards"][0]
    result = llmctl(place.root, "eval", "--from", "cows", "--data", asked, "--task", "reward",
                    "--max-new-tokens", 12, "--json")  # fmt: skip
    report = json.loads(result.stdout)
    rows = report["results"]
    assert rows["untuned"]["reward"] == pytest.approx(1 / 3)
    assert rows["model"]["reward"] > 0.9
    assert report["differences"]["untuned"]["low"] > 0.4
    sample = next(s for s in report["samples"] if "ship" in s["prompt"])
    assert "sea" in sample["before"]
    assert "cows" in sample["after"]


@pytest.mark.distributed
def test_two_processes_draw_and_find_what_one_does(place: Workspace, asked: Path):
    words = ["finetune", "--from", "talker", "--task", "grpo", "--data", asked, "--reward", "regex",
             "--set", "objective.pattern=cows", "--set", "objective.temperature=1.5",
             "--set", "objective.max_new_tokens=12"]  # fmt: skip
    words += [w for k, v in SHORT.items() for w in ("--set", f"training.{k}={v}")]
    words += ["--set", "training.max_steps=3"]
    llmctl(place.root, *words, "--name", "one")
    llmctl(place.root, *words, "--name", "two", "--nproc", 2)
    figures = []
    for name in ("one", "two"):
        lines = map(json.loads, (place.path("run", name) / "metrics.jsonl").open())
        train = [line for line in lines if line["kind"] == "train"]
        figures.append([[x["reward"], x["answer_tokens"], x["gradient_norm"]] for x in train])
    np.testing.assert_allclose(*figures, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--reward", "nmber"], 2, "did you mean 'number'"),
        (["--reward", "number", "--set", "objective.answer_column=sum"], 3,
         "asked.jsonl:1 has no column 'sum'"),
        (["--set", "training.parallel=fsdp"], 2, "training.parallel fsdp is not for --task grpo"),
        (["--set", "data.max_length=4"], 3, "no prompt leaves room for an answer within 4"),
        (["--reward", "nowhere.py:f"], 3, "nowhere.py"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    place: Workspace, asked: Path, words: list[str], code: int, sentence: str
):
    result = llmctl(place.root, "finetune", "--task", "grpo", "--from", "talker", "--data", asked,
                    "--name", "x", *words, code=code)  # fmt: skip
    assert sentence in one_sentence(result)
    assert not place.path("run", "x").exists()


def test_a_reward_of_another_task_and_none_are_refused(place: Workspace, asked: Path):
    words = ["--from", "talker", "--data", asked]
    result = llmctl(place.root, "finetune", "--task", "instruct", *words, "--reward", "number",
                    code=2)  # fmt: skip
    assert "--reward goes with --task grpo" in one_sentence(result)
    result = llmctl(place.root, "eval", *words, "--task", "reward", code=2)
    assert "say what its answers are worth, --reward" in one_sentence(result)
