"""The encoder–decoders against transformers, and their caches and packed rows against neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmctl.formats.filling import fill
from llmctl.formats.huggingface.tensors import export_model, import_model
from llmctl.models import bart, t5
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.relative_bias import bucket_of
from llmctl.models.spec import ModelSpec, roles_of

VOCABULARY = 61
SPECS = {"t5": t5.SPEC, "bart": bart.SPEC}
SMALL: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
    "max_positions": 48, "vocab_size": VOCABULARY,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {"head_size": 24}),
    "t5-1.0": ("t5", {"activation": "relu", "relative_buckets": 8, "relative_distance": 12}),
    "t5-1.1": (
        "t5",
        {"tie_embeddings": False, "scale_outputs": False, "num_heads": 3, "head_size": 16},
    ),
    "t5-uneven": ("t5", {"decoder_layers": 3, "activation": "gelu", "scale_outputs": False,
                         "initializer_factor": 0.3}),
    "bart": ("bart", {}),
    "bart-uneven": (
        "bart",
        {"decoder_layers": 1, "decoder_heads": 4, "decoder_intermediate_size": 40,
         "scale_embedding": True, "activation": "relu"},
    ),
}  # fmt: skip


def make(kind: str) -> EncoderDecoderLM:
    """A model whose every weight matters: fresh norms and zeros would hide mistakes."""
    spec, changes = spec_of(kind), KINDS[kind][1]
    torch.manual_seed(0)
    model = EncoderDecoderLM(spec.build(spec.config(**{**SMALL, **changes})))  # type: ignore[arg-type]
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model.eval()


def spec_of(kind: str) -> ModelSpec:
    return SPECS[KINDS[kind][0]]


def ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.manual_seed(seed))


@torch.no_grad()
def logits(model: EncoderDecoderLM, *inputs: Any) -> Tensor:
    return model.logits(model(*inputs))


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_logits(kind: str):
    """With sources of different lengths; fp32 sums in another order: 1e-5."""
    import transformers

    model, spec = make(kind), spec_of(kind)
    fields = spec.to_hugging_face(model.body.config)
    config = transformers.AutoConfig.for_model(
        **fields, bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=2
    )
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    assert type(theirs).__name__ == f"{spec.class_prefix}ForConditionalGeneration"
    tensors = export_model(model.state_dict(), "seq2seq", spec, model.body.config)
    if model.output is not None:  # as from_pretrained does with a file that has both
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.lm_head.weight))
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected
    shared = {"lm_head.weight"} if model.output is None else set[str]()
    assert {name for name in missing if not name.endswith("embed_tokens.weight")} == shared
    sources, targets, lengths = ids(3, 40), ids(3, 33, seed=2), torch.tensor([40, 31, 5])
    mask = (torch.arange(40) < lengths[:, None]).long()
    with torch.no_grad():
        expected = theirs(sources, attention_mask=mask, decoder_input_ids=targets).logits
    found = logits(model, sources, lengths, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_hugging_face_lead_back(kind: str):
    model, spec = make(kind), spec_of(kind)
    config = spec.from_hugging_face(spec.to_hugging_face(model.body.config))
    assert config == model.body.config
    tensors = export_model(model.state_dict(), "seq2seq", spec, config)
    back = EncoderDecoderLM(spec.build(config))
    fill(back.state_dict(), import_model(tensors, "seq2seq", spec, config))
    assert sum(t.numel() for t in tensors.values()) == sum(
        t.numel() for t in model.state_dict().values()
    )
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.reference
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (33, 100), (4, 3), (64, 50)])
def test_distances_have_the_buckets_of_transformers(
    buckets: int, longest: int, bidirectional: bool
):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-400, 401)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, longest)
    found = bucket_of(distances, buckets, longest, bidirectional=bidirectional)
    assert torch.equal(found, expected)
    # Beyond the largest distance there is nothing new.
    far = distances.clamp(-longest, longest)
    assert torch.equal(found, bucket_of(far, buckets, longest, bidirectional=bidirectional))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_behind_a_source_and_later_tokens_of_a_target_change_nothing(kind: str):
    model, sources, targets = make(kind), ids(2, 20), ids(2, 16, seed=2)
    alone = logits(model, sources[:, :13], None, targets)
    padded = logits(model, sources, torch.tensor([13, 13]), targets)
    torch.testing.assert_close(alone, padded, rtol=1e-5, atol=1e-5)
    changed = targets.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    after = logits(model, sources[:, :13], None, changed)
    torch.testing.assert_close(alone[:, :9], after[:, :9], rtol=0, atol=1e-6)
    assert not torch.allclose(alone[:, 9], after[:, 9])


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_the_logits_are_the_same(kind: str):
    model, sources, targets = make(kind), ids(2, 25), ids(2, 30, seed=2)
    lengths = torch.tensor([25, 17])
    cache = model.body.config.new_cache(2, 32, model.output_weight)
    with torch.no_grad():
        source = model.read(sources, lengths)
        parts = [
            model.logits(model.write(targets[:, first:last], source, cache=cache))
            for first, last in ((0, 11), (11, 12), (12, 13), (13, 20), (20, 30))
        ]
    assert cache.length == 30
    whole = logits(model, sources, lengths, targets)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_go_on_from_one_target_are_as_alone(kind: str):
    model, sources, prompt, more = make(kind), ids(2, 14), ids(2, 5), ids(4, 8, seed=2)
    lengths = torch.tensor([14, 9])
    cache = model.body.config.new_cache(2, 20, model.output_weight)
    together = []
    with torch.no_grad():
        source = model.read(sources, lengths)
        model.write(prompt, source, cache=cache)
        order = torch.tensor([0, 0, 1, 1])
        for place in range(more.shape[1]):
            if place in (0, 4):  # they become beams, and change places
                cache.select(order)
                source.select(order)
                more = more[torch.tensor([1, 0, 3, 2])] if place else more
                order = torch.tensor([1, 0, 3, 2])
            together.append(
                model.logits(model.write(more[:, place : place + 1], source, cache=cache))
            )
    assert cache.beams_per_group == 2
    rows = [0, 0, 1, 1]
    whole = logits(model, sources[rows], lengths[rows], torch.cat([prompt[rows], more], 1))
    torch.testing.assert_close(torch.cat(together[4:], 1), whole[:, -4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_pairs_are_as_alone(kind: str):
    """Several pairs in a row: each target has the logits that it has alone with its source."""
    model = make(kind)
    sizes = [(7, 9), (12, 3), (5, 8)]
    pairs = [(ids(1, s, seed=s), ids(1, t, seed=t)) for s, t in sizes]
    rows, texts, places = [], [], []
    for side in (0, 1):
        lengths = [size[side] for size in sizes]
        rows.append(torch.cat([pair[side] for pair in pairs], 1))
        texts.append(PackedSequences.of(np.repeat(range(3), lengths)[None]))
        places.append(torch.cat([torch.arange(length) for length in lengths])[None])
    with torch.no_grad():
        source = model.body.read(rows[0], texts[0], places[0])
        together = model.logits(model.body(rows[1], source, texts[1], places[1]))
    alone = [logits(model, source_ids, None, target_ids) for source_ids, target_ids in pairs]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_has_a_role(kind: str):
    model = make(kind).train()
    model.logits(model(ids(2, 14), torch.tensor([14, 8]), ids(2, 12))).square().mean().backward()
    roles = roles_of(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert sum(roles[name].fused) in (0, len(parameter))
    assert "output_bias" not in dict(model.named_parameters())


@pytest.mark.reference
def test_a_learned_bias_has_the_gradient_of_transformers():
    import transformers

    model = make("t5").train()
    config = transformers.AutoConfig.for_model(
        **t5.SPEC.to_hugging_face(model.body.config), decoder_start_token_id=0
    )
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
    theirs.load_state_dict(
        export_model(model.state_dict(), "seq2seq", t5.SPEC, model.body.config), strict=False
    )
    sources, targets, lengths = ids(3, 30), ids(3, 22, seed=2), torch.tensor([30, 21, 4])
    mask = (torch.arange(30) < lengths[:, None]).long()
    theirs(
        sources, attention_mask=mask, decoder_input_ids=targets
    ).logits.square().mean().backward()
    model.logits(model(sources, lengths, targets)).square().mean().backward()
    for stack in ("encoder", "decoder"):
        own = model.body.get_submodule(stack).relative_bias.weight.grad
        layer = theirs.get_submodule(f"{stack}.block.0.layer.0.SelfAttention")
        expected = layer.relative_attention_bias.weight.grad
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
