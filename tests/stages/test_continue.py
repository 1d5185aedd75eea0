"""Pretraining that goes on with a model on new shards (``pretrain --from``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.reporting.reporter import Reporter
from llmctl.stages import remove, train
from llmctl.stages.plan import plan
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.tasks.evaluation import validation_losses
from llmctl.tasks.pretraining import REWARMED, resolve
from llmctl.tasks.requests import PretrainRequest
from llmctl.training.config import TrainingConfig
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Artefact, Workspace
from tests.foreign_models import TEXTS, save_model

QUICK: dict[str, Any] = {
    "data": {"sequence_length": 32, "eval_batches": 1},
    "training": {"max_steps": 20, "batch_size": 4, "precision": "fp32", "log_every": 1},
}
ARCHES = pytest.mark.parametrize("like", ["gpt2", "llama", "bert"])
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "bert": "BertForMaskedLM"}


def request(place: Workspace, start: str, *layers: dict[str, Any], **named: Any) -> PretrainRequest:
    return PretrainRequest.of(place, {"from": start, **named}, {}, {}, *layers)


class Notes(Reporter):
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    (tmp_path / "new.txt").write_text("\n".join(TEXTS * 12))
    return Workspace(tmp_path / "w")


def theirs(place: Workspace, folder: Path, like: str) -> Any:
    """A model of transformers in a folder, and new text as shards with its tokenizer."""
    pytest.importorskip("transformers")
    dropout = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    model = save_model(folder, CLASSES[like], like=like, **dropout.get(like, {}))
    config = TokenizeConfig(tokenizer=str(folder), document="line", validation=0.2, workers=1)
    tokenize(place, [str(place.root.parent / "new.txt")], config, name="new")
    return model


def records(run: Artefact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def causal_loss(model: Any, batch: Any) -> float:
    """What transformers' model loses of each next token, by a mean."""
    logits = model(batch.input_ids_BT).logits
    labels = batch.labels_BT.flatten()
    return float(F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED))


def masked_loss(model: Any, batch: Any) -> float:
    """The same of the hidden tokens, each text of a packed row by itself."""
    labels_BT = torch.full_like(batch.input_ids_BT, IGNORED)
    labels_BT.view(-1)[batch.masked_M] = batch.labels_M
    numbers_BT = (
        torch.ones_like(labels_BT) if batch.packed is None else batch.packed.sequence_ids_BT
    )
    total = 0.0
    for ids_T, labels_T, numbers_T in zip(batch.input_ids_BT, labels_BT, numbers_BT, strict=True):
        for number in range(1, int(numbers_T.max()) + 1):
            text = numbers_T == number
            logits = model(ids_T[text][None]).logits[0]
            total += float(F.cross_entropy(logits, labels_T[text], ignore_index=IGNORED,
                                           reduction="sum"))  # fmt: skip
    return total / len(batch.labels_M)


@ARCHES
def test_a_foreign_models_loss_is_that_of_transformers_and_falls(
    place: Workspace, tmp_path: Path, like: str
):
    """fp32 sums in another order: 1e-5."""
    model = theirs(place, tmp_path / "theirs", like)
    asked = request(place, str(tmp_path / "theirs"), QUICK)
    task: Any = asked.open(place, Reporter()).open(asked.config, Reporter())
    batch = task.batch(0)
    with torch.no_grad():
        ours = float(task.loss(task.build_model().eval(), batch).total)
        expected = masked_loss(model, batch) if like == "bert" else causal_loss(model, batch)
    assert ours == pytest.approx(expected, rel=1e-5)
    run, up_to_date = train.train(place, asked, reporter=Reporter())
    assert not up_to_date
    assert run.manifest.name == "theirs-new"
    losses = [record["loss"] for record in records(run) if record["kind"] == "train"]
    start, _ = validation_losses(
        task.build_model().eval(), place.get("shards", "new"), asked.config, torch.device("cpu"),
        progress=lambda number, total: None,
    )  # fmt: skip
    assert losses[0] == pytest.approx(ours, rel=1e-5)
    assert run.manifest.summary["validation"]["loss"] < start["loss"]
    assert train.train(place, request(place, str(tmp_path / "theirs"), QUICK))[1]


