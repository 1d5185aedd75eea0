"""Rank files: ids are those of merging by rank, worked out here by itself."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer, load
from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, QWEN, byte_level
from llmctl.tokenizers.tiktoken import ENCODINGS

BYTES = {bytes([byte]): byte for byte in range(256)}
CORPUS = [*list(topics.values())[:3], "aaaa aaaaaaa    x        y\n\n\n北京 北京 天安门 2024 20242"]
TEXT = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["a", "aa", " ", "    ", "the", " the", "\n", "北京", "é", "20", "'S", "<"])
    ).map("".join),
    st.sampled_from(CORPUS),
)


def write(path: Path, ranks: Mapping[bytes, int], end: str = "\n") -> Path:
    lines = (
        f"{base64.b64encode(piece).decode()} {rank}{end}"
        for piece, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    path.write_text("".join(lines), newline="")
    return path


def learn_ranks(texts: list[str], count: int) -> dict[bytes, int]:
    """Merge the most frequent pair again and again, over whole texts."""
    parts = [[bytes([byte]) for byte in text.encode()] for text in texts]
    ranks = dict(BYTES)
    for _ in range(count):
        pairs = Counter(pair for part in parts for pair in pairwise(part))
        new = next(a + b for (a, b), _ in pairs.most_common() if a + b not in ranks)
        ranks[new] = len(ranks)
        parts = [merge(part, {new: 0}) for part in parts]
    return ranks


def merge(parts: list[bytes], ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merge the neighbours of the lowest rank, the first of them, until none has one."""
    parts = list(parts)
    while True:
        ranked = [
            (ranks[a + b], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in ranks
        ]
        if not ranked:
            return parts
        place = min(ranked)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def expected(text: str, ranks: Mapping[bytes, int], pattern: str) -> list[int]:
    ids: list[int] = []
    for _, (start, stop) in byte_level(pattern).pre_tokenize_str(text):
        piece = text[start:stop].encode()
        parts = [piece] if piece in ranks else merge([bytes([byte]) for byte in piece], ranks)
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return learn_ranks([text[:600] for text in CORPUS], 150)


FILES = {"gpt2": GPT2, "cl100k_base": GPT4, "o200k_base": GPT4O, "mine": GPT4, "qwen": QWEN}


@pytest.fixture(scope="module", params=FILES)
def named(
    request: pytest.FixtureRequest,
    ranks: dict[bytes, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Tokenizer]:
    path = tmp_path_factory.mktemp("ranks") / f"{request.param}.tiktoken"
    return request.param, load(write(path, ranks))


@given(text=TEXT)
def test_ids_are_those_of_merging_by_rank(
    text: str, named: tuple[str, Tokenizer], ranks: dict[bytes, int]
) -> None:
    name, tokenizer = named
    if name == "qwen":  # the one that composes characters
        text = text.encode("ascii", "ignore").decode()
    ids = expected(text, ranks, FILES[name])
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(data=st.data())
def test_any_ranks_will_do(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pieces that no learner would make, in an order that none would give them."""
    pieces = [b"a", b"b"]
    for first, second in data.draw(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12)
    ):
        pieces.append(pieces[first % len(pieces)] + pieces[second % len(pieces)])
    longer = data.draw(st.permutations(sorted({piece for piece in pieces if 1 < len(piece) < 9})))
    ranks = {**BYTES, **{piece: 256 + number for number, piece in enumerate(longer)}}
    text = data.draw(st.text(st.sampled_from("aab"), max_size=24))
    path = write(tmp_path_factory.getbasetemp() / "any.tiktoken", ranks)
    assert load(path).encode(text) == expected(text, ranks, GPT4)


def test_a_part_that_is_a_piece_is_taken_whole(tmp_path: Path) -> None:
    """No merge leads to it; OpenAI's code looks it up first."""
    ranks = {**BYTES, b"lost": 256}
    tokenizer = load(write(tmp_path / "mine.tiktoken", ranks))
    assert tokenizer.encode("lost losts") == [256, *b" losts"]


def test_line_ends_and_gaps_do_not_matter(ranks: dict[bytes, int], tmp_path: Path) -> None:
    unix = load(write(tmp_path / "mine.tiktoken", ranks))
    windows = load(write(tmp_path / "mine.tiktoken", ranks, "\r\n"))
    assert unix.digest() == windows.digest()
    gap = {piece: rank + (rank >= 300) * 50 for piece, rank in ranks.items()}
    tokenizer = load(write(tmp_path / "mine.tiktoken", gap))
    assert tokenizer.vocab_size == len(ranks) + 50 + 3
    assert tokenizer.encode(CORPUS[0]) == expected(CORPUS[0], gap, GPT4)


def full(size: int) -> dict[bytes, int]:
    """As many pieces as a published file has, of no use."""
    extra = (number.to_bytes(4, "big") for number in range(1 << 24, 1 << 25))
    return {**BYTES, **{piece: rank for rank, piece in zip(range(256, size), extra, strict=False)}}


@pytest.mark.parametrize(
    ("name", "size", "vocabulary", "special"),
    [
        ("gpt2", 50256, 50257, {"<|endoftext|>": 50256}),
        ("cl100k_base", 300, 100277, {"<|endoftext|>": 100257, "<|endofprompt|>": 100276}),
        ("Qwen-7B", 300, 303, {"<|endoftext|>": 300, "<|im_start|>": 301, "<|im_end|>": 302}),
    ],
)
def test_special_tokens_are_where_the_published_ones_are(
    name: str, size: int, vocabulary: int, special: dict[str, int], tmp_path: Path
) -> None:
    tokenizer = load(write(tmp_path / f"{name}.tiktoken", full(size)))
    assert tokenizer.vocab_size == vocabulary
    for token, number in special.items():
        assert tokenizer.token_to_id(token) == number
        assert tokenizer.encode(f"a{token}b", allow_special=True) == [97, number, 98]
        assert number not in tokenizer.encode(f"a{token}b")
    end = special["<|endoftext|>"]
    assert (tokenizer.special["bos"], tokenizer.special["eos"]) == (end, end)
    assert tokenizer.notes == ()


def test_names_of_the_table_are_files(tmp_path: Path) -> None:
    for name, encoding in ENCODINGS.items():
        tokenizer = load(write(tmp_path / f"{name}.tiktoken", BYTES))
        for token, number in encoding.special.items():
            assert tokenizer.token_to_id(token) == number


def test_an_unknown_file_is_said_to_be_assumed(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path / "mine.tiktoken", BYTES))
    assert tokenizer.special["turn_end"] == 258
    [note] = tokenizer.notes
    assert "mine.tiktoken is none of gpt2" in note
    assert "cl100k_base's pattern" in note


def test_llama_3s_model_file_is_a_rank_file(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path / "tokenizer.model", full(300)))
    assert load(tmp_path).digest() == tokenizer.digest()
    assert tokenizer.special == {
        "bos": 300, "eos": 301, "turn_start": 306, "turn_end": 309,
    }  # fmt: skip


def test_a_folders_only_rank_file_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "qwen.tiktoken", BYTES)
    assert load(tmp_path).digest() == load(path).digest()
    write(tmp_path / "gpt2.tiktoken", BYTES)
    with pytest.raises(InputError, match=r"has 2 \.tiktoken files; name the one"):
        load(tmp_path)


