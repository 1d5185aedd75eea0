"""BERT: its equations, its sizes, and the same numbers as Hugging Face's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmctl.config import build
from llmctl.errors import ConfigError, InputError
from llmctl.formats.filling import fill
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models.bert import (
    PRESETS,
    SPEC,
    Bert,
    BertConfig,
    from_hugging_face,
    to_hugging_face,
)
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers import attention as layers
from llmctl.models.layers.attention import SelfAttention, additive_mask
from llmctl.models.layers.feed_forward import FeedForward
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, WordPieceTokenizer, build_wordpiece

V, T = 60, 16


def tiny_config(**changes: Any) -> BertConfig:
    """Weights ten times the usual, so that logits are far from zero."""
    values: dict[str, Any] = {
        "vocab_size": V,
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "max_positions": 20,
        "initializer_range": 0.2,
        **changes,
    }
    return BertConfig(**values)


def shaken(model: nn.Module) -> nn.Module:
    """Biases and norms moved off zero and one, or swapping them would go unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def tokenizer() -> WordPieceTokenizer:
    return build_wordpiece(
        [*WORDPIECE_SPECIAL, *(f"w{n}" for n in range(V - len(WORDPIECE_SPECIAL)))], cased=True
    )


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, segments and a mask with rows of every length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, V, (6, T), generator=generator)
    segments = (torch.arange(T) >= torch.tensor([[3], [5], [9], [16], [1], [7]])).long()
    mask = torch.arange(T) < torch.tensor([[16], [12], [16], [5], [2], [9]])
    return ids, segments, mask


# The equations in NumPy.


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def affine(x: NDArray[np.float64], layer: nn.Linear) -> NDArray[np.float64]:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def layer_norm(x: NDArray[np.float64], layer: nn.LayerNorm) -> NDArray[np.float64]:
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return normal * weight + bias


