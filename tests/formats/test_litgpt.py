"""Checkpoints of LitGPT: networks of transformers' with their tensors laid out as its converter
does, and computed with the same logits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmctl.errors import InputError
from llmctl.formats.litgpt import LitGpt
from llmctl.formats.open import open_folder, open_model
from llmctl.stages.import_model import import_model
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import learned, save_model

N, K, H, D, F, L, T = 4, 2, 8, 16, 24, 3, 64
SHAPE: dict[str, Any] = {
    "num_attention_heads": N, "num_key_value_heads": K, "head_dim": H, "hidden_size": D,
    "num_hidden_layers": L, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
FIELDS: dict[str, Any] = {
    "name": "tiny-llama", "hf_config": {"org": "nobody", "name": "tiny"}, "block_size": T,
    "n_layer": L, "n_embd": D, "n_head": N, "n_query_groups": K, "head_size": H,
    "padding_multiple": 512, "norm_class_name": "RMSNorm", "norm_eps": 1e-5,
    "norm_qk": False, "norm_qk_type": "default", "post_attention_norm": False,
    "post_mlp_norm": False, "parallel_residual": False, "shared_attention_norm": False,
    "attn_bias": False, "attention_scores_scalar": None, "sliding_window_size": None,
    "sliding_window_indices": None, "attention_logit_softcapping": None, "rope_base": 10000,
    "rotary_percentage": 1.0, "rope_condense_ratio": 1, "rope_adjustments": None,
    "rope_interleave": False, "intermediate_size": F, "bias": False, "mlp_class_name": "LLaMAMLP",
    "gelu_approximate": "none", "n_expert": 0, "n_expert_per_token": 0, "scale_embeddings": False,
    "lm_head_bias": False, "final_logit_softcapping": None, "norm_1": True, "norm_2": True,
    "latent_attention": None, "rope_local_base_freq": None, "rope_indices": None,
}  # fmt: skip
"""What LitGPT 0.5 writes, most of it."""
NAMES = {
    "model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f",
    "lm_head": "lm_head", "input_layernorm": "norm_1", "self_attn.o_proj": "attn.proj",
    "self_attn.q_norm": "attn.norm_q", "self_attn.k_norm": "attn.norm_k",
    "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    "post_attention_layernorm": "norm_2",
}  # fmt: skip
OF_GEMMAS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "norm_2",
    "post_feedforward_layernorm": "post_mlp_norm",
}  # fmt: skip


def converted(theirs: Any, *, gemma: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a model of transformers' in LitGPT's names and layout."""
    names = {**NAMES, **(OF_GEMMAS if gemma else {})}
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    result = {}
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        layer = f"transformer.h.{found[1]}." if found else ""
        inner = found[2] if found else module
        if inner in ("self_attn.k_proj", "self_attn.v_proj"):
            continue
        if inner == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            result[f"{layer}attn.qkv.{part}"] = torch.cat(parts)
        else:
            result[f"{layer}{names[inner]}.{part}"] = tensor
    result.setdefault("lm_head.weight", result["transformer.wte.weight"])
    return result


def save(folder: Path, kind: str = "Llama", config: Any = None, **fields: Any) -> Any:
    """A model of transformers' as such a folder; returns it. fields: those of the YAML that are
    other than a Llama's."""
    source = folder / "theirs"
    theirs = save_model(source, f"{kind}ForCausalLM", like="ours", **{**SHAPE, **(config or {})})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    shutil.rmtree(source)
    torch.save(converted(theirs, gemma=kind == "Gemma3"), folder / "lit_model.pth")
    size = theirs.config.vocab_size
    said = {**FIELDS, "vocab_size": size - 3, "padded_vocab_size": size, **fields}
    (folder / "model_config.yaml").write_text(yaml.dump(said))
    return theirs


IDS = torch.arange(3, 33)[None]


def check_logits(folder: Path, theirs: Any) -> None:
    model = open_folder(folder).causal_lm().eval()
    with torch.no_grad():
        expected, found = theirs(IDS).logits, model.logits(model.body(IDS))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def scaled(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **values}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {
    "name": "Gemma-3-tiny", "mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh",
    "post_attention_norm": True, "post_mlp_norm": True, "scale_embeddings": True, "norm_qk": True,
    "attention_scores_scalar": 16, "sliding_window_size": 8, "sliding_window_indices": [1, 0, 1, 0],
    "rope_base": 1000000, "rope_local_base_freq": 10000.0, "rope_indices": [1, 0, 1, 0],
}  # fmt: skip


