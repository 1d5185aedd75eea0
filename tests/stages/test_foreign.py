"""Models of others under the commands: the same answers as transformers gives, and what is
finetuned from them opens again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import processors

from llmctl.data.tables.labelled import Example
from llmctl.formats.open import open_folder
from llmctl.stages.chat import ChatConfig, open_chat
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune
from llmctl.tasks import finetuning
from llmctl.tasks.classify.predict import Prediction
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.masked_lm.predict import Filling
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import TEXTS, learned, save_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

QUICK = {"max_steps": 2, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2}
LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]


def write_table(path: Path, *, pairs: bool, labels: Sequence[str] = ("farm", "sea")) -> Path:
    rows = []
    for number, text in enumerate([*TEXTS, *TEXTS]):
        row = {"text": f"{text} {number}", "label": labels[number % len(labels)]}
        if pairs:
            second = "" if number == 3 else TEXTS[number % 5]
            row = {"sentence1": row["text"], "sentence2": second, "label": row["label"]}
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows))
    return path


def classified(
    workspace: Workspace, start: str, texts: Sequence[tuple[str, str | None]], names: Sequence[str]
) -> np.ndarray:
    examples = [Example(first, second, None, "x:1") for first, second in texts]
    answers = list(predict(workspace, start, examples))
    assert all(isinstance(answer, Prediction) for answer in answers)
    return np.array([[answer.probabilities[name] for name in names] for answer in answers])  # type: ignore[union-attr]


@torch.no_grad()
def theirs(folder: Path, texts: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """What transformers answers to each text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for first, second in texts:
        # In lists, as an empty second text is none otherwise.
        batch = tokenizer([first], None if second is None else [second], return_tensors="pt")
        wanted = {"input_ids", "attention_mask"}
        if model.config.model_type == "bert":
            wanted.add("token_type_ids")
        inputs = {name: value for name, value in batch.items() if name in wanted}
        rows.append(model(**inputs).logits[0].double().softmax(-1).numpy())
    return np.array(rows)


SINGLE: list[tuple[str, str | None]] = [(text, None) for text in TEXTS]
PAIRS: list[tuple[str, str | None]] = [*pairwise(TEXTS), (TEXTS[0], "")]
BASES = {
    "gpt2": "GPT2LMHeadModel", "qwen": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM",
    "ours": "GPT2LMHeadModel", "bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}  # fmt: skip


@pytest.mark.parametrize("like", BASES)
def test_a_classifier_from_anybodys_model_is_to_transformers_what_it_is_here(
    tmp_path: Path, like: str
):
    """Texts and pairs; fp32 sums in another order: 1e-5. The vocabulary is padded, too."""
    save_model(tmp_path / "base", BASES[like], like=like, padding=11)
    workspace = Workspace(tmp_path / "w")
    data = write_table(tmp_path / "data.jsonl", pairs=True)
    config = finetuning.resolve("classify", {"training": QUICK})
    finetune(workspace, str(tmp_path / "base"), data, config, name="c")
    folder = workspace.path("run", "c") / "model"
    for texts in (SINGLE, PAIRS):
        ours = classified(workspace, "c", texts, ["farm", "sea"])
        np.testing.assert_allclose(ours, theirs(folder, texts), atol=1e-5)
        assert ours.std() > 1e-3
    report, _, _ = prepare_evaluation(
        workspace, "c", Files(data), EvaluateConfig(baselines=False)
    ).run()
    assert report.facts["examples"] == 18


@pytest.mark.parametrize("pad", [None, "eos"])
@pytest.mark.parametrize(
    ("like", "kind"),
    [
        ("gpt2", "GPT2ForSequenceClassification"),
        ("qwen", "Qwen3ForSequenceClassification"),
        ("llama", "LlamaForSequenceClassification"),
        ("bert", "BertForSequenceClassification"),
        ("bert", "DistilBertForSequenceClassification"),
        ("roberta", "RobertaForSequenceClassification"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
    ],
)
def test_a_classifier_of_others_answers_as_in_transformers(
    tmp_path: Path, like: str, kind: str, pad: str | None
):
    folder = tmp_path / "theirs"
    kinds = {"llama": "unigram", "bert": "wordpiece"}
    special = learned(kinds.get(like, "bpe")).special
    padding = {"pad_token_id": special.get(pad)} if pad else {}
    save_model(folder, kind, like=like, num_labels=3, **padding)
    if pad and like not in (
        "bert",
        "roberta",
        "xlm-roberta",
    ):  # a text that ends with it is looked at before
        rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
        rust.post_processor = processors.TemplateProcessing(
            single="$A </s>" if like == "llama" else "$A <|endoftext|>",
            special_tokens=[("</s>", 3)] if like == "llama" else [("<|endoftext|>", 0)],
        )
        rust.save(str(folder / "tokenizer.json"))
    workspace = Workspace(tmp_path / "w")
    for texts in (SINGLE, PAIRS):
        ours = classified(workspace, str(folder), texts, LABELS)
        np.testing.assert_allclose(ours, theirs(folder, texts), atol=1e-5)
    data = write_table(tmp_path / "data.jsonl", pairs=False, labels=LABELS)
    report, _, _ = prepare_evaluation(workspace, str(folder), Files(data), EvaluateConfig()).run()
    assert report.facts["examples"] == 18
    assert any("baselines left out" in note for note in report.notes)


def written(workspace: Workspace, start: str, text: str, **fields: Any) -> list[int]:
    config = GenerateConfig(**{"max_new_tokens": 12, **fields})
    generation = open_generation(workspace, start, config)
    ((answer),) = generation.answers([Prompt(text, "x:1")])
    return list(answer.completions[0].ids)


@torch.no_grad()
def their_greedy(folder: Path, text: str, new: int = 12) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        suppress_tokens=list(range(tokenizer.vocab_size, model.config.vocab_size)) or None,
        pad_token_id=0,
    )  # fmt: skip
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Qwen2ForCausalLM", {}),
        ("MistralForCausalLM", {"sliding_window": 5}),
        ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
        ("Gemma3ForCausalLM", {"sliding_window": 4, "sliding_window_pattern": 2}),
        ("NanoChatForCausalLM", {}),
    ],
)
def test_every_family_of_decoders_writes_as_in_transformers(
    tmp_path: Path, kind: str, fields: dict[str, Any]
):
    """From the first token on, of a folder whose weights are in several files."""
    folder = tmp_path / "theirs"
    model = save_model(folder, kind, like="qwen", eos_token_id=None, **fields)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    workspace, ends = Workspace(tmp_path / "w"), learned("bpe").special
    for text in ("the ship", "hens"):
        found, expected = written(workspace, str(folder), text), their_greedy(folder, text)
        assert found == expected[: len(found)]
        assert len(found) == 12 or found[-1] in (ends["eos"], ends.get("turn_end"))


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("like", ["gpt2", "qwen", "llama", "ours"])
def test_others_language_models_write_as_in_transformers(tmp_path: Path, like: str, padding: int):
    """From the first token on, and never a row that the tokenizer has no piece for."""
    folder = tmp_path / "theirs"
    save_model(folder, BASES[like], like=like, padding=padding, eos_token_id=None)
    workspace = Workspace(tmp_path / "w")
    for text in ("the ship", "hens"):
        expected = their_greedy(folder, text)
        ends = learned("unigram" if like == "llama" else "bpe").special
        end = next(
            (n for n, i in enumerate(expected) if i in (ends["eos"], ends.get("turn_end"))), 11
        )
        assert written(workspace, str(folder), text) == expected[: end + 1]


