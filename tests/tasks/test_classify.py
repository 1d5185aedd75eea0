"""Classification: batches, truncation, the weighted loss, BERTs and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmctl.data.tables.encoded import (
    EncodedExample,
    add_special_tokens,
    encode_examples,
    pad_token,
    truncate_longest_first,
)
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tasks.classify.batches import ExampleBatch, collate
from llmctl.tasks.classify.loss import classification_loss
from llmctl.tokenizers import Layout
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL as WORDPIECE_SPECIAL
from llmctl.tokenizers.wordpiece import build_wordpiece
from tests.kept_models import kept

PAD, CLS, SEP = 0, 2, 3
EOS = 4
ENCODER = Layout((CLS,), (SEP,), (CLS,), (SEP,), (SEP,), 1)
DECODER = Layout((EOS,), (), (EOS,), (EOS,))
V, CLASSES = 50, 3
BERT = ARCHITECTURES["bert"]

IDS = st.lists(st.integers(5, V - 1), max_size=30)


def tiny_config(num_layers: int = 2) -> BertConfig:
    return BertConfig(
        vocab_size=V,
        num_layers=num_layers,
        hidden_size=32,
        num_heads=2,
        max_positions=64,
        initializer_range=0.2,
    )


def tiny(*, num_layers: int = 2, dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    body = Bert(tiny_config(num_layers))
    return Classifier(body, CLASSES, dropout=dropout)


def config_of(name: str) -> Any:
    """Weights ten times the usual, so that logits are far from zero."""
    more = {"gpt": {}, "llama": {"num_kv_heads": 1}, "nanochat": {}, "qwen3": {"qk_norm": True}}
    return ARCHITECTURES["llama" if name == "qwen3" else name].config(
        vocab_size=261,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        max_positions=64,
        initializer_range=0.2,
        **more.get(name, {}),
    )


def tiny_of(name: str) -> Classifier:
    torch.manual_seed(0)
    config = config_of(name)
    architecture = next(a for a in ARCHITECTURES.values() if a.config is type(config))
    model = Classifier(architecture.build(config), CLASSES, dropout=0.0)
    with torch.no_grad():  # nanochat's blocks begin as the identity
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def examples(count: int, seed: int = 0, *, causal: bool = False) -> list[EncodedExample]:
    generator = np.random.default_rng(seed)

    def text() -> list[int]:
        return generator.integers(5, V, generator.integers(1, 20)).tolist()

    made = []
    for number in range(count):
        first, second = text(), text() if number % 2 else None
        label = int(generator.integers(CLASSES))
        made.append(
            add_special_tokens(first, second, DECODER, max_length=32, label=label)
            if causal
            else add_special_tokens(first, second, ENCODER, max_length=32, label=label)
        )
    return made


def numpy_nll(model: Classifier, batch: ExampleBatch) -> tuple[NDArray[np.float64], ...]:
    with torch.no_grad():
        logits = model.eval()(*batch.inputs).double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    labels = batch.labels_B.numpy()
    nll = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    return nll, logits, labels


@given(first=IDS, second=IDS | st.none(), max_length=st.integers(3, 70))
def test_truncation_takes_from_the_longer_text(
    first: list[int], second: list[int] | None, max_length: int
):
    example = add_special_tokens(first, second, ENCODER, max_length=max_length)
    ids = example.ids.tolist()
    room = max_length - (2 if second is None else 3)
    assert ids[0] == CLS
    assert ids[-1] == SEP
    a = ids[1 : example.second - 1]
    assert ids[example.second - 1] == SEP
    assert a == first[: len(a)]
    if second is None:
        assert example.second == len(ids)
        assert len(a) == min(len(first), room)
        return
    b = ids[example.second : -1]
    assert b == second[: len(b)]
    assert len(a) + len(b) == min(len(first) + len(second), room)
    if len(a) < len(first) and len(b) < len(second):
        assert abs(len(a) - len(b)) <= 1
    elif len(a) < len(first):
        assert len(a) >= len(b) - 1
    elif len(b) < len(second):
        assert len(b) >= len(a) - 1


def test_truncation_is_that_of_the_tokenizers_library():
    """For all lengths and rooms, with and without special tokens, and a pair of an empty text."""
    tokenizer = build_wordpiece([*WORDPIECE_SPECIAL, "sea"], cased=False)
    rust = Tokenizer.from_str(tokenizer._rust.to_str())
    texts = ["sea " * length for length in range(13)]
    for room in range(20):
        rust.enable_truncation(room + 3, strategy="longest_first")
        for a, first in enumerate(texts):
            for b, second in enumerate(texts):
                sequences = rust.encode(first, second).sequence_ids
                assert truncate_longest_first(a, b, room) == (
                    sequences.count(0),
                    sequences.count(1),
                ), (a, b, room)
    with pytest.raises(ValueError, match="longer than max_length by 2"):
        truncate_longest_first(1, 1, -2)


def test_a_tokenizer_that_cuts_on_the_left_takes_the_beginning_away():
    tokenizer = build_wordpiece([*WORDPIECE_SPECIAL, *"abcde"], cased=False)
    tokenizer.cuts_left = True
    rust = Tokenizer.from_str(tokenizer._rust.to_str())
    rust.enable_truncation(7, strategy="longest_first", direction="left")
    texts = ["a b c d e", "e d c b a d", "a b"]
    for first, second in [*((a, b) for a in texts for b in texts), ("a b c d e d c", None)]:
        (encoded,) = encode_examples(tokenizer, [Example(first, second, None, "x")], 7)
        assert encoded.ids.tolist() == rust.encode(first, second).ids
        assert encoded.cut == ((first, second) != ("a b", "a b"))


def test_special_tokens_by_hand():
    example = add_special_tokens([5, 6, 7, 8, 9], [10, 11], ENCODER, max_length=8)
    assert example.ids.tolist() == [CLS, 5, 6, 7, SEP, 10, 11, SEP]
    assert example.second == 5
    single = add_special_tokens([5, 6, 7], None, ENCODER, max_length=4, label=2)
    assert single.ids.tolist() == [CLS, 5, 6, SEP]
    assert single.label == 2


def test_collate_pads_to_the_longest_and_masks_the_rest():
    batch = collate(
        [
            EncodedExample(np.array([CLS, 5, SEP, 6, SEP]), 3, 1),
            EncodedExample(np.array([CLS, 7, SEP]), 3, 0),
        ],
        PAD,
    )
    assert batch.input_ids_BT.tolist() == [[CLS, 5, SEP, 6, SEP], [CLS, 7, SEP, PAD, PAD]]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.labels_B.tolist() == [1, 0]
    assert (batch.real_tokens, batch.num_positions) == (8, 10)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt", "llama", "nanochat"])
def test_an_example_has_the_same_logits_alone_and_padded(name: str):
    """fp32 sums in another order: 1e-5."""
    causal = ARCHITECTURES[name].kind == "decoder"
    model = (tiny() if name == "bert" else tiny_of(name)).eval()
    made = examples(12, causal=causal)
    together = model(*collate(made, PAD).inputs)
    for row, example in enumerate(made):
        alone = model(*collate([example], PAD).inputs)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_loss_and_accuracy_are_what_numpy_makes_of_the_logits():
    model, batch = tiny(), collate(examples(30), PAD)
    nll, logits, labels = numpy_nll(model, batch)
    parts = classification_loss(model, batch)
    assert parts.losses["classification_loss"].total.item() == pytest.approx(nll.sum(), rel=1e-5)
    assert parts.total.item() == pytest.approx(nll.mean(), rel=1e-5)
    hits = int((logits.argmax(-1) == labels).sum())
    assert 0 < hits < len(labels)
    assert parts.metrics["accuracy"].total.item() == hits
    assert parts.metrics["accuracy"].count == len(labels)


def test_class_weights_multiply_each_examples_loss():
    weights = [0.5, 3.0, 0.0]
    batch = collate(examples(30), PAD)
    model = tiny()
    nll, _, labels = numpy_nll(model, batch)
    weighted = (nll * np.asarray(weights)[labels]).sum()
    loss = classification_loss(model, batch, torch.tensor(weights)).losses["classification_loss"]
    assert loss.total.item() == pytest.approx(weighted, rel=1e-5)
    assert loss.count == 30


def test_dropout_is_on_in_training_only():
    batch = collate(examples(8), PAD)
    model = tiny(dropout=0.5)
    model.train()
    assert not torch.equal(model(*batch.inputs), model(*batch.inputs))
    model.eval()
    assert torch.equal(model(*batch.inputs), model(*batch.inputs))


@pytest.mark.parametrize("causal", [False, True])
def test_every_parameter_gets_a_gradient(causal: bool):
    model = tiny_of("llama") if causal else tiny()
    batch = collate(examples(16, causal=causal), PAD)
    classification_loss(model, batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt", "llama", "nanochat"])
def test_a_classifier_survives_the_names_of_hugging_face(name: str):
    causal = ARCHITECTURES[name].kind == "decoder"
    model = tiny() if name == "bert" else tiny_of(name)
    batch = collate(examples(8, causal=causal), PAD)
    copy = kept(model, "classify", ARCHITECTURES[name]).classifier()
    assert copy.output.out_features == CLASSES
    assert torch.equal(model.eval()(*batch.inputs), copy.eval()(*batch.inputs))


def test_finetuning_starts_from_the_pretrained_body_and_pooler():
    torch.manual_seed(1)
    pretrained = MaskedLM(Bert(tiny_config()))
    base = kept(pretrained, "masked_lm", BERT)
    model = base.new_classifier(CLASSES, dropout=0.1, scratch=False)
    for name, value in pretrained.body.state_dict().items():
        assert torch.equal(model.body.state_dict()[name], value), name
    assert pretrained.pooler is not None
    assert model.pooler is not None
    assert torch.equal(model.pooler.weight, pretrained.pooler.weight)
    assert torch.equal(model.pooler.bias, pretrained.pooler.bias)


@pytest.mark.parametrize("name", ["gpt", "llama", "nanochat"])
def test_finetuning_starts_from_a_pretrained_decoder(name: str):
    torch.manual_seed(1)
    architecture, config = ARCHITECTURES[name], config_of(name)
    pretrained = CausalLM(architecture.build(config))
    base = kept(pretrained, "causal_lm", architecture)
    model = base.new_classifier(CLASSES, dropout=0.1, scratch=False)
    for key, value in pretrained.body.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(model.body.state_dict()[key], value), key
    assert model.pooler is None
    assert model.output.bias is None


def test_a_model_without_pooler_gives_the_body_alone():
    torch.manual_seed(1)
    pretrained = MaskedLM(Bert(tiny_config()), next_sentence=False)
    base = kept(pretrained, "masked_lm", BERT)
    model = base.new_classifier(CLASSES, dropout=0.1, scratch=False)
    assert torch.equal(model.body.norm.weight, pretrained.body.norm.weight)
    assert torch.equal(model.body.token_embedding.weight, pretrained.body.token_embedding.weight)


def test_a_pretrained_model_is_no_classifier():
    with pytest.raises(InputError, match="not a classifier"):
        kept(MaskedLM(Bert(tiny_config())), "masked_lm", BERT).classifier()


@given(first=IDS, second=IDS | st.none(), max_length=st.integers(8, 70))
def test_a_decoder_reads_up_to_a_token_of_the_text(
    first: list[int], second: list[int] | None, max_length: int
):
    """The last token is never padding's, by which transformers would take the one before it."""
    ids = add_special_tokens(first, second, DECODER, max_length=max_length, pad=EOS).ids.tolist()
    assert ids[0] == EOS
    assert len(ids) <= max_length
    if second:
        end = ids.index(EOS, 1)
        a, b = ids[1:end], ids[end + 1 :]
        assert (a, b) == (first[: len(a)], second[: len(b)])
        assert b
        assert len(ids) == min(len(first) + len(second) + 2, max_length)
    else:
        assert ids[1:] == first[: max_length - (1 if second is None else 2)]


