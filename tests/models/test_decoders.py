"""The decoders against transformers, and their caches against no cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.errors import ConfigError, InputError
from llmctl.formats.filling import fill
from llmctl.formats.huggingface.tensors import export_model, import_model
from llmctl.models import ARCHITECTURES, BY_MODEL_TYPE
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.spec import roles_of
from llmctl.tasks.pretraining import resolve

VOCABULARY = 61
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("gpt", {}),
    "gpt-untied": ("gpt", {"tie_embeddings": False, "activation": "relu"}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_embeddings": True, "num_kv_heads": 1}),
    "qwen2": ("qwen2", {"num_kv_heads": 1}),
    "qwen3": ("qwen3", {"head_size": 16, "rope_theta": 500.0}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "linear": ("llama", {"rope_type": "linear", "rope_factor": 3.0}),
    "llama3": ("llama", {"rope_type": "llama3", "rope_factor": 8.0, "rope_original_positions": 16}),
    "yarn": (
        "qwen3",
        {"head_size": 16, "rope_type": "yarn", "rope_factor": 4.0, "rope_original_positions": 700},
    ),
    "smollm3": ("smollm3", {"no_rope_every": 2}),
    "gemma3": (
        "gemma3",
        {"sliding_window": 7, "global_every": 2, "head_size": 24, "query_scalar": 17.0},
    ),
    "gemma3-scaled": (
        "gemma3",
        {"sliding_window": 5, "global_every": 2, "rope_type": "linear", "rope_factor": 8.0,
         "logit_cap": 3.0, "tie_embeddings": False},
    ),
    "nanochat": ("nanochat", {"logit_cap": 2.0}),
}  # fmt: skip


def make(kind: str) -> CausalLM:
    """A model whose every weight matters: fresh norms and zeros would hide mistakes."""
    arch, changes = KINDS[kind]
    architecture = ARCHITECTURES[arch]
    shape = {**architecture.presets["nano"], "num_layers": 2, **changes}
    torch.manual_seed(0)
    model = CausalLM(
        architecture.build(
            architecture.config(vocab_size=VOCABULARY, max_positions=48, **shape)  # type: ignore[arg-type]
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.manual_seed(seed))


def logits(model: CausalLM, input_ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model.logits(model.body(input_ids, **options))


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_logits(kind: str):
    import transformers

    model = make(kind)
    architecture = ARCHITECTURES[KINDS[kind][0]]
    fields = architecture.to_hugging_face(model.body.config)
    config = transformers.AutoConfig.for_model(**fields, bos_token_id=0, eos_token_id=0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert type(theirs).__name__ == architecture.class_prefix + architecture.lm_class
    tensors = export_model(model.state_dict(), "causal_lm", architecture, model.body.config)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"} if model.output is None else not missing
    theirs.tie_weights()
    input_ids = ids(3, 40)
    with torch.no_grad():
        expected = theirs(input_ids).logits
    torch.testing.assert_close(logits(model, input_ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_hugging_face_lead_back(kind: str):
    model = make(kind)
    architecture = ARCHITECTURES[KINDS[kind][0]]
    fields = architecture.to_hugging_face(model.body.config)
    assert BY_MODEL_TYPE[fields["model_type"]] is architecture
    config = architecture.from_hugging_face(fields)
    assert config == model.body.config
    tensors = export_model(model.state_dict(), "causal_lm", architecture, model.body.config)
    back = CausalLM(architecture.build(config))
    fill(back.state_dict(), import_model(tensors, "causal_lm", architecture, config))
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_later_changes_nothing_before(kind: str):
    model, input_ids = make(kind), ids(2, 20)
    changed = input_ids.clone()
    changed[:, 13] = (changed[:, 13] + 1) % VOCABULARY
    before, after = logits(model, input_ids), logits(model, changed)
    torch.testing.assert_close(before[:, :13], after[:, :13], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 13], after[:, 13])


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_the_logits_are_the_same(kind: str):
    model, input_ids = make(kind), ids(2, 30)
    cache = model.body.config.new_cache(2, 32, model.output_weight)
    parts = [
        logits(model, input_ids[:, first:last], cache=cache)
        for first, last in ((0, 11), (11, 12), (12, 13), (13, 20), (20, 30))
    ]
    assert cache.length == 30
    torch.testing.assert_close(torch.cat(parts, 1), logits(model, input_ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_padded_on_the_left_are_as_without(kind: str):
    model, input_ids = make(kind), ids(3, 20)
    starts = torch.tensor([0, 4, 9])
    padded = torch.zeros(3, 20, dtype=torch.long)
    for row, start in enumerate(starts.tolist()):
        padded[row, start:] = input_ids[row, : 20 - start]
    cache = model.body.config.new_cache(3, 24, model.output_weight, starts)
    parts = [
        logits(model, padded[:, first:last], cache=cache)
        for first, last in ((0, 12), (12, 13), (13, 20))
    ]
    ours = torch.cat(parts, 1)
    assert torch.isfinite(ours).all()
    for row, start in enumerate(starts.tolist()):
        alone = logits(model, input_ids[row : row + 1, : 20 - start])[0]
        torch.testing.assert_close(ours[row, start:], alone, rtol=1e-5, atol=1e-5)


def test_a_cache_keeps_the_rows_asked_for_and_forgets_the_rest():
    model, input_ids = make("qwen3"), ids(3, 16)
    cache = model.body.config.new_cache(3, 20, model.output_weight)
    logits(model, input_ids[:, :10], cache=cache)
    cache.select(torch.tensor([2, 0, 2, 1]))
    rows = input_ids[[2, 0, 2, 1]]
    logits(model, rows[:, 10:14], cache=cache)
    cache.truncate(10)
    last = logits(model, rows[:, 10:16], cache=cache)
    torch.testing.assert_close(last, logits(model, rows)[:, 10:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_go_on_from_one_text_are_as_alone(kind: str):
    model, prompt, more = make(kind), ids(2, 9), ids(4, 8, seed=2)
    cache = model.body.config.new_cache(2, 20, model.output_weight)
    logits(model, prompt, cache=cache)
    cache.select(torch.tensor([0, 0, 1, 1]))
    order = torch.tensor([1, 0, 3, 2])
    together = []
    for place in range(more.shape[1]):
        if place == 4:  # they change places
            cache.select(order)
            more = more[order]
        together.append(logits(model, more[:, place : place + 1], cache=cache))
    whole = torch.cat([prompt[[0, 0, 1, 1]], more], 1)
    last = logits(model, whole)[:, -4:]
    torch.testing.assert_close(torch.cat(together[4:], 1), last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_kept_apart_are_as_alone(kind: str):
    """A mask and positions that start anew: each document's logits are those it has alone."""
    model, input_ids = make(kind), ids(1, 24)
    document = torch.tensor([0] * 7 + [1] * 12 + [2] * 5)
    mask = (document[:, None] == document) & torch.ones(24, 24, dtype=torch.bool).tril()
    begins = torch.tensor([0] * 7 + [7] * 12 + [19] * 5)
    together = logits(
        model, input_ids, mask=mask[None], position_ids_BT=(torch.arange(24) - begins)[None]
    )
    for first, last in ((0, 7), (7, 19), (19, 24)):
        alone = logits(model, input_ids[:, first:last])
        torch.testing.assert_close(together[:, first:last], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str):
    model = make(kind).train()
    input_ids = ids(2, 12)
    hidden = model.body(input_ids)
    model.logits(hidden).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_fused_projections_say_what_they_are_made_of(kind: str):
    model = make(kind)
    roles = roles_of(model)
    for name, parameter in model.named_parameters():
        parts = roles[name].fused
        assert bool(parts) == name.endswith(("query_key_value.weight", "gate_up.weight"))
        assert not parts or sum(parts) == len(parameter)


