"""ModernBERT: its equations, its sizes, and the same numbers as Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.config import build
from llmctl.data.tables.labelled import Example
from llmctl.errors import ConfigError, InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models.flops import flops_per_token
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.modernbert import (
    PRESETS,
    ModernBert,
    ModernBertConfig,
    from_hugging_face,
    to_hugging_face,
)
from llmctl.models.spec import roles_of
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune, pretrain
from llmctl.tasks import finetuning, pretraining
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, WordPieceTokenizer, build_wordpiece
from llmctl.workspace.artefacts import Workspace

V = 60
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""fp32 sums in another order, of logits that are about 1."""


def tiny_config(**changes: Any) -> ModernBertConfig:
    """Weights ten times the usual, so that logits are far from zero; a window that texts of some
    tokens are longer than."""
    values: dict[str, Any] = {
        "vocab_size": V,
        "num_layers": 5,
        "hidden_size": 32,
        "num_heads": 4,
        "max_positions": 512,
        "local_attention": 16,
        "initializer_range": 0.2,
        **changes,
    }
    return ModernBertConfig(**values)


def shaken(model: nn.Module) -> Any:
    """Norms moved off one, and biases off zero, or swapping them would go unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokenizer() -> WordPieceTokenizer:
    words = [f"w{number}" for number in range(V - len(WORDPIECE_SPECIAL))]
    return build_wordpiece([*WORDPIECE_SPECIAL, *words], cased=False)


def batch(T: int = 100) -> tuple[Tensor, Tensor]:
    """Three rows, one of them half and one almost all padding."""
    ids = torch.randint(5, V, (3, T), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, T, dtype=torch.bool)
    mask[1, T // 2 :] = False
    mask[2, 3:] = False
    return ids, mask


# The equations, in NumPy.


def layer_norm(x: NDArray[np.float64], norm: nn.LayerNorm) -> NDArray[np.float64]:
    assert norm.bias is None
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.double().numpy()


def turned(x_TNH: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """Pairs as complex numbers, times e^(i p θ^(-2j/H))."""
    half = x_TNH.shape[-1] // 2
    angles = np.arange(len(x_TNH))[:, None, None] * theta ** (-np.arange(half) / half)
    product = (x_TNH[..., :half] + 1j * x_TNH[..., half:]) * np.exp(1j * angles)
    return np.concatenate([product.real, product.imag], axis=-1)


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import erf

    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


@torch.no_grad()
def test_the_body_is_its_equations():
    """Local layers see eight tokens on each side, and turn by another base."""
    pytest.importorskip("scipy")
    body: ModernBert = shaken(ModernBert(tiny_config()))
    T = 60
    ids = torch.randint(5, V, (1, T), generator=torch.Generator().manual_seed(2))
    x = body.token_embedding.weight.double().numpy()[ids[0].numpy()]
    x = layer_norm(x, body.embedding_norm)
    distance = np.abs(np.arange(T)[:, None] - np.arange(T))
    for number, block in enumerate(body.blocks):
        y = layer_norm(x, block.norm_1) if number else x
        q, k, v = (
            (y @ part.double().numpy().T).reshape(T, 4, 8)
            for part in block.attention.query_key_value.weight.chunk(3)
        )
        theta = 160_000.0 if number % 3 == 0 else 10_000.0
        scores = np.einsum("tnh,snh->nts", turned(q, theta), turned(k, theta)) / np.sqrt(8)
        if number % 3:
            scores[:, distance > 8] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("nts,snh->tnh", weights, v).reshape(T, 32)
        x = x + mixed @ block.attention.output.weight.double().numpy().T
        gate_up = layer_norm(x, block.norm_2) @ block.feed_forward.gate_up.weight.double().numpy().T
        inner = gelu(gate_up[:, :48]) * gate_up[:, 48:]
        x = x + inner @ block.feed_forward.contract.weight.double().numpy().T
    expected = layer_norm(x, body.norm)
    np.testing.assert_allclose(body(ids)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("T", [40, 300])
def test_packed_texts_are_as_they_are_alone(T: int):
    """Where blocks are attended to one by one, too."""
    body = shaken(ModernBert(tiny_config()))
    ids = torch.randint(5, V, (1, T), generator=torch.Generator().manual_seed(3))
    first = T // 3
    lengths = (first, T - first)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    texts = np.repeat([[1, 2]], lengths, axis=1)
    packed = body(ids, None, PackedSequences.of(texts), positions)
    for begin, stop in ((0, first), (first, T)):
        torch.testing.assert_close(packed[:, begin:stop], body(ids[:, begin:stop]), **CLOSE)


@torch.no_grad()
def test_padding_changes_nothing():
    body = shaken(ModernBert(tiny_config()))
    ids, mask = batch(200)
    padded = body(ids, None, mask)
    assert padded.isfinite().all()
    for row in range(3):
        length = int(mask[row].sum())
        alone = body(ids[row : row + 1, :length])
        torch.testing.assert_close(padded[row : row + 1, :length], alone, **CLOSE)


@torch.no_grad()
def test_what_is_far_is_seen_by_global_layers_alone():
    ids = torch.randint(5, V, (1, 200), generator=torch.Generator().manual_seed(4))
    changed = ids.clone()
    changed[0, 150] = (ids[0, 150] - 5 + 1) % (V - 5) + 5
    for every, reach in ((1, 200), (5, 200)):
        body = shaken(ModernBert(tiny_config(global_every=every)))
        moved = (body(ids) - body(changed)).abs().amax(-1)[0]
        assert (moved > 1e-6).sum() == reach
    local = shaken(ModernBert(tiny_config(num_layers=2, global_every=2)))
    local.blocks[0].attention.output.weight.zero_()  # the one layer that sees all says nothing
    moved = (local(ids) - local(changed)).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(142, 159))


# Sizes.


def parameter_count(config: ModernBertConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ModernBert(config).parameters())


@pytest.mark.parametrize(
    ("preset", "millions"),
    # Of ModernBERT-base and -large, and Ettin's own names.
    [("base", 149), ("large", 395), ("ettin-17m", 17), ("ettin-32m", 32), ("ettin-68m", 68),
     ("ettin-150m", 149)],
)  # fmt: skip
def test_presets_have_the_published_sizes(preset: str, millions: int):
    """With the published vocabulary and the transform of the masked-LM head."""
    config = ModernBertConfig(vocab_size=50368, **PRESETS[preset])
    assert config.hidden_size // config.num_heads == 64
    head = config.hidden_size**2 + config.hidden_size + config.vocab_size
    assert abs((parameter_count(config) + head) / 1e6 - millions) < 1
    assert (config.max_positions, config.local_attention, config.global_every) == (8192, 128, 3)


@pytest.mark.reference
@pytest.mark.parametrize("preset", ["nano", "base"])
def test_transformers_counts_as_many_parameters(preset: str):
    transformers = pytest.importorskip("transformers")
    config = ModernBertConfig(vocab_size=50368, **PRESETS[preset])
    with torch.device("meta"):
        theirs = transformers.ModernBertModel(
            transformers.ModernBertConfig(**to_hugging_face(config))
        )
    assert theirs.num_parameters() == parameter_count(config)


def test_operations_of_attention_stop_at_the_window():
    """Beyond the window only the two global layers of five see more; each token is compared with
    all it sees, forward and backward, twice (scores and what they mix)."""
    with torch.device("meta"):
        body = ModernBert(tiny_config())
    short, long, twice = (flops_per_token(body, length, 0.0) for length in (16, 200, 400))
    assert twice - long == 6 * 2 * 200 * 2 * 32
    assert long - short == 6 * 2 * (184 * 2 + 1 * 3) * 32


def test_initial_weights_have_the_configured_size():
    torch.manual_seed(0)
    config = tiny_config(vocab_size=500, hidden_size=64, initializer_range=0.02)
    for name, parameter in ModernBert(config).named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        into = name.endswith(("attention.output.weight", "feed_forward.contract.weight"))
        size = parameter.square().mean().sqrt().item()
        assert size == pytest.approx(0.02 / (10**0.5 if into else 1), rel=0.1), name


def test_muon_takes_queries_keys_values_gates_and_ups_apart():
    roles = roles_of(MaskedLM(ModernBert(tiny_config()), next_sentence=False))
    assert roles["body.blocks.0.attention.query_key_value.weight"].fused == (32, 32, 32)
    assert roles["body.blocks.4.feed_forward.gate_up.weight"].fused == (48, 48)
    assert [name for name, role in roles.items() if role.kind == "bias"] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 36, "num_heads": 4}, "36 over model.num_heads 4 gives heads 9 wide"),
        ({"hidden_size": 100, "num_heads": 3}, "not divisible by model.num_heads 3; try 99"),
        ({"activation": "gelu_new"}, "activation"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
    ],
)
def test_a_shape_that_can_not_be_is_refused(change: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        build(ModernBertConfig, change)


def test_it_is_pretrained_as_published():
    config = pretraining.resolve("modernbert", "nano", {})
    assert (config.objective.next_sentence, config.objective.mask_rate) == (False, 0.3)
    assert pretraining.resolve("bert", "nano", {}).objective.next_sentence
    with pytest.raises(
        ConfigError, match=r"objective\.next_sentence: --arch modernbert has no head"
    ):
        pretraining.resolve("modernbert", "nano", {"objective": {"next_sentence": True}})


# Against transformers.


def opened(kind: Any, folder: Path) -> Any:
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    assert model.dtype == torch.float32
    return model.eval()


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("T", [16, 100, 300])
def test_transformers_opens_the_pretrained_model_with_the_same_logits(
    tmp_path: Path, T: int, tied: bool
):
    from transformers import AutoTokenizer, ModernBertForMaskedLM

    model = shaken(
        MaskedLM(ModernBert(tiny_config(tie_embeddings=tied, head_activation="silu")),
                 next_sentence=False)
    )  # fmt: skip
    write_model_folder(tmp_path, model, tokenizer(), {})
    theirs = opened(ModernBertForMaskedLM, tmp_path)
    ids, mask = batch(T)
    logits = model.token_logits(model.body(ids, None, mask))
    assert logits.std() > 0.5
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits[mask], expected[mask], **CLOSE)
    # And what their tokenizer gives goes in as it is.
    read = AutoTokenizer.from_pretrained(tmp_path)
    encoded = read(["w1 w2", "w3"], ["w4", "w5 w6"], padding=True, return_tensors="pt")
    assert theirs(**encoded).logits.shape == (2, 6, V)


@pytest.mark.reference
@torch.no_grad()
def test_eight_thousand_tokens_have_the_same_logits(tmp_path: Path):
    from transformers import ModernBertForMaskedLM

    config = tiny_config(hidden_size=16, num_heads=1, num_layers=4, max_positions=8192,
                         local_attention=128)  # fmt: skip
    model = shaken(MaskedLM(ModernBert(config), next_sentence=False))
    write_model_folder(tmp_path, model, tokenizer(), {})
    ids = torch.randint(5, V, (1, 8192), generator=torch.Generator().manual_seed(5))
    expected = opened(ModernBertForMaskedLM, tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(model.token_logits(model.body(ids)), expected, **CLOSE)


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_transformers_opens_the_classifier_with_its_labels(tmp_path: Path, pooling: Any):
    from transformers import ModernBertForSequenceClassification

    model = shaken(Classifier(ModernBert(tiny_config(classifier_pooling=pooling)), 3))
    names = {"0": "sea", "1": "farm", "2": "city"}
    label2id = {name: int(number) for number, name in names.items()}
    write_model_folder(tmp_path, model, tokenizer(), {"id2label": names, "label2id": label2id})
    theirs = opened(ModernBertForSequenceClassification, tmp_path)
    ids, mask = batch()
    logits = model(ids, torch.zeros_like(ids), mask)
    assert logits.std() > 0.1
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert open_folder(tmp_path).labels == ["sea", "farm", "city"]


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "kind", ["ModernBertForMaskedLM", "ModernBertForSequenceClassification", "ModernBertModel"]
)
def test_a_folder_of_transformers_gives_the_same_numbers(tmp_path: Path, kind: str, pooling: str):
    import transformers

    theirs = shaken(
        getattr(transformers, kind)(
            transformers.ModernBertConfig(
                vocab_size=V,
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=40,
                max_position_embeddings=512,
                local_attention=24,
                global_attn_every_n_layers=2,
                initializer_range=0.2,
                hidden_activation="silu",
                classifier_pooling=pooling,
                norm_eps=1e-4,
                num_labels=3,
                rope_parameters={
                    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
                },
                pad_token_id=0,
                cls_token_id=2,
                bos_token_id=2,
                sep_token_id=3,
                eos_token_id=3,
            )
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    folder = open_folder(tmp_path)
    ids, mask = batch()
    out = theirs(input_ids=ids, attention_mask=mask.long())
    if kind == "ModernBertForMaskedLM":
        model = folder.masked_lm().eval()
        logits = model.token_logits(model.body(ids, None, mask))
        torch.testing.assert_close(logits[mask], out.logits[mask], **CLOSE)
    elif kind == "ModernBertForSequenceClassification":
        classifier = folder.classifier().eval()
        torch.testing.assert_close(
            classifier(ids, torch.zeros_like(ids), mask), out.logits, **CLOSE
        )
    else:
        body = folder.new_classifier(2, dropout=0.0, scratch=False).eval().body
        hidden = body(ids, None, mask)
        torch.testing.assert_close(hidden[mask], out.last_hidden_state[mask], **CLOSE)
        with pytest.raises(InputError, match="masked-language-model head"):
            folder.masked_lm()


def test_the_transform_of_pretraining_goes_on_in_a_classifier(tmp_path: Path):
    """As transformers' classes have the same name for both."""
    model = shaken(MaskedLM(ModernBert(tiny_config()), next_sentence=False))
    write_model_folder(tmp_path, model, tokenizer(), {})
    classifier = open_folder(tmp_path).new_classifier(2, dropout=0.0, scratch=False)
    assert classifier.pooler is None
    assert classifier.transform is not None
    assert torch.equal(classifier.transform.weight, model.transform.weight)
    assert torch.equal(classifier.body.norm.weight, model.body.norm.weight)  # type: ignore[union-attr]