def activate(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if name == "relu":
        return np.maximum(x, 0)
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(
    x_BTD: NDArray[np.float64], layer: SelfAttention, mask_BTT: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """softmax(Q Kᵀ / √d) V, a head at a time."""
    D = x_BTD.shape[-1]
    width = D // layer.num_heads
    q, k, v = np.split(affine(x_BTD, layer.query_key_value), 3, axis=-1)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].swapaxes(-1, -2) / math.sqrt(width)
        heads.append(softmax(np.where(mask_BTT, scores, -1e30)) @ v[..., part])
    return affine(np.concatenate(heads, -1), layer.output)


def feed_forward(
    x: NDArray[np.float64], layer: FeedForward, activation: str
) -> NDArray[np.float64]:
    return affine(activate(affine(x, layer.expand), activation), layer.contract)


@torch.no_grad()
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_its_equation(num_heads: int):
    torch.manual_seed(0)
    layer = shaken(SelfAttention(32, num_heads, 0.0))
    assert isinstance(layer, SelfAttention)
    x = torch.randn(3, 7, 32)
    mask = torch.rand(3, 7, 7) > 0.4
    mask |= torch.eye(7, dtype=torch.bool)
    masks = ((additive_mask(mask[:, None]), mask), (None, torch.ones_like(mask)))
    for ours, theirs in masks:
        expected = attention(x.double().numpy(), layer, theirs.numpy())
        np.testing.assert_allclose(layer(x, ours).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_bf16_is_that_in_fp32_within_its_rounding(masked: bool):
    """Short rows on a processor take a path of their own; bf16 keeps 8 bits."""
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 4, 24, 16)
    groups = torch.arange(24) // 5
    mask = additive_mask(groups[:, None] == groups)[None, None] if masked else None
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = qkv.detach().to(dtype).clone().requires_grad_()
        added = None if mask is None else mask.to(dtype)
        mixed = layers.attention(*leaf.unbind(0), mask=added)
        mixed.float().square().sum().backward()
        assert leaf.grad is not None
        assert mixed.dtype == leaf.grad.dtype == dtype
        outputs.append((mixed.detach().float(), leaf.grad.float()))
    for exact, rounded in zip(*outputs, strict=True):
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_attention_drops_weights_in_bf16_too():
    torch.manual_seed(0)
    qkv = torch.zeros(3, 1, 1, 64, 16, dtype=torch.bfloat16)
    qkv[2] = 1.0
    mixed = layers.attention(*qkv.unbind(0), dropout=0.5).float()
    assert mixed.std() > 0.05
    assert mixed.mean() == pytest.approx(1.0, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_feed_forward_is_its_equation(activation: Any):
    torch.manual_seed(0)
    layer = shaken(FeedForward(32, 48, activation))
    assert isinstance(layer, FeedForward)
    x = torch.randn(3, 7, 32)
    expected = feed_forward(x.double().numpy(), layer, activation)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_body_is_its_equations(activation: str):
    """Embeddings summed and normalised; post-norm: each sum is normalised after its sublayer."""
    torch.manual_seed(0)
    body = shaken(Bert(tiny_config(activation=activation)))
    assert isinstance(body, Bert)
    ids, segments, mask = batch()
    x = (
        body.token_embedding.weight[ids]
        + body.position_embedding.weight[torch.arange(T)]
        + body.segment_embedding.weight[segments]
    )
    x_BTD = layer_norm(x.double().numpy(), body.norm)
    mask_BTT = np.broadcast_to(mask.numpy()[:, None, :], (len(ids), T, T))
    for block in body.blocks:
        x_BTD = layer_norm(x_BTD + attention(x_BTD, block.attention, mask_BTT), block.norm_1)
        mixed = feed_forward(x_BTD, block.feed_forward, activation)
        x_BTD = layer_norm(x_BTD + mixed, block.norm_2)
    hidden = body(ids, segments, mask)
    np.testing.assert_allclose(hidden.numpy(), x_BTD, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_left_out_arguments_have_their_published_meaning():
    body = Bert(tiny_config()).eval()
    ids, _, mask = batch()
    explicit = body(
        ids, torch.zeros_like(ids), torch.ones_like(mask), torch.arange(T).expand(ids.shape)
    )
    torch.testing.assert_close(body(ids), explicit, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_token_sees_both_sides():
    body = Bert(tiny_config()).eval()
    ids, _, _ = batch()
    changed = ids.clone()
    changed[:, 8] = (ids[:, 8] - 5 + 1) % (V - 5) + 5
    moved = (body(ids) - body(changed)).abs().amax(-1)
    assert (moved > 1e-4).all()


def test_dropout_is_off_in_evaluation():
    body = Bert(tiny_config(dropout=0.5))
    ids, segments, mask = batch()
    assert not torch.equal(body(ids, segments, mask), body(ids, segments, mask))
    body.eval()
    assert torch.equal(body(ids, segments, mask), body(ids, segments, mask))


def parameter_count(config: BertConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Bert(config).parameters())


def test_more_layers_than_could_be_built_are_refused_at_once():
    with pytest.raises(ValueError, match="num_layers"):
        BertConfig(num_layers=10**9)


@pytest.mark.parametrize(
    ("preset", "layers", "width", "published"),
    [
        # As BertModel, pooler included, with the vocabulary of bert-base-uncased.
        ("nano", 2, 128, 4_385_920),
        ("mini", 4, 256, 11_170_560),
        ("small", 4, 512, 28_763_648),
        ("medium", 8, 512, 41_373_184),
        ("base", 12, 768, 109_482_240),
    ],
)
def test_presets_have_the_published_sizes(preset: str, layers: int, width: int, published: int):
    config = BertConfig(vocab_size=30522, **PRESETS[preset])
    assert (config.num_layers, config.hidden_size) == (layers, width)
    assert config.num_heads == width // 64
    assert config.intermediate_size == 4 * width
    assert (config.max_positions, config.activation) == (512, "gelu")
    pooler = width * width + width
    assert parameter_count(config) + pooler == published


def test_every_preset_is_tested():
    assert set(PRESETS) == {"nano", "mini", "small", "medium", "base"}


@pytest.mark.parametrize(
    ("width", "heads", "tries"), [(100, 3, "try 99"), (256, 12, "try 252"), (4, 7, "try 7")]
)
def test_a_width_that_heads_do_not_divide_says_what_to_try(width: int, heads: int, tries: str):
    with pytest.raises(ConfigError, match=f"hidden_size {width} .*num_heads {heads}; {tries}"):
        build(BertConfig, {"hidden_size": width, "num_heads": heads})
    suggested = int(tries.split()[1])
    assert build(BertConfig, {"hidden_size": suggested, "num_heads": heads}).num_heads == heads


def test_initial_weights_have_the_configured_size():
    torch.manual_seed(0)
    config = tiny_config(vocab_size=500, hidden_size=64, initializer_range=0.02)
    for name, parameter in Bert(config).named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif parameter.dim() == 1:
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            size = parameter.square().mean().sqrt().item()
            assert size == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("width", [32, 33])
def test_positions_begin_as_sinusoids(width: int):
    """Neighbours are equally near wherever they are, which random vectors are not."""
    body = Bert(tiny_config(hidden_size=width, num_heads=1, initializer_range=0.02))
    table = body.position_embedding.weight.detach().double().numpy()
    for position in (0, 1, 7):
        for wave in (0, 1, 9):
            angle = position / 10000 ** (2 * wave / (width - width % 2))
            scale = 0.02 * math.sqrt(2)
            assert table[position, wave] == pytest.approx(scale * math.sin(angle), abs=1e-6)
            cosine = table[position, wave + width // 2]
            assert cosine == pytest.approx(scale * math.cos(angle), abs=1e-6)


def test_export_and_import_are_inverse():
    body = Bert(tiny_config())
    state = body.state_dict()
    back = SPEC.import_tensors(SPEC.export_tensors(state, body.config), body.config)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    fields = {**to_hugging_face(body.config)}
    assert from_hugging_face(fields) == body.config


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_names_of_old_and_of_bare_models_are_understood(tmp_path: Path, prefix: str, old: bool):
    """The first BERTs say gamma and beta, in the heads too; BertModel alone has no ``bert.``."""
    model = shaken(MaskedLM(Bert(tiny_config())))
    write_model_folder(tmp_path, model, tokenizer(), {})
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        if not prefix:
            if name.startswith("cls."):
                continue
            name = name.removeprefix("bert.")
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[name] = tensor
    save_file(renamed, tmp_path / "model.safetensors")
    folder = open_folder(tmp_path)
    for name, value in model.body.state_dict().items():
        assert torch.equal(folder.tensors[f"body.{name}"], value), name
    if prefix:
        copy = folder.masked_lm()
        for name, value in model.state_dict().items():
            assert torch.equal(copy.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"type_vocab_size": 1}, "segment"),
        ({"hidden_size": None}, "hidden_size"),
        ({"model_type": "brt"}, "did you mean 'bert'"),
        ({"vocab_size": V - 1}, "don't belong together"),
    ],
)
def test_a_config_of_something_else_is_an_input_error(
    tmp_path: Path, change: dict[str, Any], says: str
):
    write_model_folder(tmp_path, MaskedLM(Bert(tiny_config())), tokenizer(), {})
    path = tmp_path / "config.json"
    fields = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    with pytest.raises(InputError, match=says):
        open_folder(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path):
    write_model_folder(tmp_path, MaskedLM(Bert(tiny_config())), tokenizer(), {})
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias"):
        open_folder(tmp_path).masked_lm()


def test_a_model_folder_is_read_as_it_was_written(tmp_path: Path):
    model = shaken(MaskedLM(Bert(tiny_config(activation="relu"))))
    write_model_folder(tmp_path, model, tokenizer(), {"llmctl_max_length": 12})
    folder = open_folder(tmp_path)
    assert folder.config == model.body.config  # type: ignore[union-attr]
    assert folder.max_length == 12
    assert folder.labels is None
    copy = folder.masked_lm().state_dict()
    assert set(copy) == set(model.state_dict())
    assert all(torch.equal(copy[name], value) for name, value in model.state_dict().items())


# Against transformers: fp32 sums in another order, so 1e-5 of logits that are about 1.

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def opened(kind: Any, folder: Path) -> Any:
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    assert model.dtype == torch.float32
    return model.eval()


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_transformers_opens_the_pretrained_model_with_the_same_logits(
    tmp_path: Path, activation: str
):
    from transformers import BertForPreTraining

    torch.manual_seed(0)
    model = shaken(MaskedLM(Bert(tiny_config(activation=activation))))
    assert isinstance(model, MaskedLM)
    write_model_folder(tmp_path, model, tokenizer(), {})
    theirs = opened(BertForPreTraining, tmp_path)
    ids, segments, mask = batch()
    out = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    hidden = model.body(ids, segments, mask)
    logits = model.token_logits(hidden)
    assert logits.std() > 0.5
    torch.testing.assert_close(logits[mask], out.prediction_logits[mask], **CLOSE)
    torch.testing.assert_close(
        model.next_logits(hidden[:, 0]), out.seq_relationship_logits, **CLOSE
    )


@pytest.mark.reference
@torch.no_grad()
def test_transformers_opens_a_model_without_pair_judging(tmp_path: Path):
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    model = shaken(MaskedLM(Bert(tiny_config()), next_sentence=False))
    assert isinstance(model, MaskedLM)
    write_model_folder(tmp_path, model, tokenizer(), {})
    theirs = opened(BertForMaskedLM, tmp_path)
    ids, segments, mask = batch()
    out = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    logits = model.token_logits(model.body(ids, segments, mask))
    torch.testing.assert_close(logits[mask], out.logits[mask], **CLOSE)


@pytest.mark.reference
@torch.no_grad()
def test_transformers_opens_the_classifier_with_its_labels(tmp_path: Path):
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = shaken(Classifier(Bert(tiny_config()), 3))
    names = {"0": "sea", "1": "farm", "2": "city"}
    label2id = {name: int(number) for number, name in names.items()}
    write_model_folder(tmp_path, model, tokenizer(), {"id2label": names, "label2id": label2id})
    theirs = opened(BertForSequenceClassification, tmp_path)
    ids, segments, mask = batch()
    ours = model(ids, segments, mask)
    out = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, out.logits, **CLOSE)
    assert theirs.config.id2label == {0: "sea", 1: "farm", 2: "city"}
    assert open_folder(tmp_path).labels == ["sea", "farm", "city"]


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining", "BertForMaskedLM"])
def test_a_bert_of_transformers_gives_the_same_hidden_states(
    tmp_path: Path, kind: str, activation: str
):
    import transformers

    torch.manual_seed(0)
    theirs = shaken(
        getattr(transformers, kind)(
            transformers.BertConfig(
                vocab_size=V,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=20,
                initializer_range=0.2,
                hidden_act=activation,
                layer_norm_eps=1e-6,
            )
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    folder = open_folder(tmp_path)
    body = Bert(folder.config)
    fill({f"body.{name}": own for name, own in body.state_dict().items()}, folder.tensors)
    ids, segments, mask = batch()
    out = theirs(
        input_ids=ids,
        token_type_ids=segments,
        attention_mask=mask.long(),
        output_hidden_states=True,
    )
    hidden = body.eval()(ids, segments, mask)
    torch.testing.assert_close(hidden[mask], out.hidden_states[-1][mask], **CLOSE)
    if kind == "BertModel":
        with pytest.raises(InputError, match="masked-language-model head"):
            folder.masked_lm()
        return
    model = folder.masked_lm().eval()
    expected = out.prediction_logits if kind == "BertForPreTraining" else out.logits
    torch.testing.assert_close(model.token_logits(hidden)[mask], expected[mask], **CLOSE)
    if kind == "BertForPreTraining":
        torch.testing.assert_close(
            model.next_logits(hidden[:, 0]), out.seq_relationship_logits, **CLOSE
        )