def test_decoders_are_given_a_text_between_the_documents_tokens():
    tokenizer = learn_bpe(["a ship sails the sea"] * 3, 280, exact=False)
    single = Example("a ship", None, "x", "test")
    paired = Example("a ship", "the sea", "x", "test")
    one, two = encode_examples(tokenizer, [single, paired], 32, {"x": 1})
    assert tokenizer.for_decoder(pairs=True) is tokenizer
    end = tokenizer.special["eos"]
    assert one.ids.tolist() == [end, *tokenizer.encode("a ship")]
    assert two.ids.tolist() == [*one.ids, end, *tokenizer.encode("the sea")]
    assert (one.label, two.label) == (1, 1)


def test_a_tokenizer_without_padding_pads_with_the_end_of_a_document():
    tokenizer = build_wordpiece([*WORDPIECE_SPECIAL, "sea"], cased=False)
    assert pad_token(tokenizer) == tokenizer.special["pad"]
    tokenizer.special = {"eos": 7}
    assert pad_token(tokenizer) == 7
    with pytest.raises(InputError, match="no token for bos"):
        tokenizer.for_decoder(pairs=True)
    tokenizer.special = {}
    with pytest.raises(InputError, match="no token for padding"):
        pad_token(tokenizer)


@pytest.mark.reference
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt", "GPT2ForSequenceClassification"),
        ("llama", "LlamaForSequenceClassification"),
        ("qwen3", "Qwen3ForSequenceClassification"),
    ],
)
def test_transformers_has_the_same_logits(tmp_path: Path, name: str, kind: str):
    """fp32 sums in another order: 1e-5. Padding is the end of a document, as with GPT-2."""
    transformers = pytest.importorskip("transformers")
    model = tiny_of(name).eval()
    tokenizer = learn_bpe(["a"], 261)
    tokenizer.special = {"bos": EOS, "eos": EOS}
    names = {str(number): f"class {number}" for number in range(CLASSES)}
    extra = {"pad_token_id": pad_token(tokenizer), "id2label": names}
    write_model_folder(tmp_path, model, tokenizer, extra)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    made = [
        add_special_tokens(first, second, DECODER, max_length=32, pad=EOS)
        for first, second in [
            ([5, 6, 7, 8, 9], None),
            ([5], None),
            ([5, 9], [7, 8, 6, 10, 11, 12]),
            ([], None),
            ([8, 9], []),
        ]
    ]
    batch = collate(made, pad_token(tokenizer))
    expected = theirs(input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long())
    ours = model(*batch.inputs)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, expected.logits, rtol=1e-5, atol=1e-5)
    again = open_folder(tmp_path).classifier().eval()
    assert torch.equal(again(*batch.inputs), ours)
