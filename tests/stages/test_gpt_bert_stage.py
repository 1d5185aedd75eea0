"""One network that goes on with texts, fills masks and gives classes, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.stages import train
from llmctl.tasks.pretraining import resolve
from llmctl.tasks.requests import PretrainRequest
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from tests.conftest import TINY
from tests.once import own_copy
from tests.run import llmctl, one_sentence

GPT_BERT = [
    "pretrain", "--arch", "llama", "--task", "gpt_bert", *TINY, "--set", "training.max_steps=30",
    "--set", "objective.causal_share=0.5", "--set", "model.num_kv_heads=2",
]  # fmt: skip
TEXT = "The ship sails over the wide sea."


def make(root: Path, corpus: Path) -> None:
    llmctl(root, "tokenize", corpus, "--document", "line", "--tokenizer", "bpe",
           "--vocab-size", "290", "--validation", "0.1")  # fmt: skip
    llmctl(root, *GPT_BERT, "--name", "both")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """Shards ``stories`` and a run ``both``."""
    return own_copy(tmp_path_factory, "gpt_bert", lambda root: make(root, corpus_file))


def test_it_says_what_it_is_and_opens_as_a_language_model(root: Path):
    transformers = pytest.importorskip("transformers")
    folder = root / "runs/both/model"
    config = json.loads((folder / "config.json").read_text())
    assert (config["llmctl_task"], config["architectures"]) == ("gpt_bert", ["LlamaForCausalLM"])
    assert "is_causal" not in config
    summary = json.loads((root / "runs/both/manifest.json").read_text())["summary"]
    assert {"lm_loss", "mntp_loss", "mntp_accuracy"} <= summary["validation"].keys()
    ids_BT = torch.randint(5, 290, (2, 9))
    model = open_folder(folder).causal_lm().eval()
    with torch.no_grad():
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
        torch.testing.assert_close(
            model.logits(model.body(ids_BT)), theirs(ids_BT).logits, atol=1e-5, rtol=1e-4
        )
        both = transformers.LlamaConfig.from_pretrained(folder)
        both.is_causal = False
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, config=both).eval()
        found_BTV = model.logits(model.body(ids_BT, bidirectional=True))
        torch.testing.assert_close(found_BTV, theirs(ids_BT).logits, atol=1e-5, rtol=1e-4)


def test_it_writes_and_is_measured_as_a_language_model(root: Path):
    out = llmctl(root, "generate", "--from", "both", "--prompt", "The ship", "--json",
                 "--max-new-tokens", "5", "--temperature", "0").stdout  # fmt: skip
    assert json.loads(out)["answers"][0]["completions"][0]["text"]
    out = llmctl(root, "eval", "--from", "both").stdout
    assert "bits per byte" in out


def test_it_fills_masks_reading_both_ways(root: Path):
    model, folder = (f := open_folder(root / "runs/both/model")).causal_lm().eval(), f
    tokenizer = folder.tokenizer
    out = llmctl(root, "predict", "--from", "both", "--json", "--top", "3",
                 "The ship<|mask|> over the sea.").stdout  # fmt: skip
    (found,) = json.loads(out)["masks"]
    ids = [*tokenizer.layout.before,
           *tokenizer.encode("The ship<|mask|> over the sea.", allow_special=True)]  # fmt: skip
    place = ids.index(tokenizer.special["mask"])
    with torch.no_grad():
        hidden_1TD = model.body(torch.tensor([ids]), bidirectional=True)
        p_V = torch.softmax(model.logits(hidden_1TD[0, place - 1]).double(), -1)
    p_V[list(tokenizer.special_ids)] = 0
    best = p_V.topk(3)
    assert [entry["probability"] for entry in found] == pytest.approx(best.values.tolist(), 1e-4)
    assert [entry["token"] for entry in found] == [
        tokenizer.id_to_token(number) for number in best.indices.tolist()
    ]


def test_a_classifier_of_it_reads_both_ways_here_and_in_transformers(
    root: Path, labelled_file: Path
):
    transformers = pytest.importorskip("transformers")
    llmctl(root, "finetune", "--from", "both", "--data", labelled_file, "--name", "classes",
           "--set", "training.epochs=1", "--set", "training.precision=fp32")  # fmt: skip
    folder = root / "runs/classes/model"
    config = json.loads((folder / "config.json").read_text())
    assert config["is_causal"] is False
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    texts = [TEXT, "Hens."]
    lines = llmctl(root, "predict", "--from", "classes", "--json", *texts).stdout.splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    model = transformers.LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        encoded = tokenizer(texts, return_tensors="pt", padding=True)
        logits_BC = model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    for line, row_C in zip(lines, torch.softmax(logits_BC.double(), -1), strict=True):
        expected = {config["id2label"][str(n)]: float(p) for n, p in enumerate(row_C)}
        assert json.loads(line)["probabilities"] == pytest.approx(expected, rel=1e-4)
    opened = open_folder(folder).classifier().eval()
    ids = torch.tensor([[5, 9, 12, 30, 44]])
    changed = ids.clone()
    changed[0, 3] = 31
    with torch.no_grad():
        first_D, other_D = (opened.body(part)[0, 0] for part in (ids, changed))
    assert not torch.allclose(first_D, other_D)  # the first token sees the fourth


def test_the_same_command_goes_on_after_a_kill_to_the_same_bits(root: Path):
    place = Workspace(root)
    layer: dict[str, Any] = {
        "data": {"sequence_length": 32, "eval_batches": 1},
        "model": {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "num_kv_heads": 1},
        "training": {"max_steps": 12, "batch_size": 4, "precision": "fp32", "log_every": 1,
                     "checkpoint_every": 5},
    }  # fmt: skip
    asked = PretrainRequest.of(place, {"arch": "llama", "task": "gpt_bert"}, {}, {}, layer)
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


def test_what_does_not_go_with_it_is_refused_by_name(root: Path, corpus_file: Path):
    for words, says in (
        (["--arch", "mistral"], "--task gpt_bert is not for --arch mistral"),
        (["--arch", "llama", "--set", "objective.causal_share=1.5"], "objective.causal_share"),
        (["--arch", "llama", "--set", "data.document_mask=true"], "data.document_mask"),
    ):
        result = llmctl(root, "pretrain", "--task", "gpt_bert", *words, code=2)
        assert says in one_sentence(result)
    for task in (None, "gpt_bert"):
        with pytest.raises(ConfigError, match=r"model\.bidirectional"):
            resolve("llama", "nano", {"model": {"bidirectional": True}}, task=task)


def test_a_plain_language_model_s_classifier_reads_from_left_to_right(root: Path):
    llmctl(root, "pretrain", "--arch", "llama", *TINY, "--set", "training.max_steps=1",
           "--set", "model.num_kv_heads=2", "--name", "plain")  # fmt: skip
    opened = open_folder(root / "runs/plain/model")
    assert opened.kind == "causal_lm"
    assert not opened.new_classifier(2, dropout=0.0, scratch=False).body.config.bidirectional
    assert llmctl(root, "predict", "--from", "plain", TEXT, code=3).stderr
    with pytest.raises(InputError):
        opened.masked_lm()
