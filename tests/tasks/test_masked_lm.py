"""Masked language modelling: what is hidden, how often, and that packing changes nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.packing import PackedBatches
from llmctl.data.random import key_of
from llmctl.data.shards.chunks import Chunks
from llmctl.data.shards.sentence_pairs import draw_pairs
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tasks.masked_lm.batches import (
    MaskedBatch,
    MaskingVocab,
    apply_mask,
    collate,
    select_masked,
)
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.tasks.masked_lm.loss import masked_lm_loss

PAD, UNK, CLS, SEP, MASK = range(5)
V, T = 40, 32
FIRST_CONTINUATION = 30

VOCABULARY = MaskingVocab(
    cls=CLS,
    sep=SEP,
    mask=MASK,
    pad=PAD,
    ordinary=np.arange(5, V),
    continuation=np.arange(V) >= FIRST_CONTINUATION,
)
PUBLISHED = MaskedLMConfig()
NO_PAIRS = MaskedLMConfig(next_sentence=False)


class Documents:
    """Random ordinary tokens; sentences of seven."""

    def __init__(self, lengths: list[int]) -> None:
        generator = np.random.default_rng(0)
        self.document_lengths = np.asarray(lengths, dtype=np.int64)
        self._tokens = [generator.integers(5, V, length) for length in lengths]
        for ids in self._tokens:  # a word here and there that the tokenizer does not know
            ids[generator.random(len(ids)) < 0.05] = UNK

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        return self._tokens[document][start:stop]

    def sentence_starts(self, document: int) -> NDArray[np.int64]:
        return np.arange(0, self.document_lengths[document], 7)


def stream(lengths: list[int] | None = None, *, overhead: int = 3, seed: int = 0) -> PackedBatches:
    if lengths is None:
        lengths = np.random.default_rng(1).integers(2, 60, 80).tolist()
    chunks = Chunks(Documents(lengths), T - overhead, seed=seed, shuffle=True)  # type: ignore[arg-type]
    return PackedBatches(chunks, sequence_length=T, batch_size=4, overhead=overhead, seed=seed)


def make(batches: PackedBatches, number: int, config: MaskedLMConfig = PUBLISHED) -> MaskedBatch:
    refs, rows = batches.batch(number)
    return collate(
        batches.chunks,
        refs,
        rows,
        config=config,
        vocabulary=VOCABULARY,
        sequence_length=T,
        seed=11,
    )


def tiny_model(*, next_sentence: bool = True, seed: int = 0) -> MaskedLM:
    """Weights ten times the usual, so that logits are far from zero."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=V,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        max_positions=T,
        initializer_range=0.2,
    )
    return MaskedLM(Bert(config), next_sentence=next_sentence).eval()


def original_ids(batch: MaskedBatch) -> NDArray[np.int64]:
    """The rows before hiding, by putting the labels back."""
    ids = batch.input_ids_BT.clone().flatten()
    ids[batch.masked_M] = batch.labels_M
    return ids.view_as(batch.input_ids_BT).numpy()


def texts_of(batch: MaskedBatch) -> list[tuple[int, int, int]]:
    """(row, begin, end) of each text, by its [CLS] and the next one's or the padding."""
    ids, found = original_ids(batch), []
    for row in range(len(ids)):
        begins = np.flatnonzero(ids[row] == CLS).tolist()
        end_of_row = int((ids[row] != PAD).sum())
        ends = [*begins[1:], end_of_row]
        found += [(row, begin, end) for begin, end in zip(begins, ends, strict=True)]
    return found


