"""The files beside a tokenizer: what they name goes before what spelling tells, and the chat
template travels with the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from llmctl.errors import InputError
from llmctl.tokenizers import LEARNERS, Tokenizer, learn, load
from llmctl.tokenizers.chat import CHATML

CORPUS = ["The quick brown foxes jumped over the lazy dogs.\nuser assistant system hi hello"] * 4
SIZES = {"bpe": 300, "unigram": 310, "sentencepiece-bpe": 310, "characters": None, "wordpiece": 80}
TALK = [
    {"role": "system", "content": "the dogs"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello\nhello"},
]


def save(tokenizer: Tokenizer, folder: Path, **files: Any) -> Path:
    """Save, and put JSON files in the place of those beside it."""
    tokenizer.save(folder)
    for name in ("tokenizer_config", "special_tokens_map"):
        (folder / f"{name}.json").unlink()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return learn("bpe", CORPUS, 300)


def test_what_files_name_goes_before_what_spelling_tells(bpe: Tokenizer, tmp_path: Path) -> None:
    a, b, c = (bpe.token_to_id(token) for token in "abc")
    guessed = load(save(bpe, tmp_path / "none")).special
    assert guessed == bpe.special
    files = {
        "tokenizer_config": {"eos_token": "a", "bos_token": None, "mask_token": {"content": "a"}},
        "special_tokens_map": {"eos_token": "b", "pad_token": {"content": "b", "lstrip": False}},
        "generation_config": {"eos_token_id": [c, 1], "bos_token_id": c, "pad_token_id": c},
    }
    found = load(save(bpe, tmp_path / "all", **files)).special
    assert found == {**guessed, "eos": a, "mask": a, "pad": b, "bos": c}
    assert load(tmp_path / "all" / "tokenizer.json").special == found


def test_what_the_vocabulary_lacks_is_passed_over(bpe: Tokenizer, tmp_path: Path) -> None:
    folder = save(
        bpe, tmp_path,
        tokenizer_config={"eos_token": "</s>", "pad_token": None, "add_bos_token": False},
        generation_config={"bos_token_id": 300, "pad_token_id": -1, "eos_token_id": None},
    )  # fmt: skip
    assert load(folder).special == bpe.special


def test_qwens_two_ends(bpe: Tokenizer, tmp_path: Path) -> None:
    """Its chat models end at a turn; what begins a document only generation_config.json tells."""
    folder = save(
        bpe, tmp_path,
        tokenizer_config={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
        generation_config={"bos_token_id": 0, "eos_token_id": [4, 0]},
    )  # fmt: skip
    special = load(folder).special
    assert (special["bos"], special["eos"], special["turn_end"]) == (0, 4, 4)


@pytest.mark.parametrize(
    ("spelled", "roles"),
    [
        (("<s>", "</s>", "<unk>"), {"bos": "<s>", "eos": "</s>"}),
        (("<|endoftext|>",), {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
        (
            ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"),
            {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>",
             "turn_start": "<|start_header_id|>", "turn_end": "<|eot_id|>"},
        ),
        (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
         {"bos": "<bos>", "eos": "<eos>", "turn_end": "<end_of_turn>"}),
        (("<|bos|>", "<|assistant_end|>"), {"bos": "<|bos|>", "turn_end": "<|assistant_end|>"}),
    ],
    ids=["Llama 2", "GPT-2", "Llama 3", "Gemma", "nanochat"],
)  # fmt: skip
def test_usual_spellings_are_known(
    spelled: tuple[str, ...], roles: dict[str, str], bpe: Tokenizer, tmp_path: Path
) -> None:
    save(bpe, tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    for token in value["added_tokens"]:
        value["model"]["vocab"].pop(token["content"])
    value["added_tokens"] = [
        {**value["added_tokens"][0], "id": number, "content": token}
        for number, token in enumerate(spelled, 300)
    ]
    value["model"]["vocab"].update((token, 300 + n) for n, token in enumerate(spelled))
    value["post_processor"] = None
    path.write_text(json.dumps(value), encoding="utf-8")
    tokenizer = load(path)
    assert {role: tokenizer.id_to_token(tokenizer.special[role]) for role in roles} == roles


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer_config", {"eos_token": 7}, r"eos_token is 7, not a token's name"),
        ("tokenizer_config", {"eos_token": {"content": ["a"]}}, "eos_token is .*not a token's"),
        ("special_tokens_map", ["a"], "is not an object"),
        ("generation_config", {"bos_token_id": "<s>"}, "bos_token_id is '<s>', not an id"),
        ("tokenizer_config", {"chat_template": 7}, "chat_template is no text"),
        ("tokenizer_config", {"truncation_side": "up"}, "truncation_side is 'up', not left or"),
    ],
)
def test_a_malformed_file_is_named(
    name: str, value: Any, message: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    folder = save(bpe, tmp_path, **{name: value})
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert str(folder / f"{name}.json") in str(caught.value)


def test_the_side_that_is_cut_is_kept(bpe: Tokenizer, tmp_path: Path) -> None:
    assert not load(save(bpe, tmp_path / "a", tokenizer_config={"truncation_side": None})).cuts_left
    left = load(save(bpe, tmp_path / "b", tokenizer_config={"truncation_side": "left"}))
    left.save(tmp_path / "c")
    assert load(tmp_path / "c").cuts_left
    assert left.said_beside() == [*bpe.said_beside(), "left"]


def test_a_learned_tokenizer_with_turns_has_chatmls_template() -> None:
    for kind, size in SIZES.items():
        template = learn(kind, CORPUS, size, exact=False).chat_template
        assert template == (None if kind == "wordpiece" else CHATML)
    assert SIZES.keys() == LEARNERS.keys()


@pytest.mark.parametrize("flags", [{}, {"trim_blocks": True, "lstrip_blocks": True}])
def test_chatml_lays_a_conversation_out(flags: dict[str, bool]) -> None:
    """As published, behind the start of a document, whatever an environment does with blocks."""
    template = jinja2.Environment(**flags).from_string(CHATML)
    text = template.render(messages=TALK, add_generation_prompt=False, bos_token="<B>")
    assert text == (
        "<B><|im_start|>system\nthe dogs<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello\nhello<|im_end|>\n"
    )
    prompt = template.render(messages=TALK[:2], add_generation_prompt=True, bos_token="<B>")
    assert text.startswith(prompt)
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_travels_and_is_not_in_the_digest(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "a")
    path = tmp_path / "a" / "chat_template.jinja"
    assert path.read_text("utf-8") == CHATML
    path.write_text("{{ 'é' }}\n", encoding="utf-8")
    copy = load(tmp_path / "a")
    assert copy.chat_template == "{{ 'é' }}\n"
    assert copy.digest() == bpe.digest()
    copy.save(tmp_path / "b")
    assert load(tmp_path / "b").chat_template == "{{ 'é' }}\n"
    (tmp_path / "b" / "chat_template.jinja").unlink()
    assert load(tmp_path / "b").chat_template is None


def test_a_template_in_the_configuration_is_read(bpe: Tokenizer, tmp_path: Path) -> None:
    one = save(bpe, tmp_path / "one", tokenizer_config={"chat_template": "T"})
    (one / "chat_template.jinja").unlink()
    assert load(one).chat_template == "T"
    several = [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}]
    many = save(bpe, tmp_path / "many", tokenizer_config={"chat_template": several})
    (many / "chat_template.jinja").unlink()
    assert load(many).chat_template == "D"
    both = save(bpe, tmp_path / "both", tokenizer_config={"chat_template": "T"})
    assert load(both).chat_template == CHATML


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece-bpe", "characters"])
@pytest.mark.parametrize("model", [None, "gpt2", "llama", "qwen3"])
def test_transformers_lays_it_out_the_same(kind: str, model: str | None, tmp_path: Path) -> None:
    """In a model's folder too, where it might take the model's own kind of tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = learn(kind, CORPUS, SIZES[kind], exact=False)
    tokenizer.save(tmp_path)
    if model:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    names = {"bos_token": theirs.bos_token}
    text = jinja2.Template(CHATML, keep_trailing_newline=True).render(
        messages=TALK, add_generation_prompt=True, **names
    )
    assert theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False) == text
    ids = theirs.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer.encode(text, allow_special=True)
    assert ids[0] == tokenizer.special["bos"]
    assert ids.count(tokenizer.special["turn_end"]) == len(TALK)
