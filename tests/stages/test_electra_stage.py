"""Replaced-token detection from shards to classes, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.open import open_folder
from llmctl.stages import train
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.tasks.electra.task import GENERATOR, open_with_generator
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.pretraining import open_pretraining, resolve
from llmctl.tasks.requests import PretrainRequest
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from tests.conftest import TINY
from tests.once import own_copy
from tests.run import llmctl, one_sentence

ELECTRA = ["pretrain", "--task", "electra", *TINY, "--set", "training.max_steps=30"]
SENTENCE = "The ship sails over the cows sea."


def make(root: Path, corpus: Path) -> None:
    llmctl(root, "tokenize", corpus, "--document", "line", "--vocab-size", "120",
           "--validation", "0.1")  # fmt: skip
    llmctl(root, *ELECTRA, "--name", "tells")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """Shards ``stories`` and a discriminator ``tells``."""
    return own_copy(tmp_path_factory, "electra", lambda root: make(root, corpus_file))


def test_transformers_opens_the_discriminator_and_the_generator(root: Path):
    transformers = pytest.importorskip("transformers")
    folder = root / "runs/tells/model"
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["ElectraForPreTraining"], "electra")
    ids_BT = torch.randint(5, 120, (3, 9))
    own = open_with_generator(open_folder(folder)).eval()
    with torch.no_grad():
        theirs = transformers.ElectraForPreTraining.from_pretrained(folder).eval()
        found_BT = own.logits(own.body(ids_BT))
        torch.testing.assert_close(found_BT, theirs(ids_BT).logits, atol=1e-5, rtol=1e-4)
        theirs = transformers.ElectraForMaskedLM.from_pretrained(folder / GENERATOR).eval()
        found_BTV = own.generator.token_logits(own.generator.body(ids_BT))
        torch.testing.assert_close(found_BTV, theirs(ids_BT).logits, atol=1e-5, rtol=1e-4)
    shared = own.generator.body.token_embedding.weight
    assert shared is own.body.token_embedding.weight


def test_its_accuracy_stands_beside_calling_every_token_original(root: Path):
    evaluation = prepare_evaluation(
        Workspace(root), "tells", Files(), EvaluateConfig(resamples=50), name="told"
    )
    report, _, _ = evaluation.run()
    own, baseline = report.results["model"], report.results["every token original"]
    facts = report.facts
    assert baseline["accuracy"] == 1 - facts["replaced_tokens"] / facts["judged_tokens"]
    low, high = own["accuracy_interval"]
    assert low <= own["accuracy"] <= high
    assert 0 < facts["replaced_tokens"] <= facts["hidden_tokens"] < facts["judged_tokens"]
    put_back = facts["hidden_tokens"] - facts["replaced_tokens"]
    assert facts["generator_accuracy"] == put_back / facts["hidden_tokens"]
    shown = llmctl(root, "eval", "--from", "tells").stdout
    assert "every token original" in shown
    assert "AUC" in shown


def test_predict_tells_of_each_token_how_replaced_it_looks(root: Path):
    transformers = pytest.importorskip("transformers")
    folder = root / "runs/tells/model"
    out = llmctl(root, "predict", "--from", "tells", "--json", SENTENCE, "").stdout.splitlines()
    answer, blank = map(json.loads, out)
    assert blank == {"text": "", "tokens": []}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(SENTENCE, return_tensors="pt", return_offsets_mapping=True)
    starts = encoded.pop("offset_mapping")[0, 1:-1, 0].tolist()
    with torch.no_grad():
        model = transformers.ElectraForPreTraining.from_pretrained(folder).eval()
        expected = torch.sigmoid(model(**encoded).logits[0, 1:-1]).tolist()
    assert [token["replaced"] for token in answer["tokens"]] == pytest.approx(expected, rel=1e-4)
    assert [token["start"] for token in answer["tokens"]] == starts
    ids = tokenizer.convert_tokens_to_ids([token["token"] for token in answer["tokens"]])
    assert ids == encoded["input_ids"][0, 1:-1].tolist()
    told = llmctl(root, "predict", "--from", "tells", "--top", "2", SENTENCE).stdout.splitlines()
    assert told[0] == SENTENCE
    assert len(told) == 3
    long = " ".join([SENTENCE] * 30)
    out = llmctl(root, "predict", "--from", "tells", "--json", long).stdout
    assert len(json.loads(out)["tokens"]) == 30 * len(answer["tokens"])


def test_it_is_finetuned_for_classes_and_opens_as_such(root: Path, labelled_file: Path):
    transformers = pytest.importorskip("transformers")
    llmctl(root, "finetune", "--from", "tells", "--data", labelled_file, "--name", "classes",
           "--set", "training.epochs=1", "--set", "training.precision=fp32")  # fmt: skip
    folder = root / "runs/classes/model"
    out = llmctl(root, "predict", "--from", "classes", "--json", SENTENCE).stdout
    kind = transformers.ElectraForSequenceClassification
    classifier = transformers.pipeline(
        "text-classification", model=kind.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder), top_k=None,
    )  # fmt: skip
    expected = {entry["label"]: entry["score"] for entry in classifier([SENTENCE])[0]}
    assert json.loads(out)["probabilities"] == pytest.approx(expected, rel=1e-4)


def request(place: Workspace, *layers: dict[str, Any], **named: Any) -> PretrainRequest:
    tiny = {
        "data": {"sequence_length": 32, "eval_batches": 1},
        "training": {"max_steps": 12, "batch_size": 4, "precision": "fp32", "log_every": 1,
                     "checkpoint_every": 5},
    }  # fmt: skip
    return PretrainRequest.of(place, {"task": "electra", **named}, {}, {}, tiny, *layers)


def test_the_same_command_goes_on_after_a_kill_to_the_same_bits(root: Path):
    place = Workspace(root)
    asked = request(place, {"model": {"hidden_size": 32, "num_heads": 2, "num_layers": 2}})
    whole, _ = train.train(place, asked, name="whole")
    step, made = Trainer._step, []

    def failing(self: Trainer, *given: Any) -> Any:
        made.append(None)
        if len(made) == 9:
            raise RuntimeError("the power is gone")
        return step(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", failing)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train.train(place, asked, name="parts")
    parts, _ = train.train(place, asked, name="parts")
    assert parts.manifest.digest == whole.manifest.digest
    assert f"model/{GENERATOR}/model.safetensors" in parts.manifest.files


def test_embeddings_start_from_co_occurrences_where_that_is_asked_for(root: Path):
    shards = Workspace(root).get("shards", "stories")
    layer = {"model": {"hidden_size": 32, "num_heads": 2}, "embeddings": "cooccurrence"}
    own, masked = (
        open_pretraining(shards, resolve("bert", "nano", layer, task=task)).build_model()
        for task in ("electra", None)
    )
    table = masked.get_parameter("body.token_embedding.weight")
    # Pieces without company are drawn, as in a network of random weights.
    same_V = (own.get_parameter("body.token_embedding.weight") == table).all(1)
    assert same_V.float().mean() > 0.5
    assert own.generator.body.token_embedding is own.body.token_embedding


def test_it_goes_on_from_its_own_model_with_its_generator(root: Path):
    place = Workspace(root)
    asked = request(place, {"training": {"max_steps": 1}}, **{"from": "tells", "task": None})
    task = asked.open(place, train.Reporter()).open(asked.config, train.Reporter())
    started = task.build_model().state_dict()
    kept = open_with_generator(open_folder(root / "runs/tells/model")).state_dict()
    assert started.keys() == kept.keys()
    assert all(torch.equal(started[name], kept[name]) for name in kept)


def test_a_masked_language_model_can_be_what_it_starts_from(root: Path):
    llmctl(root, "pretrain", *TINY, "--set", "training.max_steps=1", "--name", "masked")
    place = Workspace(root)
    asked = request(place, **{"from": "masked"})
    task = asked.open(place, train.Reporter()).open(asked.config, train.Reporter())
    started, kept = task.build_model(), open_folder(root / "runs/masked/model").masked_lm()
    for name, tensor in kept.body.state_dict().items():
        assert torch.equal(started.body.state_dict()[name], tensor)


def test_a_discriminator_without_its_generator_is_not_measured(root: Path, tmp_path: Path):
    import shutil

    shutil.copytree(root / "runs/tells/model", tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / GENERATOR)
    with pytest.raises(InputError, match="has no folder generator"):
        open_with_generator(open_folder(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--arch", "gpt"], "--task electra is not for --arch gpt"),
        (["--budget", "5m"], "--arch bert --task electra has no scaling law"),
        (["--set", "objective.mask_rate=0"], "objective.mask_rate"),
        (["--set", "objective.generator_width=2"], "objective.generator_width"),
        (["--set", "objective.next_sentence=true"], "objective.next_sentence"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(root: Path, words: list[str], says: str):
    result = llmctl(root, "pretrain", "--task", "electra", *words, code=2)
    assert says in one_sentence(result)