# What a config.json may say.


def test_the_published_config_is_read():
    """ModernBERT-base's, as its folder has it: the words of transformers before version 5."""
    config = from_hugging_face(
        {
            "architectures": ["ModernBertForMaskedLM"], "attention_bias": False,
            "attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu",
            "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean",
            "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
            "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0, "gradient_checkpointing": False,
            "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
            "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
            "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
            "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False,
            "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22,
            "pad_token_id": 50283, "position_embedding_type": "absolute", "reference_compile": None,
            "sep_token_id": 50282, "sparse_pred_ignore_index": -100, "sparse_prediction": False,
            "torch_dtype": "float32", "transformers_version": "4.48.0.dev0", "vocab_size": 50368,
        }
    )  # fmt: skip
    assert config == ModernBertConfig(vocab_size=50368, **PRESETS["base"])
    assert from_hugging_face(to_hugging_face(config)) == config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"norm_bias": True}, "norm_bias is true: .*biases"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"decoder_bias": False}, "decoder_bias is false: an output layer without"),
        ({"hidden_activation": "gelu_new"}, "hidden_activation 'gelu_new' is not supported"),
        ({"classifier_pooling": "max"}, "classifier_pooling 'max'.*cls or mean"),
        ({"layer_types": ["sliding_attention"] * 5}, "layer_types is .*only the first and every"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .*full_attention and"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
         r"rope_parameters\.full_attention: .*'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"rope_parameters": None, "local_rope_theta": None}, "local_rope_theta is null"),
        ({"local_attention": 0}, "local_attention is 0"),
        ({"num_experts": 4}, "num_experts is 4, and what it changes in a ModernBERT is not known"),
    ],
)  # fmt: skip
def test_what_this_one_does_not_have_is_refused_by_name(fields: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        from_hugging_face({**to_hugging_face(tiny_config()), **fields})


def test_layers_are_global_as_the_newer_field_says():
    fields = to_hugging_face(tiny_config(num_layers=6))
    for every in (1, 2, 3, 5):
        kinds = ["sliding_attention" if layer % every else "full_attention" for layer in range(6)]
        read = from_hugging_face({**fields, "layer_types": kinds})
        assert [read.is_global(layer) for layer in range(6)] == [
            kind == "full_attention" for kind in kinds
        ]


def test_a_model_folder_is_read_as_it_was_written(tmp_path: Path):
    config = tiny_config(global_every=2, dropout=0.1, classifier_pooling="cls", rope_theta=300.0)
    model = shaken(MaskedLM(ModernBert(config), next_sentence=False))
    write_model_folder(tmp_path, model, tokenizer(), {"llmctl_max_length": 12})
    folder = open_folder(tmp_path)
    assert folder.config == config
    assert folder.fields["architectures"] == ["ModernBertForMaskedLM"]
    copy = folder.masked_lm().state_dict()
    assert set(copy) == set(model.state_dict())
    assert all(torch.equal(copy[name], value) for name, value in model.state_dict().items())
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "vocab_size": V - 1}))
    with pytest.raises(InputError, match="don't belong together"):
        open_folder(tmp_path)