def binomial(successes: int, trials: int, probability: float) -> None:
    """Within five standard deviations: by chance wrong once in two million."""
    assert trials > 1000
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 5 * spread, (successes, trials, probability)


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=20).filter(any),
    number=st.integers(0, 50),
    whole_word=st.booleans(),
    next_sentence=st.booleans(),
)
def test_rows_are_laid_out_as_bert_reads_them(
    lengths: list[int], number: int, whole_word: bool, next_sentence: bool
):
    config = MaskedLMConfig(whole_word=whole_word, next_sentence=next_sentence, mask_rate=0.5)
    batches = stream(lengths, overhead=3 if next_sentence else 2)
    batch = make(batches, number, config)
    refs, rows = batches.batch(number)
    pairs = draw_pairs(batches.chunks, refs, key_of(11, "pairs"))
    ids = original_ids(batch)
    segments, places = batch.segment_ids_BT.numpy(), batch.position_ids_BT.numpy()
    real = 0
    for row, members in enumerate(rows):
        expected_ids, expected_segments, expected_places = [], [], []
        for member in members:
            if next_sentence:
                spans = [pairs[member].first.tolist(), pairs[member].second.tolist()]
            else:
                spans = [
                    batches.chunks.reader.tokens(
                        int(refs.document[member]), int(refs.start[member]), int(refs.stop[member])
                    ).tolist()
                ]
            text = [CLS, *spans[0], SEP]
            kinds = [0] * len(text)
            if next_sentence:
                text += [*spans[1], SEP]
                kinds += [1] * (len(spans[1]) + 1)
            expected_ids += text
            expected_segments += kinds
            expected_places += range(len(text))
        real += len(expected_ids)
        padding = [0] * (T - len(expected_ids))
        assert ids[row].tolist() == expected_ids + [PAD] * len(padding)
        assert segments[row].tolist() == expected_segments + padding
        assert places[row].tolist() == expected_places + padding
    assert (batch.real_tokens, batch.num_positions) == (real, len(rows) * T)
    order = [member for members in rows for member in members]
    truth = [int(next_sentence and not pairs[member].is_next) for member in order]
    assert batch.next_labels_S.tolist() == truth
    assert ids.reshape(-1)[batch.cls_S].tolist() == [CLS] * len(order)
    assert len(set(batch.cls_S.tolist())) == len(order)


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_tokens_and_padding_are_never_hidden_nor_put_in(whole_word: bool):
    config = MaskedLMConfig(mask_rate=0.9, random_share=0.2, whole_word=whole_word)
    batches = stream()
    for number in range(40):
        batch = make(batches, number, config)
        assert batch.labels_M.min() >= 5
        before, after = original_ids(batch), batch.input_ids_BT.numpy()
        special = before < 5
        np.testing.assert_array_equal(after[special], before[special])
        assert set(np.unique(after[~special])) <= {MASK, *range(5, V)}


def test_fifteen_percent_are_chosen_and_hidden_80_10_10():
    chosen = total = masked = kept = changed = 0
    batches = stream()
    for number in range(300):
        batch = make(batches, number)
        before, after = original_ids(batch), batch.input_ids_BT.numpy()
        flat = batch.masked_M.numpy()
        chosen += len(flat)
        total += int((before >= 5).sum())
        old, new = before.reshape(-1)[flat], after.reshape(-1)[flat]
        masked += int((new == MASK).sum())
        kept += int((new == old).sum())
        changed += int(((new != MASK) & (new != old)).sum())
        elsewhere = np.ones(before.size, dtype=bool)
        elsewhere[flat] = False
        np.testing.assert_array_equal(before.reshape(-1)[elsewhere], after.reshape(-1)[elsewhere])
    binomial(chosen, total, 0.15)
    binomial(masked, chosen, 0.8)
    # A random token is the token itself once in the vocabulary's ordinary size.
    binomial(kept, chosen, 0.1 + 0.1 / (V - 5))
    binomial(changed, chosen, 0.1 * (1 - 1 / (V - 5)))


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_the_rate_is_the_configured_one(rate: float):
    batches, config = stream(), MaskedLMConfig(mask_rate=rate)
    made = [make(batches, number, config) for number in range(100)]
    chosen = sum(len(batch.masked_M) for batch in made)
    binomial(chosen, sum(int((original_ids(batch) >= 5).sum()) for batch in made), rate)


def test_random_replacements_cover_the_vocabulary_evenly_without_specials():
    """Every token becomes random here; V − 5 = 35 outcomes, χ² within five deviations."""
    config = MaskedLMConfig(mask_rate=0.99, mask_share=0.0, random_share=1.0)
    counts = np.zeros(V)
    batches = stream()
    for number in range(100):
        batch = make(batches, number, config)
        counts += np.bincount(batch.input_ids_BT.flatten()[batch.masked_M].numpy(), minlength=V)
    assert counts[:5].sum() == 0
    assert counts[5:].min() > 0
    expected = counts.sum() / (V - 5)
    chi2 = ((counts[5:] - expected) ** 2 / expected).sum()
    assert chi2 < (V - 6) + 5 * math.sqrt(2 * (V - 6))