WINDOW = {"sliding_window": 8}
WINDOWS: dict[str, Any] = {"sliding_window_size": 8}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "theta": ("Llama", {"rope_theta": 500.0}, {"rope_base": 500}),
    "condensed": ("Llama", scaled("linear", factor=2.0), {"rope_condense_ratio": 2}),
    "linear": ("Llama", scaled("linear", factor=4.0), {"rope_adjustments": {"factor": 4.0}}),
    "llama3": (
        "Llama",
        scaled("llama3", **LLAMA3, original_max_position_embeddings=16),
        {"rope_adjustments": {**LLAMA3, "original_max_seq_len": 16}},
    ),
    "mistral": ("Mistral", WINDOW, {**WINDOWS, "sliding_window_indices": [1] * L}),
    "older mistral": ("Mistral", WINDOW, {**WINDOWS, "sliding_window_layer_placing": "all"}),
    "qwen2": ("Qwen2", {}, {"attn_bias": True}),
    "qwen3": ("Qwen3", {}, {"norm_qk": True}),
    "gemma3": (
        "Gemma3",
        {
            **WINDOW,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        GEMMA,
    ),
}


@pytest.mark.parametrize(("kind", "config", "fields"), CASES.values(), ids=CASES)
def test_a_folder_is_the_network_that_it_was_made_from(
    tmp_path: Path, kind: str, config: Any, fields: Any
):
    theirs = save(tmp_path, kind, config, **fields)
    check_logits(tmp_path, theirs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("litgpt")
    save(folder)
    return folder


def test_what_is_imported_writes_what_transformers_writes(tmp_path: Path):
    (tmp_path / "lit").mkdir()
    theirs = save(tmp_path / "lit", "Qwen2", attn_bias=True)
    place = Workspace(tmp_path / "workspace")
    run, _ = import_model(place, str(tmp_path / "lit"), name="lit")
    assert run.manifest.summary["format"] == "litgpt"
    model, _ = open_model(place, "lit")
    assert model.spec.name == "qwen2"
    ids, network = IDS[:, :5], model.causal_lm().eval()
    with torch.no_grad():
        written = theirs.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
        for _ in range(8):
            ids = torch.cat([ids, network.logits(network.body(ids))[:, -1:].argmax(-1)], 1)
    assert ids.tolist() == written.tolist()
    assert model.tokenizer.encode("the ship") == learned("bpe").encode("the ship")


def test_rows_by_groups_as_checkpoints_had_them_before_2025(tmp_path: Path):
    theirs = save(tmp_path, "Qwen2", attn_bias=True)
    path = tmp_path / "lit_model.pth"
    state = {}
    for name, tensor in torch.load(path).items():
        if ".attn.qkv." not in name:
            state[name] = tensor
            continue
        q, k, v = tensor.split([N * H, K * H, K * H])
        each = N // K * H
        groups = [
            torch.cat(
                [q[g * each : (g + 1) * each], k[g * H : (g + 1) * H], v[g * H : (g + 1) * H]]
            )
            for g in range(K)
        ]
        state[name.replace("qkv", "attn")] = torch.cat(groups)
    torch.save({"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}}, path)
    check_logits(tmp_path, theirs)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"brand_new": 3}, "brand_new is 3, and what it changes in a network is not known here"),
        ({"norm_clas_name": "LayerNorm"}, "did you mean 'norm_class_name'"),
        ({"norm_class_name": "LayerNorm"}, 'norm_class_name is \'LayerNorm\': only "RMSNorm"'),
        ({"mlp_class_name": "GptNeoxMLP"}, "mlp_class_name is 'GptNeoxMLP': only LLaMAMLP"),
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 8}, "n_expert is 8: only null"),
        ({"parallel_residual": True}, "parallel_residual is True: only false"),
        ({"rotary_percentage": 0.25}, "rotary_percentage is 0.25: only 1.0"),
        ({"bias": True}, "bias is True: only false"),
        ({"lm_head_bias": True}, "lm_head_bias is True"),
        ({"attention_logit_softcapping": 50.0}, "attention_logit_softcapping is 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, which only a"),
        ({"attention_scores_scalar": 3}, "attention_scores_scalar is 3: only the heads' width"),
        ({"norm_qk": True, "attn_bias": True}, "only one of these"),
        ({"norm_qk": True, "norm_qk_type": "olmo2"}, "norm_qk_type is 'olmo2'"),
        ({"sliding_window_size": 8, "sliding_window_indices": [1, 0, 1]}, "window in every layer"),
        ({"sliding_window_size": 8, "sliding_window_indices": [1]}, "not 0 or 1 for each of 3"),
        ({"sliding_window_size": 8, "sliding_window_layer_placing": "interleaved"}, "placing is"),
        ({"rope_interleave": True}, "rope_interleave is True"),
        ({"latent_attention": {"q_lora_rank": 3}}, "latent_attention is"),
        ({"rope_adjustments": {"factor": 4.0, "beta_fast": 32, "beta_slow": 1}}, "only factor"),
        ({"rope_adjustments": {"factor": 4.0}, "rope_condense_ratio": 2}, "is not supported"),
        ({"rope_adjustments": {"factor": "4"}}, "factor is \"4\", not a number"),
        ({"name": "Gemma-2-2b"}, "of Gemmas only Gemma 3"),
        ({**GEMMA, "rope_indices": [0, 0, 0]}, "are not those of sliding_window_indices"),
        ({"n_layer": "3"}, "n_layer is '3', not a whole number above 0"),
        ({"n_layer": 4}, r"there is no tensor transformer\.h\.3"),
        ({"n_layer": 2}, r"the tensor transformer\.h\.2\S+ has no place"),
        ({"intermediate_size": 25}, "mlp.proj.weight is 16 × 24, not 16 × 25"),
        ({"intermediate_size": None}, "there is no field intermediate_size"),
        ({"padded_vocab_size": 10**7}, "vocab_size 10,000,000, and the largest side"),
        ({"n_query_groups": 4}, r"attn\.qkv\.weight is 64 × 16, not 96 × 16"),
    ],
)  # fmt: skip
def test_what_is_not_the_models_or_not_known_is_named(
    llama: Path, tmp_path: Path, fields: Any, says: str
):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model_config.yaml"
    path.write_text(yaml.dump({**yaml.safe_load(path.read_text()), **fields}))
    with pytest.raises(InputError, match=says):
        open_folder(tmp_path)


