"""Encoder–decoders of others under the commands: transformers writes the same from the same
sources, from what is finetuned here too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.generate import open_generation
from llmctl.stages.train import finetune
from llmctl.tasks import finetuning
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import TEXTS, save_encoder_decoder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", {}),
    "t5-1.1": (
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartForConditionalGeneration", {"scale_embedding": True}),
}
ALIKE = pytest.mark.parametrize("kind", KINDS)
QUICK = {"batch_size": 8, "precision": "fp32", "learning_rate": 1e-2}
SOURCES = [*TEXTS[:6], "a"]


def save(folder: Path, kind: str, padding: int = 5) -> Any:
    """A model of transformers' in a folder. The output layer of T5 1.1 is one of its own."""
    name, fields = KINDS[kind]
    model = save_encoder_decoder(folder, name, padding=padding, **fields)
    if kind == "t5-1.1":
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = torch.randn_like(tensors["shared.weight"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model = type(model).from_pretrained(folder).eval()
    return model


def theirs(folder: Path, source: str, **options: Any) -> tuple[list[int], float | None]:
    """The ids that transformers writes from a source, without what a target starts with, and a
    beam's score."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = tokenizer(source, return_tensors="pt").input_ids
    forced = {"forced_bos_token_id": 0} if "bart" in model.config.model_type else {}
    # What has no piece never follows here.
    beyond = list(range(len(tokenizer), model.config.vocab_size))
    with torch.no_grad():
        written = model.generate(
            ids, do_sample=False, suppress_tokens=beyond, forced_eos_token_id=None, **forced,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
    start = 2 if forced else 1
    found = written.sequences[0, start:].tolist()
    score = float(written.sequences_scores[0]) if "sequences_scores" in written else None
    end = tokenizer.eos_token_id
    return (found[: found.index(end) + 1] if end in found else found), score


@ALIKE
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_transformers_writes(tmp_path: Path, kind: str, beams: int):
    """Sources of all lengths in one batch, each as alone in transformers.

    Which counts the <s> that a BART's targets start with as written, as the length penalty here
    does, and where rows have no piece the beams' probabilities that these would have.
    """
    save(tmp_path / "m", kind, padding=5 if beams == 1 else 0)
    more, penalty = 1 if kind == "bart" else 0, 2.0
    config = GenerateConfig(
        max_new_tokens=12, num_beams=beams, **({"length_penalty": penalty} if beams > 1 else {})
    )
    generation = open_generation(Workspace(tmp_path / "w"), str(tmp_path / "m"), config)
    assert generation.from_sources
    found = list(generation.answers(Prompt(text, "x:1") for text in SOURCES))
    options = {"num_beams": beams, "max_new_tokens": 12 + more, "length_penalty": penalty}
    expected = [theirs(tmp_path / "m", text, **options) for text in SOURCES]
    assert [list(answer.completions[0].ids) for answer in found] == [ids for ids, _ in expected]
    assert len({tuple(ids) for ids, _ in expected}) > 1
    for answer, (_, score) in zip(found, expected, strict=True):
        assert answer.completions[0].score == (score and pytest.approx(score, abs=1e-4))


@ALIKE
def test_a_foreign_folder_gives_its_logits_here_and_back(tmp_path: Path, kind: str):
    """Within 1e-5: fp32 sums in another order."""
    from llmctl.formats.huggingface import HuggingFace

    their_model = save(tmp_path / "m", kind)
    folder = open_folder(tmp_path / "m")
    ours = folder.seq2seq().eval()
    HuggingFace().save(tmp_path / "again", ours, folder.tokenizer, {})
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval()
    assert type(again) is type(their_model)
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert fields["decoder_start_token_id"] == folder.frame.start[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    source = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    frame = folder.frame
    assert source[0].tolist() == frame.source(folder.tokenizer.encode(TEXTS[0]), 64)
    target = torch.tensor([frame.target(folder.tokenizer.encode(TEXTS[1]), 64)])
    with torch.no_grad():
        found = ours.logits(ours.write(target, ours.read(source, torch.tensor([source.shape[1]]))))
        for model in (their_model, again):
            expected = model(source, decoder_input_ids=target).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@ALIKE
def test_finetuned_on_pairs_it_writes_evaluates_and_opens_elsewhere(tmp_path: Path, kind: str):
    save(tmp_path / "m", kind)
    workspace = Workspace(tmp_path / "w")
    data = tmp_path / "pairs.jsonl"
    rows = [{"source": text, "target": text.split()[-1]} for text in TEXTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    quick = {**QUICK, "max_steps": 30}
    config = finetuning.resolve("seq2seq", {"training": quick, "dropout": 0.0})
    finetune(workspace, str(tmp_path / "m"), data, config, name="f")
    folder = workspace.path("run", "f") / "model"
    generation = open_generation(workspace, "f", GenerateConfig(max_new_tokens=8))
    found = [a.completions[0] for a in generation.answers(Prompt(t, "x:1") for t in SOURCES)]
    more = 1 if kind == "bart" else 0
    expected = [theirs(folder, text, max_new_tokens=8 + more)[0] for text in SOURCES]
    assert [list(completion.ids) for completion in found] == expected
    report, _, _ = prepare_evaluation(
        workspace, "f", Files(data), EvaluateConfig(baselines=False)
    ).run()
    assert report.results["model"]["loss"] < 3.5
    again = finetuning.resolve("seq2seq", {"training": {**quick, "max_steps": 1}})
    finetune(workspace, "f", data, again, name="more")
    assert open_folder(workspace.path("run", "more") / "model").frame == open_folder(folder).frame


@ALIKE
def test_lora_trains_all_attention_and_peft_opens_it(tmp_path: Path, kind: str):
    """The merged model's logits from base and adapter: fp32 sums in another order."""
    peft = pytest.importorskip("peft")
    save(tmp_path / "m", kind)
    workspace = Workspace(tmp_path / "w")
    data = tmp_path / "pairs.jsonl"
    rows = [{"source": text, "target": text.split()[-1]} for text in TEXTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = finetuning.resolve(
        "seq2seq", {"training": {**QUICK, "max_steps": 4}, "method": "lora", "lora": {"rank": 4}}
    )
    finetune(workspace, str(tmp_path / "m"), data, config, name="f")
    run = workspace.path("run", "f")
    fields = json.loads((run / "adapter" / "adapter_config.json").read_text())
    cross = ("EncDecAttention", "encoder_attn")
    assert sum(any(part in name for part in cross) for name in fields["target_modules"]) == 8
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    theirs = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
    source, target = torch.randint(40, (2, 9)), torch.randint(40, (2, 7))
    with torch.no_grad():
        expected = merged(source, decoder_input_ids=target).logits
        found = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # PEFT has put its layers into the base.
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        assert not torch.allclose(plain(source, decoder_input_ids=target).logits, found, atol=1e-2)


@ALIKE
@pytest.mark.parametrize("options", [{"freeze_encoder": True}, {"method": "last-layers"}], ids=str)
def test_what_is_frozen_stays(tmp_path: Path, kind: str, options: dict[str, Any]):
    save(tmp_path / "m", kind)
    workspace = Workspace(tmp_path / "w")
    data = tmp_path / "pairs.jsonl"
    rows = [{"source": text, "target": text.split()[-1]} for text in TEXTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = finetuning.resolve("seq2seq", {"training": {**QUICK, "max_steps": 2}, **options})
    finetune(workspace, str(tmp_path / "m"), data, config, name="f")
    before = open_folder(tmp_path / "m").seq2seq().state_dict()
    after = open_folder(workspace.path("run", "f") / "model").seq2seq().state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not {n for n in changed if "encoder." in n.removeprefix("body.")[:8] or "token" in n}
    assert any("decoder.blocks.1" in name for name in changed)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@ALIKE
def test_smaller_weights_write_nearly_the_same(tmp_path: Path, kind: str, dtype: str):
    """The probabilities of what fp32 writes change by a few per cent."""
    save(tmp_path / "m", kind)
    texts = {}
    for name in ("fp32", dtype):
        config = GenerateConfig(max_new_tokens=1, dtype=name)  # type: ignore[arg-type]
        generation = open_generation(Workspace(tmp_path / "w"), str(tmp_path / "m"), config)
        answers = generation.answers(Prompt(text, "x:1") for text in SOURCES)
        texts[name] = [answer.completions[0].log_probs[0] for answer in answers]
    assert texts[dtype] == pytest.approx(texts["fp32"], abs=0.5)
    assert texts[dtype] != texts["fp32"]


def test_what_is_for_a_gpt_is_refused(tmp_path: Path):
    save(tmp_path / "m", "t5")
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"source": "a", "target": "a"}) + "\n")
    for wrong, says in (
        ({"style": "prefix"}, "--style prefix puts both texts into one"),
        ({"model": {"decoder_layers": 2}}, r"model\.\* is for a GPT"),
    ):
        config = finetuning.resolve("seq2seq", wrong)
        with pytest.raises((ConfigError, InputError), match=says):
            finetune(Workspace(tmp_path / "w"), str(tmp_path / "m"), data, config, name="f")


def test_a_classifier_of_an_encoder_decoder_is_refused(tmp_path: Path):
    save(tmp_path / "m", "t5")
    data = tmp_path / "x.csv"
    data.write_text("label,text\na,b\n")
    with pytest.raises(InputError, match=r"--task classify is not for .* an encoder-decoder: a t5"):
        finetune(
            Workspace(tmp_path / "w"), str(tmp_path / "m"), data, finetuning.resolve("classify")
        )


def test_what_makes_a_folder_another_model_is_said(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save(tmp_path / "m", "bart")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    name = "model.encoder.embed_tokens.weight"
    save_file({**tensors, name: tensors["model.shared.weight"] + 1}, path)
    with pytest.raises(InputError, match=f"{name} is not model.shared.weight"):
        open_folder(tmp_path / "m")
    save_file({**tensors, name: tensors["model.shared.weight"].clone()}, path)
    open_folder(tmp_path / "m").seq2seq()
    # As in a BartModel: transformers has zeros then.
    del tensors["final_logits_bias"]
    save_file(tensors, path)
    assert not open_folder(tmp_path / "m").seq2seq().output_bias.any()
    config = tmp_path / "m" / "config.json"
    fields = json.loads(config.read_text())
    (tmp_path / "m" / "generation_config.json").unlink()
    del fields["decoder_start_token_id"], fields["bos_token_id"]
    config.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="no decoder_start_token_id, the token that a target"):
        _ = open_folder(tmp_path / "m").frame
