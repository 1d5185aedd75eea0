"""Adapters in PEFT's layout: what they add to Hugging Face's matrices is what was merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.formats.peft.folder import Adapter
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier, parts_on
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.training.adapters.base import merge
from llmctl.training.adapters.lora import LoraConfig, add_lora, learned

V, RANK, ALPHA = 261, 4, 6.0
MORE = {"llama": {"num_kv_heads": 1}, "qwen3": {"qk_norm": True, "num_kv_heads": 1}}
KINDS = {"bert": "BertForSequenceClassification",
         "modernbert": "ModernBertForSequenceClassification", "gpt": "GPT2LMHeadModel",
         "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM",
         "nanochat": "NanoChatForCausalLM"}  # fmt: skip


def adapted(name: str, folder: Path, targets: tuple[str, ...]) -> None:
    """Folders ``base``, ``adapter`` and ``merged`` of a tiny model."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["llama" if name == "qwen3" else name]
    config = architecture.config(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=32,
        initializer_range=0.2, **MORE.get(name, {}),
    )  # fmt: skip
    body = architecture.build(config)
    encoder = architecture.kind == "encoder"
    model = Classifier(body, 2) if encoder else CausalLM(body)
    tokenizer = learn_bpe(["a"], V)
    write_model_folder(folder / "base", model, tokenizer, {})
    new = parts_on(body, config) if encoder else ()
    options = LoraConfig(rank=RANK, alpha=ALPHA, targets=targets)
    add_lora(model, options, new=new)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)
    base = open_folder(folder / "base")
    added = learned(model, options, base)
    merge(model)
    is_classifier = isinstance(model, Classifier)
    heads = architecture.export_head("classify", model) if is_classifier else {}
    Adapter(added, base, heads, "SEQ_CLS" if encoder else "CAUSAL_LM").write(folder / "adapter")
    write_model_folder(folder / "merged", model, tokenizer, {})


def by_hand(folder: Path) -> dict[str, Tensor]:
    """The base's tensors with the adapter's added, as PEFT's documentation says."""
    tensors = load_file(folder / "base" / "model.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    fields = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    scale = fields["lora_alpha"] / fields["r"]
    for name in fields["target_modules"]:
        a = adapter.pop(f"base_model.model.{name}.lora_A.weight")
        b = adapter.pop(f"base_model.model.{name}.lora_B.weight")
        assert a.shape[0] == b.shape[1] == fields["r"]
        added = scale * b @ a
        tensors[f"{name}.weight"] += added.T if fields["fan_in_fan_out"] else added
    whole = {name.removeprefix("base_model.model."): tensor for name, tensor in adapter.items()}
    assert {name.rpartition(".")[0] for name in whole} == set(fields["modules_to_save"] or [])
    return tensors | whole


@pytest.mark.parametrize(
    "targets",
    [("attention", "feed_forward"), ("attention.query_key_value",), ("attention.output",)],
)
@pytest.mark.parametrize("name", KINDS)
def test_base_and_adapter_make_the_merged_model(
    tmp_path: Path, name: str, targets: tuple[str, ...]
):
    """fp32 sums in another order: 1e-6."""
    adapted(name, tmp_path, targets)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    made = by_hand(tmp_path)
    assert made.keys() == merged.keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(made[key], tensor, rtol=1e-6, atol=1e-6, msg=key)
    changed = {key for key, tensor in merged.items() if not torch.equal(tensor, base[key])}
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {f"{target}.weight" for target in fields["target_modules"]} <= changed
    assert fields["peft_type"] == "LORA"


def test_an_adapter_is_small(tmp_path: Path):
    adapted("llama", tmp_path, ("attention", "feed_forward"))
    layers = open_folder(tmp_path / "base").config.num_layers
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == layers * 7 * 2
    assert all(RANK in tensor.shape for tensor in tensors.values())


@pytest.mark.reference
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_peft_opens_it_and_has_the_merged_models_logits(tmp_path: Path, name: str):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    adapted(name, tmp_path, ("attention", "feed_forward"))
    kind = getattr(transformers, KINDS[name])
    theirs = peft.PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    merged = kind.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(5, 15)[None]
    expected = merged(input_ids=ids).logits
    torch.testing.assert_close(theirs(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
