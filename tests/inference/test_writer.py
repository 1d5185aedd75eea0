"""The text of tokens as they come: whole characters, and nothing of a stop text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.inference.decoding.writer import StreamingDetokenizer
from llmctl.tokenizers import Tokenizer, learn

CORPUS = ["the ship sails over the wide sea. aab aabab\n" * 3, "café 北京 👩\u200d🔬 ▁ Ġ\n\nstop\n"]
SIZES = {"bpe": 400, "unigram": 400, "sentencepiece-bpe": 400, "characters": None}
ALPHABET = sorted(set("".join(CORPUS)))
TEXT = st.text(st.sampled_from([*ALPHABET, *"aab\n"]), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab\n京"), min_size=1, max_size=3), max_size=4)


@pytest.fixture(scope="module", params=SIZES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn(request.param, CORPUS, SIZES[request.param], exact=False)


@pytest.fixture(scope="module")
def bytewise() -> tuple[Tokenizer, dict[int, int]]:
    """Byte-level BPE, and its token of each byte."""
    tokenizer = learn("bpe", CORPUS, 400, exact=False)
    spelt = {tokenizer.decode_bytes([number]): number for number in range(tokenizer.vocab_size)}
    return tokenizer, {byte: spelt[bytes([byte])] for byte in range(256)}


def cut_up(
    data: st.DataObject, text: str, tokenizer: Tokenizer, token_of: dict[int, int]
) -> list[int]:
    """Tokens of a text that no tokenizer needs to have chosen: some pieces, some bytes."""
    ids: list[int] = []
    while text:
        length = data.draw(st.integers(1, len(text)))
        part, text = text[:length], text[length:]
        if data.draw(st.booleans()):
            ids += tokenizer.encode(part)
        else:
            ids += [token_of[byte] for byte in part.encode()]
    return ids


def cut(text: str, stop: list[str]) -> tuple[str, bool]:
    """A text up to the stop text that is complete first, or the longest of them; and if one is."""
    found = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(text=TEXT)
def test_the_pieces_are_the_text(text: str, tokenizer: Tokenizer):
    writer = StreamingDetokenizer(tokenizer)
    pieces = [writer.push(number) for number in tokenizer.encode(text)]
    assert "�" not in "".join(pieces)
    pieces.append(writer.close())
    assert "".join(pieces) == text == writer.text
    assert not writer.stopped


@given(prompt=TEXT, data=st.data())
def test_behind_a_prompt_the_pieces_are_what_the_tokens_add(
    prompt: str, data: st.DataObject, tokenizer: Tokenizer
):
    """Any tokens, special ones too: those of sentencepiece begin with a space or not, by what is
    before them."""
    before = tokenizer.encode(prompt)
    before += data.draw(st.lists(st.sampled_from(sorted(tokenizer.special_ids)), max_size=2))
    numbers = st.integers(0, tokenizer.vocab_size - 1)
    after = data.draw(st.lists(numbers, max_size=8))
    together = data.draw(st.integers(0, len(after)))
    writer = StreamingDetokenizer(tokenizer, before)
    pieces = [writer.push(*after[:together])]
    pieces += [writer.push(number) for number in after[together:]] + [writer.close()]
    added = tokenizer.decode_bytes(before + after)[len(tokenizer.decode_bytes(before)) :]
    assert "".join(pieces) == added.decode("utf-8", "replace")


@given(content=st.binary(max_size=12) | st.text("aé京👩�", max_size=5).map(str.encode))
def test_only_invalid_bytes_are_replaced(
    content: bytes, bytewise: tuple[Tokenizer, dict[int, int]]
):
    tokenizer, token_of = bytewise
    writer = StreamingDetokenizer(tokenizer)
    told = ""
    for length, byte in enumerate(content, 1):
        told += writer.push(token_of[byte])
        # What is told stays, whatever follows: it is what all of the text begins with.
        assert content.decode("utf-8", "replace").startswith(told)
        # And nothing is held back but the beginning of a character, of 3 bytes at most.
        whole = [
            content[:n].decode("utf-8", "replace") for n in range(max(0, length - 3), length + 1)
        ]
        assert told in whole
    assert told + writer.close() == content.decode("utf-8", "replace") == writer.text


@given(text=TEXT, stop=STOPS, data=st.data())
def test_a_stop_text_cuts_where_it_first_comes_however_it_is_cut_into_tokens(
    text: str, stop: list[str], data: st.DataObject, bytewise: tuple[Tokenizer, dict[int, int]]
):
    tokenizer, token_of = bytewise
    expected, stops = cut(text, stop)
    writer = StreamingDetokenizer(tokenizer, stop=stop)
    told, content = "", b""
    for number in cut_up(data, text, tokenizer, token_of):
        told += writer.push(number)
        content += tokenizer.decode_bytes([number])
        assert told == writer.text
        assert expected.startswith(told)
        so_far = content.decode("utf-8", "ignore")
        assert writer.stopped == cut(so_far, stop)[1]
        if writer.stopped:
            assert told == expected
        else:
            held = so_far.removeprefix(told)
            assert not held or any(one.startswith(held) and one != held for one in stop)
    told += writer.close()
    assert told == writer.text == expected
    assert writer.stopped == stops
    assert writer.push(token_of[97]) == "" or not stops


def test_a_stop_text_by_hand(bytewise: tuple[Tokenizer, dict[int, int]]):
    tokenizer, token_of = bytewise
    writer = StreamingDetokenizer(tokenizer, stop=["aab", "\n\n"])
    pieces = [writer.push(token_of[byte]) for byte in b"xaaac\n\t\naab\n"]
    assert pieces == ["x", "", "", "a", "aac", "", "\n\t", "", "\n", "", "", ""]
    assert writer.stopped
    assert writer.text == "xaaac\n\t\n"


def test_of_stop_texts_that_end_together_the_longest_counts(
    bytewise: tuple[Tokenizer, dict[int, int]],
):
    tokenizer, token_of = bytewise
    for stop in (["b", "aab"], ["aab", "b"]):
        writer = StreamingDetokenizer(tokenizer, stop=stop)
        assert [writer.push(token_of[byte]) for byte in b"xaab"] == ["x", "", "", ""]
        assert writer.stopped
        assert writer.text == "x"


def test_a_cut_character_completes_no_stop_text_before_the_end(
    bytewise: tuple[Tokenizer, dict[int, int]],
):
    tokenizer, token_of = bytewise
    writer = StreamingDetokenizer(tokenizer, stop=["�"])
    assert [writer.push(token_of[byte]) for byte in "a京".encode()[:3]] == ["a", "", ""]
    assert writer.close() == ""
    assert writer.stopped
