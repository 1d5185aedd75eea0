"""What is kept to a form is of that form, as Python's own parsers see it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import UsageError
from llmctl.inference.constraints import GrammarError, Grammars, form_of
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Engine
from llmctl.tokenizers.bpe import learn_bpe
from tests.run import llmctl, one_sentence
from tests.small_decoders import make_model

pytest.importorskip("llguidance")

TOKENIZER = learn_bpe(
    ['{"name": "hens", "count": 12, "true": [1, 2]}', "the ship sails"] * 5, 320, exact=False
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["hen", "cöw"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}


def written(kind: Any, value: Any, count: int = 8) -> list[str]:
    """Texts that a model of random weights writes so."""
    rules = CompiledSamplingParams(
        GenerationConfig(max_new_tokens=150, temperature=1.0, num_samples=count), TOKENIZER
    )
    constraint = Grammars(TOKENIZER, rules.ends).constraint(kind, value)
    model = make_model("llama", vocab_size=TOKENIZER.vocab_size, max_positions=200)
    engine = Engine(CausalDecoder(model))
    (completions,) = engine.run([TOKENIZER.encode("the ship")], rules, constraint=constraint)
    assert all(completion.finish in ("eos", "stop") for completion in completions)
    return [completion.text for completion in completions]


def test_json_is_of_its_schema():
    for text in written("json_schema", SCHEMA):
        value = json.loads(text)
        assert set(value) == set(SCHEMA["required"])
        assert len(value["name"]) <= 6
        assert value["count"] in range(100)
        assert value["kind"] in ("hen", "cöw")


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", r"[a-f]{2,4}-\d+[xy]", r"[a-f]{2,4}-\d+[xy]"),
        ("choice", ["the ship", "(a|b)*", "Ω"], r"the ship|\(a\|b\)\*|Ω"),
        ("grammar", 'start: "a" word "."\nword: /[nm]{3}/', r"a[nm]{3}\."),
    ],
)
def test_texts_match(kind: str, value: Any, pattern: str):
    texts = written(kind, value)
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", {"type": "x"}), ("json_schema", "{"), ("json_schema", [1]),
        ("json_schema", "[" * 10_000), ("json_schema", {"$ref": "#/nowhere"}), ("regex", "("),
        ("regex", "(?=a)b"), ("regex", "a" * 300_000), ("choice", []), ("choice", ["a", 1]),
        ("choice", [""]), ("grammar", "start: word"), ("grammar", ""),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_refused(kind: Any, value: Any):
    ends = frozenset({TOKENIZER.special["eos"]})
    with pytest.raises(GrammarError):
        Grammars(TOKENIZER, ends).constraint(kind, value)


def test_one_form_only():
    assert form_of({"schema": None, "regex": "a", "choice": []}) == ("regex", "a")
    assert form_of({}) is None
    with pytest.raises(UsageError, match="--regex and --choice"):
        form_of({"regex": "a", "choice": ["b"]})


def test_generate_keeps_to_a_schema(decoder_workspace: Path, tmp_path: Path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    words = ["generate", "--from", "tiny-llama", "--prompt", "The ship", "--max-new-tokens", "110"]
    out = llmctl(decoder_workspace, *words, "--schema", path, "--temperature", "1", "--json").stdout
    text = json.loads(out)["answers"][0]["completions"][0]["text"]
    assert json.loads(text)["kind"] in ("hen", "cöw")
    told = llmctl(decoder_workspace, *words, "--choice", " sails", "--choice", " sinks").stdout
    assert told.strip() in ("The ship sails", "The ship sinks")
    wrong = llmctl(decoder_workspace, *words, "--regex", "(", code=3)
    assert "the regular expression can't be used" in one_sentence(wrong)
    absent = llmctl(decoder_workspace, *words, "--schema", tmp_path / "no.json", code=3)
    assert "--schema" in one_sentence(absent)
    beams = llmctl(decoder_workspace, *words, "--regex", "a", "--num-beams", "2", code=2)
    assert "num_beams" in one_sentence(beams)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99999999},
        {"type": "number", "multipleOf": 0.99999999},
        {"allOf": [{"type": "integer", "multipleOf": k} for k in (997, 991)]},
    ],
)
def test_a_schema_that_would_take_minutes_is_refused(schema: Any):
    with pytest.raises(GrammarError, match="multipleOf"):
        Grammars(TOKENIZER, frozenset([0])).constraint("json_schema", schema)


def test_multiples_that_can_be_kept_to_are():
    schema = {"type": "integer", "multipleOf": 997, "minimum": 0, "maximum": 99999}
    assert all(int(text) % 997 == 0 for text in written("json_schema", schema))