def test_all_end_tokens_of_a_folder_end_a_text(tmp_path: Path):
    """generation_config.json's, where it names some; else config.json's."""
    folder = tmp_path / "theirs"
    save_model(folder, "GPT2LMHeadModel", like="gpt2")
    workspace, prompt = Workspace(tmp_path / "w"), "the ship"
    whole = written(workspace, str(folder), prompt)
    assert len(whole) == 12
    third, first = whole[2], whole.index(whole[2])
    config, generation = folder / "config.json", folder / "generation_config.json"
    eos = learned("bpe").special["eos"]
    for path, value in ((generation, [eos, third]), (generation, third), (config, third)):
        generation.unlink(missing_ok=True)
        fields = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**fields, "eos_token_id": value}))
        for how in ({}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 1}, {"dtype": "int8"}):
            found = written(workspace, str(folder), prompt, **how)
            assert third not in found[:-1]
            assert len(found) == 12 or found[-1] in (third, eos)
            if how != {"num_beams": 2} and "dtype" not in how:
                assert found == whole[: first + 1]
        assert their_greedy(folder, prompt) == whole[: first + 1]


def test_what_is_finetuned_from_a_padded_model_keeps_its_rows_and_opens_again(tmp_path: Path):
    folder = tmp_path / "padded"
    save_model(folder, "Qwen3ForCausalLM", like="qwen", padding=13)
    rows = learned("bpe").vocab_size + 13
    workspace = Workspace(tmp_path / "w")
    talks = tmp_path / "talks.jsonl"
    turns = [{"instruction": f"{text} {n}", "output": text} for n, text in enumerate(TEXTS * 2)]
    talks.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    config = finetuning.resolve("instruct", {"training": QUICK, "patience": 0})
    finetune(workspace, str(folder), talks, config, name="talker")
    finetune(workspace, "talker", talks, config, name="again")
    for run in ("talker", "again"):
        opened = open_folder(workspace.path("run", run) / "model")
        assert opened.config.vocab_size == rows
        session = open_chat(workspace, run, ChatConfig(max_new_tokens=8, device="cpu"))
        assert session.answer("the ship").finish in ("eos", "length")
        for how in ({"temperature": 1.0, "num_samples": 4}, {"num_beams": 3}):
            assert max(written(workspace, run, "the ship", **how)) < rows - 13
    # As its tokenizer says, nothing stands before a text.
    assert opened.tokenizer.layout.before == ()


def test_rows_beyond_the_tokenizer_fill_no_mask(tmp_path: Path):
    folder = tmp_path / "padded"
    model = save_model(folder, "BertForPreTraining", like="bert", padding=40)
    with torch.no_grad():
        model.cls.predictions.bias[-40:] = 50.0
    model.save_pretrained(folder)
    ((answer),) = predict(
        Workspace(tmp_path / "w"), str(folder), [Example("the [MASK] is", None, None, "x")]
    )
    assert isinstance(answer, Filling)
    assert all(candidate.token for candidate in answer.masks[0])
    assert len(answer.masks[0]) == 5
