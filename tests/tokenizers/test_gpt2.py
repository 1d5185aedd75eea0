"""GPT-2's two files: the ids are those that transformers gives, and what is malformed is named."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError, UsageError
from llmctl.tokenizers import Tokenizer, learn, load

CORPUS = [*list(topics.values())[:10], "Le café; 我爱北京。 It's WE'LL 12345  x\n\n\ty"]
TEXT = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            ["the", " the", "  ", "\n", "'s", "'LL", "123", "é", "北", "<", "|>", "\x85"]
        )
    ).map("".join),
    st.sampled_from(CORPUS),
)
END = "<|endoftext|>"


def write(
    folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt"), **config: Any
) -> Path:
    """The two files of a learned BPE in GPT-2's layout: the document's token last."""
    folder.mkdir(parents=True, exist_ok=True)
    learn("bpe", CORPUS, 500, split_pattern="gpt2").save(folder / "json")
    model = json.loads((folder / "json" / "tokenizer.json").read_text("utf-8"))["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[5:]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, END])}
    (folder / names[0]).write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, model["merges"])]
    (folder / names[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Tokenizer.from_pretrained(folder)


@pytest.mark.reference
@given(text=TEXT)
def test_ids_are_those_of_transformers(text: str, tokenizer: Tokenizer, theirs: Any) -> None:
    ids = tokenizer.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.reference
def test_the_documents_token_is_theirs(tokenizer: Tokenizer, theirs: Any) -> None:
    end = theirs.eos_token_id
    assert tokenizer.special == {"bos": end, "eos": end, "cls": end, "sep": end}
    text = f"a{END}b"
    assert tokenizer.encode(text, allow_special=True) == theirs(text)["input_ids"]
    assert tokenizer.encode(text, allow_special=True)[1] == end
    assert end not in tokenizer.encode(text)


def test_either_file_and_the_folder_name_it(folder: Path, tmp_path: Path) -> None:
    digest = load(folder).digest()
    for name in ("vocab.json", "merges.txt"):
        assert load(folder / name).digest() == digest
    openai = write(tmp_path, names=("encoder.json", "vocab.bpe"))
    for path in (openai, openai / "encoder.json", openai / "vocab.bpe"):
        assert load(path).digest() == digest
    with pytest.raises(UsageError, match=r"--cased is for a vocab\.txt"):
        load(folder / "merges.txt", cased=True)


def test_windows_line_ends_do_not_matter(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path)
    path = other / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(other).digest() == load(folder).digest()


def test_a_saved_copy_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert load(tmp_path).digest() == tokenizer.digest()
    assert load(tmp_path).special == tokenizer.special


def test_qwen_2_cuts_digits_apart_and_adds_its_tokens(tmp_path: Path) -> None:
    size = load(write(tmp_path / "plain")).vocab_size
    added = {
        str(size + number): {"content": token, "special": True}
        for number, token in enumerate(("<|im_start|>", "<|im_end|>"))
    }
    folder = write(
        tmp_path / "qwen",
        tokenizer_class="Qwen2Tokenizer",
        added_tokens_decoder=added,
        eos_token="<|im_end|>",
        bos_token=None,
    )
    tokenizer = load(folder)
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    assert tokenizer.special["bos"] == size - 1
    assert tokenizer.special["eos"] == tokenizer.special["turn_end"] == size + 1
    assert tokenizer.special["turn_start"] == size


def edited(path: Path, change: Any) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


REFUSED_MERGES = {
    "one part": ("#version: 0.2\na\n", r"merges\.txt:2 has 1 parts"),
    "three parts": ("#version: 0.2\nt h e\n", r"merges\.txt:2 has 3 parts"),
    "a foreign part": ("t h\nq ż\n", r"merges\.txt:2: 'ż' is not in the vocabulary"),
    "a foreign whole": ("q q\n", r"merges\.txt:1: 'qq' is not in the vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED_MERGES)
def test_malformed_merges_are_named_by_their_line(case: str, tmp_path: Path) -> None:
    content, message = REFUSED_MERGES[case]
    (write(tmp_path) / "merges.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


REFUSED_VOCABULARIES = {
    "no number": (lambda v: v.update(a="x"), r"'a' has 'x', not an id"),
    "a flag": (lambda v: v.update(a=True), r"'a' has True, not an id"),
    "a negative id": (lambda v: v.update(a=-1), r"'a' has -1, not an id"),
    "an id twice": (lambda v: v.update(a=v["b"]), r"has id \d+, which another piece has"),
    "a byte missing": (lambda v: v.pop("Ġ"), r"no piece for the byte written 'Ġ'"),
    "CLIP's": (lambda v: v.update({"a</w>": 9999}), r"marks the ends of words \(</w>\)"),
}


@pytest.mark.parametrize("case", REFUSED_VOCABULARIES)
def test_a_malformed_vocabulary_is_named(case: str, tmp_path: Path) -> None:
    change, message = REFUSED_VOCABULARIES[case]
    edited(write(tmp_path) / "vocab.json", change)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "vocab.json") in str(caught.value)


def test_text_that_is_no_json_is_named_by_its_line(tmp_path: Path) -> None:
    (write(tmp_path) / "vocab.json").write_text('{\n"a": 0,\n}')
    with pytest.raises(InputError, match=r"vocab\.json:3 is not JSON"):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_missing_half_is_named(missing: str, tmp_path: Path) -> None:
    (write(tmp_path) / missing).unlink()
    other = {"vocab.json": "merges.txt", "merges.txt": "vocab.json"}[missing]
    with pytest.raises(InputError, match=rf"{missing}.*copy both files".replace(".", r"\.", 1)):
        load(tmp_path / other)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"7": {"content": "<new>"}}, "gives '<new>' the id 7, and the vocabulary goes on at"),
        ({"x": {"content": "<new>"}}, "added_tokens_decoder is malformed"),
        ({"7": "<new>"}, "added_tokens_decoder is malformed"),
        (["<new>"], "added_tokens_decoder is malformed"),
    ],
)
def test_malformed_additions_are_named(added: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, added_tokens_decoder=added)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "tokenizer_config.json") in str(caught.value)
