"""Adapters of every method: opened here again, opened by PEFT with the same logits, and PEFT's own
opened here. fp32 sums in another order: 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.formats.peft.folder import Adapter
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import parts_on
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.tag import Tagger
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.training.adapters import METHODS
from llmctl.training.adapters.base import merge
from llmctl.training.adapters.lora import LoraConfig
from llmctl.training.adapters.prefix import PrefixConfig
from llmctl.training.adapters.prompt import PromptConfig

V, P, CLASSES = 261, 3, 3
MORE: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 1}, "qwen2": {"num_kv_heads": 1}, "t5": {"head_size": 16},
    "qwen3": {"num_kv_heads": 1, "head_size": 32}, "mistral": {"sliding_window": 8},
}  # fmt: skip
KINDS = {
    "classify": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "tag": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "causal_lm": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}
CASES = [
    ("bert", "classify"), ("modernbert", "classify"), ("electra", "tag"), ("gpt", "causal_lm"),
    ("gpt", "classify"), ("llama", "causal_lm"), ("qwen2", "causal_lm"), ("qwen3", "causal_lm"),
    ("mistral", "causal_lm"), ("nanochat", "causal_lm"), ("t5", "seq2seq"), ("bart", "seq2seq"),
]  # fmt: skip
WITHOUT_BIASES = {"modernbert", "llama", "qwen3", "mistral", "nanochat", "t5"}
WITHOUT_CACHE = {"classify", "tag"}
"""What PEFT can't put a prefix before with this version of transformers."""
SETTINGS = ["lora", "dora", "rslora", "ia3", "bitfit", "prompt", "prefix", "ptuning"]


def settings(name: str) -> tuple[str, Any]:
    """The method, and a finetuning's configuration as far as methods look at it."""
    lora = LoraConfig(rank=4, alpha=6.0, dora=name == "dora", rslora=name == "rslora")
    config = SimpleNamespace(
        lora=lora, prompt=PromptConfig(tokens=P), prefix=PrefixConfig(tokens=P), seed=0
    )
    return "lora" if name in ("dora", "rslora") else name, config


def make_base(arch: str, folder: Path) -> Pretrained:
    torch.manual_seed(0)
    spec = ARCHITECTURES[arch]
    config = spec.config(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=64,
        **MORE.get(arch, {}),
    )  # fmt: skip
    body: Any = spec.build(config)
    model: nn.Module
    if spec.kind == "encoder":
        model = MaskedLM(body, next_sentence=False)
    else:
        model = CausalLM(body) if spec.kind == "decoder" else EncoderDecoderLM(body)
    with torch.no_grad():  # fresh norms and zeros would hide mistakes
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    write_model_folder(folder, model, learn_bpe(["a"], V), {"pad_token_id": 0})
    return open_folder(folder)


def network(base: Pretrained, kind: str) -> tuple[Any, tuple[str, ...]]:
    """The network that a task trains, and its new parts."""
    torch.manual_seed(1)
    parts = parts_on(base.spec.build, base.config)
    if kind == "classify":
        return base.new_classifier(CLASSES, dropout=0.0, scratch=False), parts
    if kind == "tag":
        build = lambda body: Tagger(body, CLASSES, dropout=0.0)  # noqa: E731
        return base.with_new_layer(build, 0.0, scratch=False), ("output",)
    return base.network(), ()


def adapted(
    arch: str, kind: str, setting: str, folder: Path
) -> tuple[Pretrained, Any, dict[str, Tensor]]:
    """Folders ``base`` and ``adapter``; the network that they are, and its heads."""
    base = make_base(arch, folder / "base")
    model, new = network(base, kind)
    name, config = settings(setting)
    METHODS[name].prepare(model, config, base, new)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    learned = METHODS[name].learned(model, config, base)
    assert learned is not None
    before = our_logits(model, kind)
    merge(model)
    torch.testing.assert_close(our_logits(model, kind), before, rtol=1e-5, atol=1e-5)
    heads = base.spec.export_head(kind, model) if kind in ("classify", "tag") else {}
    Adapter(learned, base, heads, KINDS[kind][1]).write(folder / "adapter")
    return base, model, heads