def test_what_the_file_leaves_out_has_litgpts_default(llama: Path, tmp_path: Path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model_config.yaml").write_text("n_layer: 3\n")
    with pytest.raises(InputError, match="norm_class_name is missing: only"):
        open_folder(tmp_path)


def test_folders_that_are_not_whole(llama: Path, tmp_path: Path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    path, config = tmp_path / "lit_model.pth", tmp_path / "model_config.yaml"
    state, said, data = torch.load(path), config.read_text(), path.read_bytes()
    path.write_bytes(data[:-2000])
    with pytest.raises(InputError, match=r"lit_model\.pth (can't be read as|is damaged)"):
        open_folder(tmp_path)
    torch.save({**state, "transformer.h.0.attn.qkv.lora_A": torch.ones(2, 2)}, path)
    with pytest.raises(InputError, match="merge it with litgpt merge_lora"):
        open_folder(tmp_path)
    old = "transformer.h.1.attn.attn.weight"
    torch.save({**state, old: state[old.replace("attn.attn", "attn.qkv")]}, path)
    with pytest.raises(InputError, match=rf"has {old} by today's name as well"):
        open_folder(tmp_path)
    torch.save({name: state[name] for name in state if "ln_f" not in name}, path)
    with pytest.raises(InputError, match=r"there is no tensor transformer\.ln_f\.weight"):
        open_folder(tmp_path)
    torch.save({name: state[name] for name in state if "wte" not in name}, path)
    with pytest.raises(InputError, match=r"there is no tensor transformer\.wte\.weight"):
        open_folder(tmp_path)
    torch.save(state, path)
    for text, says in (
        ("", "is no table of fields"), ("[1", "can't be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
        ("1: 2", "is no table of fields"), ("[" * 5000, "can't be read as YAML"),
        ("name: &a [x, *a, *a]", "stands for too many values"),
    ):  # fmt: skip
        config.write_text(text)
        with pytest.raises(InputError, match=says):
            open_folder(tmp_path)
    config.unlink()
    with pytest.raises(InputError, match=r"model_config\.yaml is missing"):
        open_folder(tmp_path)
    config.write_text(said)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="litgpt convert_pretrained_checkpoint"):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="not written as LitGPT's"):
        LitGpt().save(tmp_path, None, learned("bpe"), {})