# The whole way.

TRAINING = {"max_steps": 6, "batch_size": 4, "precision": "fp32", "log_every": 1}
LAYERS = {
    "model": {"hidden_size": 32, "num_heads": 2, "num_layers": 4, "local_attention": 16},
    "data": {"sequence_length": 128, "eval_batches": 1},
    "training": {**TRAINING, "optimiser": "muon"},
}


@pytest.mark.parametrize("method", ["lora", "last-layers"])
def test_it_goes_the_whole_way(own_workspace: Path, labelled_file: Path, method: str):
    """Muon in pretraining, a classifier by another method, its answers, and transformers'."""
    workspace = Workspace(own_workspace)
    name = f"modern-{method}"
    run, _ = pretrain(workspace, pretraining.resolve("modernbert", "nano", LAYERS), name=name)
    filled = next(iter(predict(workspace, name, [example("the ship [MASK] over the sea")])))
    assert len(filled.masks[0]) == 5
    chosen = {"training": TRAINING, "method": method}
    config = finetuning.resolve("classify", chosen)
    tuned, _ = finetune(workspace, name, labelled_file, config, name=f"{name}-tuned")
    before = open_folder(run.folder / "model").masked_lm().body.state_dict()
    classifier = open_folder(tuned.folder / "model").classifier().eval()
    kept = {key for key, value in classifier.body.state_dict().items()
            if torch.equal(value, before[key])}  # fmt: skip
    assert "token_embedding.weight" in kept
    assert "blocks.3.attention.query_key_value.weight" not in kept
    lowest = "blocks.0.attention.query_key_value.weight"
    assert (lowest in kept) == (method == "last-layers")
    answer = next(iter(predict(workspace, f"{name}-tuned", [example("hens lay eggs")])))
    assert sum(answer.probabilities.values()) == pytest.approx(1)


@pytest.mark.reference
def test_a_pipeline_of_transformers_answers_as_predict_does(
    own_workspace: Path, labelled_file: Path
):
    transformers = pytest.importorskip("transformers")
    workspace = Workspace(own_workspace)
    pretrain(workspace, pretraining.resolve("modernbert", "nano", LAYERS), name="modern-piped")
    config = finetuning.resolve("classify", {"training": TRAINING})
    tuned, _ = finetune(workspace, "modern-piped", labelled_file, config, name="modern-sorted")
    pipeline = transformers.pipeline("text-classification", str(tuned.folder / "model"), top_k=None)
    theirs = {entry["label"]: entry["score"] for entry in pipeline(["hens lay eggs"])[0]}
    ours = next(iter(predict(workspace, "modern-sorted", [example("hens lay eggs")])))
    assert ours.probabilities == pytest.approx(theirs, abs=1e-5)


def example(text: str) -> Example:
    return Example(text, None, None, "a text")