def test_an_epoch_masks_otherwise_than_the_one_before():
    """One document of one chunk: a new epoch at every position."""
    batches = stream([20], overhead=2)
    batch = make(batches, 0, MaskedLMConfig(next_sentence=False, mask_rate=0.5))
    places = batch.position_ids_BT.flatten()[batch.masked_M].tolist()
    rows = {row: set() for row in range(len(batch.input_ids_BT))}
    for flat, place in zip(batch.masked_M.tolist(), places, strict=True):
        rows[flat // T].add(place)
    assert len(rows) >= 3
    assert len({frozenset(chosen) for chosen in rows.values()}) == len(rows)


@pytest.mark.parametrize("number", [0, 7, 100])
def test_a_batch_number_gives_the_same_batch_always(number: int):
    once, again = make(stream(), number), make(stream(), number)
    for field in dataclasses.fields(once):
        a, b = (
            getattr(batch.packed, "sequence_ids_BT", None) if field.name == "packed" else value
            for batch in (once, again)
            for value in [getattr(batch, field.name)]
        )
        assert np.array_equal(a, b), field.name
    other = make(stream(), number + 1)
    assert other.input_ids_BT.shape != once.input_ids_BT.shape or not torch.equal(
        other.input_ids_BT, once.input_ids_BT
    )


def words_of(batch: MaskedBatch) -> list[list[int]]:
    """Flat places of each word: a token and the continuations right after it in its span."""
    ids = original_ids(batch)
    words: list[list[int]] = []
    for row in range(len(ids)):
        inside = False
        for column in range(T):
            token = ids[row, column]
            if token < 5:
                inside = False
                continue
            if inside and token >= FIRST_CONTINUATION:
                words[-1].append(row * T + column)
            else:
                words.append([row * T + column])
            inside = True
    return words


def test_whole_word_masking_takes_words_whole_at_the_same_rate():
    batches, config = stream(), MaskedLMConfig(whole_word=True)
    words = chosen_words = longer = tokens = chosen_tokens = 0
    for number in range(300):
        batch = make(batches, number, config)
        chosen = set(batch.masked_M.tolist())
        for word in words_of(batch):
            hit = [place in chosen for place in word]
            assert all(hit) or not any(hit)
            words += 1
            chosen_words += hit[0]
            longer += len(word) > 1
            tokens += len(word)
            chosen_tokens += sum(hit)
    assert longer > 1000
    binomial(chosen_words, words, 0.15)
    # Words vary in length, so tokens vary more than a binomial's do.
    assert abs(chosen_tokens / tokens - 0.15) < 0.01


def test_the_pieces_of_a_chosen_word_are_hidden_each_by_its_own_draw():
    batches, config = stream(), MaskedLMConfig(whole_word=True)
    kinds = set()
    for number in range(100):
        batch = make(batches, number, config)
        after = batch.input_ids_BT.flatten()
        chosen = set(batch.masked_M.tolist())
        kinds |= {
            tuple(bool(after[place] == MASK) for place in word)
            for word in words_of(batch)
            if len(word) == 2 and word[0] in chosen
        }
    assert {(True, True), (True, False), (False, True)} <= kinds


def test_choose_and_hide_by_hand():
    """With a rate of nearly one everything ordinary goes; with nearly zero nothing does."""
    ids = np.array([[CLS, 7, 31, SEP, 32, 9, SEP, PAD]])
    special = np.isin(ids, [CLS, SEP, PAD])
    places, draws = np.arange(8)[None], np.zeros((1, 8), dtype=np.int64)
    arguments: tuple[Any, ...] = (ids, special, places, draws)
    for whole_word in (False, True):
        most = MaskedLMConfig(
            mask_rate=1 - 1e-12, mask_share=1.0, random_share=0.0, whole_word=whole_word
        )
        chosen = select_masked(*arguments, most, VOCABULARY, 0)
        np.testing.assert_array_equal(chosen, ~special)
        hidden = apply_mask(ids, chosen, places, draws, most, VOCABULARY, 0)
        assert hidden.tolist() == [[CLS, MASK, MASK, SEP, MASK, MASK, SEP, PAD]]
        least = MaskedLMConfig(mask_rate=1e-12, whole_word=whole_word)
        assert not select_masked(*arguments, least, VOCABULARY, 0).any()
    assert ids.tolist() == [[CLS, 7, 31, SEP, 32, 9, SEP, PAD]]


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_packing_and_padding_leave_hidden_states_as_they_are_alone(activation: str):
    """fp32 sums in another order: 1e-5."""
    model = tiny_model()
    config = model.body.config.replace(activation=activation)
    body = Bert(config).eval()
    body.load_state_dict(model.body.state_dict())
    batch = make(stream(), 0)
    packed = body(batch.input_ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT)
    texts = texts_of(batch)
    assert len(texts) > len(batch.input_ids_BT)
    for row, begin, end in texts:
        ids = batch.input_ids_BT[row, begin:end][None]
        segments = batch.segment_ids_BT[row, begin:end][None]
        alone = body(ids, segments)
        torch.testing.assert_close(packed[row, begin:end][None], alone, rtol=1e-5, atol=1e-5)
        length = end - begin
        wide = torch.full((1, T), PAD)
        wide[:, :length] = ids
        kinds = torch.zeros_like(wide)
        kinds[:, :length] = segments
        padded = body(wide, kinds, (torch.arange(T) < length)[None])
        torch.testing.assert_close(padded[:, :length], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_another_text_in_the_row_changes_nothing_outside_itself():
    body, batch = tiny_model().body, make(stream(), 0)
    row, begin, end = next(text for text in texts_of(batch) if text[1] > 0)

    def states(ids: Tensor) -> Tensor:
        return body(ids, batch.segment_ids_BT, batch.packed, batch.position_ids_BT)[row]

    changed = batch.input_ids_BT.clone()
    changed[row, begin:end] = 6
    before, after = states(batch.input_ids_BT), states(changed)
    outside = torch.ones(T, dtype=torch.bool)
    outside[begin:end] = False
    assert torch.equal(before[outside], after[outside])
    assert not torch.allclose(before[~outside], after[~outside])


def test_rows_full_of_one_text_need_no_mask():
    batches = stream([T - 2] * 8, overhead=2)
    assert make(batches, 0, NO_PAIRS).packed is None
    assert make(stream([T - 3] * 8, overhead=2), 0, NO_PAIRS).packed is not None


def numpy_nll(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    shifted = logits - logits.max(-1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(-1))
    return float((log_total - shifted[np.arange(len(labels)), labels]).sum())


@torch.no_grad()
def test_loss_and_accuracy_are_what_numpy_makes_of_the_logits():
    """Over the whole (B, T, V) of logits: running the head at the masked places only is exact."""
    model, batch = tiny_model(), make(stream(), 3, MaskedLMConfig(mask_rate=0.5))
    hidden = model.body(
        batch.input_ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT
    )
    full = model.token_logits(hidden).flatten(0, 1).double().numpy()
    places, labels = batch.masked_M.numpy(), batch.labels_M.numpy()
    pair_logits = model.next_logits(hidden.flatten(0, 1)[batch.cls_S]).double().numpy()
    pair_labels = batch.next_labels_S.numpy()
    parts = masked_lm_loss(model, batch)
    mlm, nsp = parts.losses["mlm_loss"], parts.losses["nsp_loss"]
    assert (mlm.count, nsp.count) == (len(places), len(pair_labels))
    assert mlm.total.item() == pytest.approx(numpy_nll(full[places], labels), rel=1e-5)
    assert nsp.total.item() == pytest.approx(numpy_nll(pair_logits, pair_labels), rel=1e-5)
    mean = mlm.total.item() / len(places) + nsp.total.item() / len(pair_labels)
    assert parts.total.item() == pytest.approx(mean, rel=1e-5)
    right = {
        "mlm_accuracy": full[places].argmax(-1) == labels,
        "nsp_accuracy": pair_logits.argmax(-1) == pair_labels,
    }
    for name, hits in right.items():
        assert parts.metrics[name].total.item() == hits.sum()
        assert parts.metrics[name].count == len(hits)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_every_parameter_gets_a_gradient(next_sentence: bool):
    model = tiny_model(next_sentence=next_sentence).train()
    config = MaskedLMConfig(next_sentence=next_sentence)
    batch = make(stream(overhead=3 if next_sentence else 2), 0, config)
    masked_lm_loss(model, batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_is_that_of_the_full_logits():
    batch = make(stream(), 2)
    gradients = []
    for full in (False, True):
        model = tiny_model()
        if full:
            hidden = model.body(
                batch.input_ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT
            )
            labels = torch.full((batch.num_positions,), -100)
            labels[batch.masked_M] = batch.labels_M
            logits = model.token_logits(hidden).flatten(0, 1)
            cross_entropy = torch.nn.functional.cross_entropy
            loss = cross_entropy(logits, labels, ignore_index=-100)
            pooled = hidden.flatten(0, 1)[batch.cls_S]
            loss = loss + cross_entropy(model.next_logits(pooled), batch.next_labels_S)
        else:
            loss = masked_lm_loss(model, batch).total
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_batch_where_nothing_was_chosen_has_a_loss_of_zero():
    batches = stream([4], overhead=2)
    batch = make(batches, 0, MaskedLMConfig(mask_rate=1e-9, next_sentence=False))
    assert len(batch.masked_M) == 0
    parts = masked_lm_loss(tiny_model(next_sentence=False), batch)
    assert parts.total.item() == 0.0
    assert list(parts.losses) == ["mlm_loss"]


def test_pair_labels_are_balanced():
    batches = stream()
    labels = torch.cat([make(batches, number).next_labels_S for number in range(250)])
    binomial(int(labels.sum()), len(labels), 0.5)


def test_a_fresh_model_guesses_evenly():
    """Small weights: the loss begins at ln V + ln 2."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=T)
    with torch.no_grad():
        batch = make(stream(), 0, MaskedLMConfig(mask_rate=0.9))
        loss = masked_lm_loss(MaskedLM(Bert(config)), batch).total
    assert loss.item() == pytest.approx(math.log(V) + math.log(2), abs=0.1)