def test_a_llama_with_normalised_heads_is_written_as_a_qwen3():
    spec = ARCHITECTURES["llama"]
    shape = {**spec.presets["nano"], "vocab_size": VOCABULARY}
    config = spec.config.model_validate({**shape, "qk_norm": True})
    fields = spec.to_hugging_face(config)
    read = BY_MODEL_TYPE["qwen3"].from_hugging_face(fields)
    assert read.model_dump() == config.model_dump()
    state = spec.build(config).state_dict()
    back = BY_MODEL_TYPE["qwen3"].import_tensors(spec.export_tensors(state, config), read)
    assert all(torch.equal(state[name], back[name]) for name in {*state, *back})


@pytest.mark.parametrize(
    ("arch", "setting", "says"),
    [("qwen2", {"qk_norm": True}, "False"), ("qwen3", {"qk_norm": False}, "True")],
)
def test_a_name_does_not_stand_for_another_architecture(arch: str, setting: Any, says: str):
    with pytest.raises(ConfigError, match=f"model.qk_norm.*{says}"):
        resolve(arch, "nano", {"model": setting})


def test_a_qwen3_s_heads_are_as_wide_as_they_like():
    config = ARCHITECTURES["qwen3"].config.model_validate({"hidden_size": 256})
    assert (config.num_heads, config.kv_shape()) == (4, (4, 128))
    assert config.attention_width == 512


def test_published_sizes():
    """GPT-2 has 124 M and 355 M parameters (its table says 117 and 345, by a slip), llama2.c's
    stories models 260 thousand and 15 M, TinyLlama 1.1 billion, Qwen2-0.5B 494 M and Qwen3-0.6B
    596 M."""
    for arch, preset, pieces, expected in (
        ("gpt", "small", 50257, 124.4e6),
        ("gpt", "medium", 50257, 354.8e6),
        ("llama", "nano", 512, 0.26e6),
        ("llama", "mini", 32000, 15.2e6),
        ("llama", "large", 32000, 1100e6),
        ("qwen2", "large", 151936, 494e6),
        ("qwen3", "large", 151936, 596e6),
    ):
        architecture = ARCHITECTURES[arch]
        tied = {"tie_embeddings": True} if preset in ("nano", "mini") and arch == "llama" else {}
        config = architecture.config(
            vocab_size=pieces,
            **architecture.presets[preset],
            **tied,  # type: ignore[arg-type]
        )
        with torch.device("meta"):
            model = CausalLM(architecture.build(config))
        count = sum(p.numel() for p in model.parameters())
        assert count == pytest.approx(expected, rel=0.04), (arch, preset, count)


@pytest.mark.parametrize(
    ("arch", "fields", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias is true: attention with biases"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_parameters.factor is null, not",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor is null, not a number",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "mscale": 0.7,
                }
            },
            "rope_parameters.mscale is 0.7: that is not supported",
        ),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope' are not supported"),
        ("nanochat", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear' are"),
        ("llama", {"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ("nanochat", {"num_key_value_heads": 1}, "fewer key/value heads"),
        ("nanochat", {"hidden_act": "silu"}, 'hidden_act is "silu"'),
    ],
)
def test_what_a_decoder_lacks_is_said(arch: str, fields: dict[str, Any], message: str):
    architecture = ARCHITECTURES[arch]
    config = architecture.config(vocab_size=9, **architecture.presets["nano"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        architecture.from_hugging_face({**architecture.to_hugging_face(config), **fields})
    lacking = architecture.to_hugging_face(config)
    del lacking["hidden_size"]
    with pytest.raises(InputError, match="no field hidden_size"):
        architecture.from_hugging_face(lacking)
