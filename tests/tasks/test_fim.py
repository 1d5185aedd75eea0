"""Fill-in-the-middle: what is laid out anew is the text, and is what a prompt would be."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.shards.files import ShardReader, ShardWriter
from llmctl.data.shards.windows import Rows, TokenStream, WindowBatches
from llmctl.errors import InputError
from llmctl.tasks.causal_lm.fim import (
    Divider,
    FillInTheMiddle,
    fim_tokens,
    infilling_prompt,
)
from llmctl.tokenizers import Tokenizer, learn
from llmctl.tokenizers.additional import with_additional

CODE = [
    "def add(first, second):\n    return first + second\n\n\nclass Sum:\n    total = 0\n" * 2,
    "for number in range(12345):\n    print('number', number)  # every one of them\n" * 3,
    "你好世界。今天天气很好，我们去公园。\nif x == 1:\n\treturn None\n" * 3,
    "The cat sat on the mat, and the dog — a large one — sat beside it.\n\n" * 3,
]


@cache
def tokenizer(kind: str) -> Tokenizer:
    size = None if kind == "characters" else 400
    return with_additional(learn(kind, CODE * 5, size, exact=False), fim=True)


def stream(tokens: Tokenizer, folder: Path, texts: list[str]) -> TokenStream:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, "train", tokens.vocab_size, tokens.digest())
    for text in texts:
        writer.add(np.array(tokens.encode(text)), np.array([0]))
    writer.close()
    return TokenStream(ShardReader(folder, "train"), tokens.special["bos"], tokens.special["eos"])


@given(
    kind=st.sampled_from(["bpe", "unigram", "sentencepiece-bpe", "characters"]),
    text=st.sampled_from(CODE),
    draws=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_parts_are_encoded_as_they_are_by_themselves(
    kind: str, text: str, draws: tuple[float, float]
):
    tokens = tokenizer(kind)
    ids = np.array(tokens.encode(text))
    parts = Divider(tokens)(ids, *draws)
    texts = [tokens.decode(part.tolist()) for part in parts]
    assert "".join(texts) == text
    assert [part.tolist() for part in parts] == [tokens.encode(part) for part in texts]


def test_cuts_fall_within_words():
    tokens = tokenizer("bpe")
    ids = np.array(tokens.encode(CODE[0]))
    whole = {tokens.decode(ids[:n].tolist()) for n in range(len(ids) + 1)}
    divide = Divider(tokens)
    prefixes = [tokens.decode(divide(ids, n / 100, 0.999)[0].tolist()) for n in range(100)]
    assert sum(prefix not in whole for prefix in prefixes) > 10


def read_back(tokens: Tokenizer, ids: list[int]) -> tuple[str, str | None]:
    """The text of one part of a row, by the layouts as they are published, and which it was."""
    marks = fim_tokens(tokens)
    assert marks is not None
    if ids[0] != marks[0]:
        return tokens.decode(ids), None
    suffix_at, middle_at = ids.index(marks[1]), ids.index(marks[2])
    before, between, behind = ids[1:suffix_at], ids[suffix_at + 1 : middle_at], ids[middle_at + 1 :]
    text = [tokens.decode(part) for part in (before, behind, between)]
    return "".join(text), "spm" if suffix_at == 1 else "psm"


# A document's end is the next one's start, or it isn't.
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rows_hold_the_same_text_laid_out_anew(kind: str, tmp_path: Path):
    tokens = tokenizer(kind)
    texts = [text[:n] for n in (40, 90, 170) for text in CODE]
    windows = WindowBatches(
        stream(tokens, tmp_path, texts), sequence_length=64, batch_size=64, seed=1, repeat=True
    )
    plain = windows.batch(3)
    rows = FillInTheMiddle(tokens, share=0.5, seed=1)(plain)
    ends = {tokens.special["bos"], tokens.special["eos"]}
    layouts = []
    for before, after, known in zip(plain.ids, rows.ids, rows.known, strict=True):
        assert known >= 60
        old, new = (parts_of(ids, ends) for ids in (before.tolist(), after[:known].tolist()))
        assert len(new) <= len(old)
        for number, (part, laid_out) in enumerate(zip(old, new, strict=False)):
            text, layout = read_back(tokens, laid_out)
            layouts.append(layout)
            whole = tokens.decode(part)
            if number < len(new) - 1:
                assert text == whole
            else:  # cut to the row's length: at its end, seldom at its start
                assert text.rstrip("\ufffd") in whole
                assert len(laid_out) > len(part) - 30 or not layout
    counts = [layouts.count(layout) for layout in (None, "psm", "spm")]
    assert all(0.15 * len(layouts) < n for n in counts)


def parts_of(ids: list[int], ends: set[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for number in ids:
        if number in ends:
            parts.append([])
        else:
            parts[-1].append(number)
    return [part for part in parts if part]


def test_a_middle_ends_with_the_end_of_a_document(tmp_path: Path):
    for kind in ("bpe", "unigram"):
        tokens = tokenizer(kind)
        windows = WindowBatches(
            stream(tokens, tmp_path / kind, CODE), sequence_length=48, batch_size=32, seed=0,
            repeat=True,
        )  # fmt: skip
        rows = FillInTheMiddle(tokens, share=1.0, seed=0)(windows.batch(0))
        marks = fim_tokens(tokens)
        assert marks is not None
        for ids, known in zip(rows.ids.tolist(), rows.known.tolist(), strict=True):
            middles = [n for n, token in enumerate(ids) if token == marks[2]]
            assert middles
            assert all(tokens.special["eos"] in ids[place:known] for place in middles)


def test_what_is_laid_out_is_a_function_of_seed_and_position():
    tokens = tokenizer("bpe")
    ids = np.resize(np.array(tokens.encode(CODE[1])), (6, 65))
    rows = Rows(ids, np.full_like(ids, -1), np.full(6, 65), np.arange(6) + 10)
    fim = FillInTheMiddle(tokens, share=0.7, seed=5)
    whole = fim(rows)
    part = fim(Rows(ids[2:4], rows.begins[2:4], rows.known[2:4], rows.positions[2:4]))
    assert np.array_equal(whole.ids[2:4], part.ids)
    other = FillInTheMiddle(tokens, share=0.7, seed=6)(rows)
    assert not np.array_equal(whole.ids, other.ids)
    moved = fim(Rows(ids, rows.begins, rows.known, rows.positions + 6))
    assert not np.array_equal(whole.ids, moved.ids)


def test_short_parts_stay_and_no_share_changes_nothing():
    tokens = tokenizer("bpe")
    ids = np.full((1, 9), tokens.special["bos"])
    ids[0, 1::4] = 7
    rows = Rows(ids, np.array([[0, 0, 0, 0, 4, 4, 4, 4, 8]]), np.array([9]), np.arange(1))
    assert np.array_equal(FillInTheMiddle(tokens, share=1.0, seed=0)(rows).ids, ids)


def test_a_tokenizer_without_the_tokens_is_refused():
    with pytest.raises(InputError, match=r"no tokens for prefix, suffix and middle.*--fim"):
        FillInTheMiddle(learn("bpe", CODE, 300, exact=False), share=0.5, seed=0)


def test_the_prompt_is_what_the_row_begins_with():
    assert infilling_prompt((91, 92, 93), [0], [1, 2], [3]) == [0, 91, 1, 2, 92, 3, 93]
