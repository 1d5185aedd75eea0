"""Model folders that are foreign, damaged, or have another's tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.errors import InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import input_record, open_folder, open_model
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tokenizers import learn
from llmctl.workspace.artefacts import Workspace


@pytest.fixture
def folder(tiny_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_workspace / "runs" / "tiny" / "model", tmp_path / "model"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def made_elsewhere(folder: Path, **fields: Any) -> None:
    """Take away what only llmctl writes."""
    path = folder / "config.json"
    known = json.loads(path.read_text())
    theirs = {key: value for key, value in known.items() if not key.startswith("llmctl_")}
    path.write_text(json.dumps({**theirs, **fields}))


def edit_vocabulary(folder: Path, edit: Callable[[dict[str, int]], None]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    edit(value["model"]["vocab"])
    path.write_text(json.dumps(value))


def swap_two_pieces(vocabulary: dict[str, int]) -> None:
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def drop_a_piece(vocabulary: dict[str, int]) -> None:
    del vocabulary[max(vocabulary, key=vocabulary.__getitem__)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": 48}, r"model\.safetensors is not the model"),
        ({"hidden_size": 64}, r"model\.safetensors is not the model"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"vocab_size": 500}, "is 120 × 32, not 500 × 32"),
        ({"vocab_size": None}, "vocab_size"),
        ({"model_type": ["bert"]}, "model_type"),
    ],
)
def test_a_configuration_of_another_model(folder: Path, fields: dict[str, Any], says: str):
    change(folder / "config.json", **fields)
    with pytest.raises(InputError, match=says) as error:
        open_folder(folder).masked_lm()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", "3", "null"])
def test_a_configuration_that_is_none(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        open_folder(folder)


@pytest.mark.parametrize("edit", [swap_two_pieces, drop_a_piece])
def test_another_tokenizer_is_refused(folder: Path, edit: Callable[[dict[str, int]], None]):
    open_folder(folder)
    edit_vocabulary(folder, edit)
    with pytest.raises(InputError, match="don't belong together"):
        open_folder(folder)


@pytest.mark.parametrize("ours", [False, True])
def test_a_vocabulary_may_be_padded(folder: Path, ours: bool):
    """In the models of others, and so in what is finetuned from them."""
    tensors = load_file(folder / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        tensors[name] = torch.cat((tensors[name], torch.zeros_like(tensors[name][:8])))
    save_file(tensors, folder / "model.safetensors")
    if ours:
        change(folder / "config.json", vocab_size=128)
    else:
        made_elsewhere(folder, vocab_size=128)
    assert open_folder(folder).masked_lm().body.config.vocab_size == 128
    change(folder / "config.json", vocab_size=119)
    with pytest.raises(InputError, match="has 120 pieces and the model 119"):
        open_folder(folder)


def test_the_tokenizer_counts_in_the_digest_of_a_folder(folder: Path, tmp_path: Path):
    made_elsewhere(folder)
    workspace = Workspace(tmp_path / "w")
    before = input_record(*open_model(workspace, str(folder)))
    edit_vocabulary(folder, swap_two_pieces)
    after = input_record(*open_model(workspace, str(folder)))
    assert before.digest != after.digest


def test_the_folder_of_a_run_is_its_model(tiny_workspace: Path, tmp_path: Path):
    found, _ = open_model(Workspace(tmp_path / "w"), str(tiny_workspace / "runs" / "tiny"))
    assert found.path == tiny_workspace / "runs" / "tiny" / "model"
    with pytest.raises(InputError, match="no run or model folder 'some/dir'"):
        open_model(Workspace(tmp_path / "w"), "some/dir")


DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("gpt", {}),
    "LlamaForCausalLM": ("llama", {}),
    "Qwen3ForCausalLM": ("llama", {"qk_norm": True, "tie_embeddings": True}),
    "NanoChatForCausalLM": ("nanochat", {}),
}


def decoder_folder(path: Path, kind: str) -> CausalLM:
    arch, changes = DECODERS[kind]
    tokenizer = learn("bpe", ["the ship sails over the sea"], 270, exact=False)
    architecture = ARCHITECTURES[arch]
    shape = {**architecture.presets["nano"], "num_layers": 2, "max_positions": 64, **changes}
    config = architecture.config(vocab_size=tokenizer.vocab_size, **shape)
    torch.manual_seed(0)
    model = CausalLM(architecture.build(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    write_model_folder(path, model, tokenizer, {})
    return model


@pytest.mark.reference
@pytest.mark.parametrize("kind", DECODERS)
def test_transformers_opens_a_decoders_folder(tmp_path: Path, kind: str):
    import transformers

    model = decoder_folder(tmp_path, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == kind
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("over the sea")["input_ids"]
    tokenizer = open_folder(tmp_path).tokenizer
    assert ids == [tokenizer.special["bos"], *tokenizer.encode("over the sea")]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        ours = model.logits(model.body(torch.tensor([ids])))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert set(theirs.generation_config.eos_token_id) == {
        tokenizer.special[role] for role in ("eos", "turn_end")
    }


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoders_folder_is_read_back_in_one_file_or_several(tmp_path: Path, kind: str):
    model = decoder_folder(tmp_path, kind)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part in (False, True):
        if part:  # as transformers splits large models
            for file, held in parts.items():
                save_file({name: tensors[name] for name in held}, tmp_path / file)
            weight_map = {name: file for file, held in parts.items() for name in held}
            index = tmp_path / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}))
            (tmp_path / "model.safetensors").unlink()
        folder = open_folder(tmp_path)
        assert folder.kind == "causal_lm"
        back = folder.causal_lm()
        for name, value in model.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)
    for nothing in ({}, {"weight_map": {}}, {"weight_map": []}):
        index.write_text(json.dumps(nothing))
        with pytest.raises(InputError, match="has no weight_map"):
            open_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(InputError, match="no plain name"):
        open_folder(tmp_path)


def test_a_bert_writes_no_text(folder: Path):
    with pytest.raises(InputError, match="masked language model, and doesn't write text"):
        open_folder(folder).causal_lm()


def test_a_decoder_fills_no_masks(tmp_path: Path):
    decoder_folder(tmp_path, "LlamaForCausalLM")
    with pytest.raises(InputError, match="no masked language model but a llama"):
        open_folder(tmp_path).masked_lm()


def test_a_classifier_without_its_last_layer(tiny_workspace: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_workspace / "runs" / "subjects" / "model", tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="it has no layer that gives classes"):
        open_folder(folder)


@pytest.mark.parametrize("adds", [True, False])
def test_a_folder_that_transformers_saved_again_is_opened(tmp_path: Path, adds: bool):
    """It writes a post-processor that adds nothing where there was none."""
    transformers = pytest.importorskip("transformers")
    tokenizer: Any = learn("bpe", ["the ship sails over the wide sea"] * 3, 280)
    if not adds:
        tokenizer._rust.post_processor = None
    spec = ARCHITECTURES["llama"]
    config = spec.config(
        vocab_size=tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2, max_positions=32
    )
    model = CausalLM(spec.build(config))
    write_model_folder(tmp_path / "ours", model, tokenizer, {})
    saved = tmp_path / "saved"
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(saved)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(saved)
    read = open_folder(saved)
    assert read.tokenizer.encode("the sea") == tokenizer.encode("the sea")
    ids = torch.tensor([tokenizer.encode("the sea")])
    network = read.causal_lm().eval()
    with torch.no_grad():
        assert torch.equal(network.logits(network.body(ids)), model.eval().logits(model.body(ids)))