def test_a_saved_copy_is_the_same(ranks: dict[bytes, int], tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path / "cl100k_base.tiktoken", ranks))
    tokenizer.save(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert copy.digest() == tokenizer.digest()
    assert copy.special == tokenizer.special
    assert copy.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


GOOD = "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in BYTES.items())
REFUSED = {
    "no rank": (GOOD + "YWI=\n", ":257 is 'YWI=', not a piece in base64"),
    "three fields": (GOOD + "YWI= 256 1\n", ":257 is .*, not a piece"),
    "no base64": (GOOD + "Y*I= 256\n", ":257 is .*, not a piece in base64, a space and its rank"),
    "no number": (GOOD + "YWI= x\n", ":257 is .*, not a piece"),
    "a negative rank": (GOOD + "YWI= -3\n", ":257 is .*, not a piece"),
    "an empty piece": (GOOD + "= 256\n", ":257 is .*, not a piece"),
    "a rank twice": (GOOD + "YWI= 7\n", ":257 has the rank 7 again"),
    "a piece twice": (GOOD + "YQ== 256\n", r":257 has the piece b'a' again"),
    "a byte missing": (GOOD.replace("YQ== 97\n", ""), "no rank for the byte 0x61"),
    "empty": ("", "no rank for the byte 0x00"),
    "too many for its name": (
        GOOD + "YWI= 50256\n", r"<\|endoftext\|> has to be id 50256, .* call it something else",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_file_is_refused_by_its_line(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "gpt2.tiktoken"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