@pytest.fixture
def two(place: Workspace) -> Workspace:
    """A run ``base`` of shards ``old``, and shards ``new`` with its tokenizer."""
    text = place.root.parent / "new.txt"
    old = TokenizeConfig(
        tokenizer="bpe", vocab_size=300, document="line", validation=0.2, workers=1
    )
    tokenize(place, [str(text)], old, name="old")
    shape = {"model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}}
    train.pretrain(place, resolve("gpt", "nano", shape, QUICK), name="base")
    (text.parent / "more.txt").write_text("\n".join(sentence[::-1] for sentence in TEXTS * 12))
    own = str(place.root / "runs" / "base" / "model")
    new = TokenizeConfig(tokenizer=own, document="line", validation=0.2, workers=1)
    tokenize(place, [str(text.parent / "more.txt")], new, name="new")
    return place


def test_it_begins_where_the_model_is_and_says_where_from(two: Workspace):
    asked = request(two, "base", {"training": QUICK["training"]}, shards="new")
    assert asked.config.data.sequence_length == 32  # as the model was trained
    peak = TrainingConfig.model_fields["muon_learning_rate"].default
    assert asked.config.training.muon_learning_rate == pytest.approx(REWARMED * peak)
    device = torch.device("cpu")
    task: Any = asked.open(two, Reporter()).open(asked.config, Reporter())
    fresh = resolve("gpt", "nano", {"model": {"hidden_size": 32, "num_heads": 2}}, QUICK)
    scratch = PretrainRequest(fresh, shards="old").open(two, Reporter()).open(fresh, Reporter())
    assert task.config.training.learning_rate == pytest.approx(
        REWARMED * scratch.config.training.learning_rate
    )
    base = asked.base
    assert base is not None
    losses = [
        validation_losses(
            model.eval(), two.get("shards", "new"), asked.config, device,
            progress=lambda number, total: None,
        )[0]["loss"]
        for model in (task.build_model(), base.folder.causal_lm())
    ]  # fmt: skip
    assert losses[0] == losses[1]
    run, _ = train.train(two, asked)
    assert run.manifest.name == "base-new"
    assert run.manifest.summary["validation"]["loss"] < losses[0]
    assert [record.name for record in run.manifest.inputs] == ["shards/new", "run/base"]
    assert {record.name for _, record, _ in two.lineage(run.manifest)} >= {"run/base", "shards/old"}
    with pytest.raises(UsageError, match="run/base-new was made from run/base"):
        remove.plan(two, ["run/base"], force=False)
    assert train.train(two, request(two, "base", {"training": QUICK["training"]}, shards="new"))[1]


def test_the_same_command_goes_on_after_a_stop_to_the_same_bits(two: Workspace):
    asked = request(two, "base", {"training": {**QUICK["training"], "checkpoint_every": 5}},
                    shards="new")  # fmt: skip
    whole, _ = train.train(two, asked, name="whole")
    step, made = Trainer._step, []

    def failing(self: Trainer, *given: Any) -> Any:
        made.append(None)
        if len(made) == 12:
            raise RuntimeError("the power is gone")
        return step(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", failing)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train.train(two, asked, name="parts")
    notes = Notes()
    parts, _ = train.train(two, asked, name="parts", reporter=notes)
    assert "going on with parts from step 10" in notes.said
    assert parts.manifest.digest == whole.manifest.digest


def test_a_dry_run_tells_what_it_takes(two: Workspace):
    asked = request(two, "base", {"training": QUICK["training"]}, shards="new")
    document = plan(two, asked, Reporter())
    assert document["plan"]["shards"] == "new"
    assert document["plan"]["total_steps"] == 20
    assert "base-new" not in two.names("run")


def test_what_does_not_go_with_it_is_refused_by_name(two: Workspace):
    for named, layer, says in (
        ({"arch": "gpt"}, {}, r"--arch: --from base says which network it is"),
        ({"preset": "mini"}, {}, r"--preset: --from base says"),
        ({}, {"model": {"num_layers": 3}}, r"model\.num_layers: --from base says"),
        ({}, {"budget": "5m"}, r"--budget chooses a shape, and --from base has one"),
    ):
        with pytest.raises(UsageError, match=says):
            request(two, "base", layer, **named)
    with pytest.raises(ConfigError, match="sequence_length 128 is longer than"):
        request(two, "base", {"data": {"sequence_length": 128}})
    other = TokenizeConfig(tokenizer="bpe", vocab_size=290, document="line", workers=1)
    tokenize(two, [str(two.root.parent / "more.txt")], other, name="other")
    asked = request(two, "base", shards="other")
    with pytest.raises(InputError, match="made with another tokenizer than that of --from base"):
        asked.open(two, Reporter())