IDS = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(2))
TARGET = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def our_logits(model: Any, kind: str) -> Tensor:
    model.eval()
    everywhere = torch.ones_like(IDS, dtype=torch.bool)
    if kind == "seq2seq":
        return model.logits(model(IDS, None, TARGET))
    if kind == "causal_lm":
        return model.logits(model.body(IDS))
    if kind == "tag":
        return model(IDS, everywhere)
    return model(IDS, torch.zeros_like(IDS), everywhere)


@torch.no_grad()
def their_logits(model: Any, kind: str) -> Tensor:
    target = {"decoder_input_ids": TARGET} if kind == "seq2seq" else {}
    logits = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS), **target).logits
    # Those of virtual tokens come first.
    return logits[:, -IDS.shape[1] :] if kind in ("causal_lm", "tag") else logits


def their_base(folder: Path, kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    labels = {"num_labels": CLASSES} if kind in ("classify", "tag") else {}
    return getattr(transformers, KINDS[kind][0]).from_pretrained(folder, **labels)


def applies(arch: str, _: str, setting: str) -> bool:
    # A scale is the same for all; a prefix that was projected is kept as another is.
    some = {"rslora": {"bert", "gpt"}, "prefix": {"bert", "llama", "t5"}}.get(setting)
    return not (setting == "bitfit" and arch in WITHOUT_BIASES) and (some is None or arch in some)


COMBINED = [(*case, setting) for case in CASES for setting in SETTINGS if applies(*case, setting)]


@pytest.mark.parametrize(("arch", "kind", "setting"), COMBINED)
def test_an_adapter_of_ours_is_opened_again(tmp_path: Path, arch: str, kind: str, setting: str):
    _, model, _ = adapted(arch, kind, setting, tmp_path)
    opened = open_folder(tmp_path / "adapter")
    assert opened.kind == kind
    expected = our_logits(model, kind)
    torch.testing.assert_close(our_logits(opened.network(), kind), expected, rtol=1e-5, atol=1e-5)
    assert opened.longest_text == 64 - (P if setting in ("prompt", "prefix", "ptuning") else 0)


@pytest.mark.reference
@pytest.mark.parametrize(("arch", "kind", "setting"), COMBINED)
def test_peft_opens_an_adapter_of_ours(tmp_path: Path, arch: str, kind: str, setting: str):
    peft = pytest.importorskip("peft")
    if setting in ("prefix", "ptuning") and kind in WITHOUT_CACHE:
        pytest.skip("PEFT puts no prefix before such a class")
    _, model, _ = adapted(arch, kind, setting, tmp_path)
    theirs = peft.PeftModel.from_pretrained(
        their_base(tmp_path / "base", kind), tmp_path / "adapter"
    )
    torch.testing.assert_close(
        their_logits(theirs, kind), our_logits(model, kind), rtol=1e-5, atol=1e-5
    )


LINEAR = {
    "modernbert": ["Wqkv", "mlp.Wo"], "gpt": ["c_attn", "c_fc"], "bert": ["query", "dense"],
    "t5": ["q", "wo"], "bart": ["q_proj", "fc1"],
}  # fmt: skip
"""Layers that an adapter of PEFT's is for, by the ends of their names."""


def their_config(setting: str, kind: str, arch: str) -> Any:
    peft = pytest.importorskip("peft")
    task = {"task_type": KINDS[kind][1]}
    linear = LINEAR.get(arch, ["q_proj", "down_proj"])
    lora = {"r": 4, "lora_alpha": 6, "target_modules": linear, **task}
    virtual = {"num_virtual_tokens": P, **task}
    ia3 = {"modernbert": {"target_modules": ["Wqkv", "mlp.Wo"], "feedforward_modules": ["mlp.Wo"]}}
    return {
        "lora": lambda: peft.LoraConfig(**lora),
        "dora": lambda: peft.LoraConfig(use_dora=True, **lora),
        "rslora": lambda: peft.LoraConfig(
            use_rslora=True, alpha_pattern={linear[0]: 9}, rank_pattern={linear[1]: 2}, **lora
        ),
        "biases": lambda: peft.LoraConfig(bias="all", **lora),
        "ia3": lambda: peft.IA3Config(**task, **ia3.get(arch, {})),
        "prompt": lambda: peft.PromptTuningConfig(**virtual),
        "ptuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=8, **virtual),
        "prefix": lambda: peft.PrefixTuningConfig(**virtual),
        "projected": lambda: peft.PrefixTuningConfig(
            prefix_projection=True, encoder_hidden_size=8, **virtual
        ),
    }[setting]()


FOREIGN = [
    (arch, kind, setting)
    for arch, kind in (("bert", "classify"), ("modernbert", "classify"), ("gpt", "causal_lm"),
                       ("llama", "causal_lm"), ("t5", "seq2seq"), ("bart", "seq2seq"))
    for setting in ("lora", "dora", "rslora", "biases", "ia3", "prompt", "ptuning", "prefix",
                    "projected")
    if not (setting in ("prefix", "projected") and kind in WITHOUT_CACHE)
    and not (setting in ("rslora", "projected") and kind == "seq2seq")
]  # fmt: skip


@pytest.mark.reference
@pytest.mark.parametrize(("arch", "kind", "setting"), FOREIGN)
def test_an_adapter_of_peft_s_is_opened(tmp_path: Path, arch: str, kind: str, setting: str):
    peft = pytest.importorskip("peft")
    make_base(arch, tmp_path / "base")
    model = their_base(tmp_path / "base", kind)
    if arch == "bert":  # PEFT keeps no pooler, and the base has none
        model.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(model, their_config(setting, kind, arch))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    expected = their_logits(model, kind)
    model.save_pretrained(tmp_path / "adapter")
    opened = open_folder(tmp_path / "adapter")
    torch.testing.assert_close(our_logits(opened.network(), kind), expected, rtol=1e-5, atol=1e-5)
    if kind == "classify":
        assert opened.labels == [f"LABEL_{number}" for number in range(CLASSES)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA", and LORA, IA3, PROMPT_TUNING'),
        (
            {"base_model_name_or_path": "nowhere/base"},
            "nowhere/base', and there is no such",
        ),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"num_virtual_tokens": 64}, "num_virtual_tokens is 64, and the model's context is 64"),
        ({"num_virtual_tokens": 9}, "prompt_embeddings is 3 × 32, not 9 × 32"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    adapted("gpt", "causal_lm", "prompt", tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        open_folder(tmp_path / "adapter").network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa" is not supported'),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_alpha": "much"}, 'lora_alpha is "much", not a number'),
    ],
)
def test_lora_that_computes_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
):
    adapted("gpt", "causal_lm", "lora", tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        open_folder(tmp_path / "adapter").network()


def test_an_adapter_for_another_model_is_refused(tmp_path: Path):
    adapted("llama", "causal_lm", "lora", tmp_path / "llama")
    make_base("gpt", tmp_path / "gpt")
    file = tmp_path / "llama" / "adapter" / "adapter_config.json"
    other = {"base_model_name_or_path": str(tmp_path / "gpt")}
    file.write_text(json.dumps({**json.loads(file.read_text()), **other}))
    with pytest.raises(InputError, match=r"changes model\.layers\.0\..*has not"):
        open_folder(tmp_path / "llama" / "adapter")


@pytest.mark.reference
def test_a_new_table_beside_an_output_layer_that_shared_the_old_is_refused(tmp_path: Path):
    """PEFT leaves the output layer as it was: two tables, where the base has one."""
    peft = pytest.importorskip("peft")
    make_base("gpt", tmp_path / "base")
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=["wte"])
    model = peft.get_peft_model(their_base(tmp_path / "base", "causal_lm"), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="modules_to_save has the token embeddings, which"):
        open_folder(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    fields = {**json.loads(file.read_text()), "ensure_weight_tying": True}
    file.write_text(json.dumps(fields))
    network = open_folder(tmp_path / "adapter").network()
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (table,) = (own for name, own in saved.items() if "wte" in name)
    assert torch.equal(network.body.token_embedding.weight, table)
