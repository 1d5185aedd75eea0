"""Preferences as people keep them: pairs, thumbs, and prompts alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.tables.preferences import (
    has_pairs,
    read_preferences,
    read_prompts,
    read_ratings,
)
from llmctl.errors import InputError


def written(tmp_path: Path, *entries: dict[str, Any]) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ASKED, GOOD, BAD = said("user", "Why?"), said("assistant", "So."), said("assistant", "No.")
SYSTEM = said("system", "Be kind.")

PAIRS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "texts": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, ["Why?"]),
    "turns": ({"prompt": [SYSTEM, ASKED], "chosen": [GOOD], "rejected": [BAD]},
              ["Be kind.", "Why?"]),
    "whole conversations": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, ["Why?"]),
    "both": ({"prompt": "Why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD],
              "score_chosen": 8.0, "score_rejected": 1.5}, ["Why?"]),
    "LLaMA-Factory's": ({"conversations": [{"from": "human", "value": "Why?"}],
                         "chosen": {"from": "gpt", "value": "So."},
                         "rejected": {"from": "gpt", "value": "No."}}, ["Why?"]),
    "Alpaca's": ({"instruction": "Explain.", "input": "Why?", "chosen": "So.", "rejected": "No."},
                 ["Explain.\nWhy?"]),
    "a question": ({"system": "Be kind.", "question": "Why?", "chosen": "So.", "rejected": "No."},
                   ["Be kind.", "Why?"]),
    "a system field": ({"system": "Be kind.", "messages": [ASKED], "chosen": "So.",
                        "rejected": "No."}, ["Be kind.", "Why?"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", PAIRS)
def test_a_pair_is_read_in_each_layout(layout: str, tmp_path: Path):
    entry, asked = PAIRS[layout]
    path = written(tmp_path, entry)
    (pair,) = read_preferences(path)
    assert [turn.content for turn in pair.prompt] == asked
    assert (pair.chosen, pair.rejected) == ("So.", "No.")
    good, bad = read_ratings(path)
    assert [turn.content for turn in good.conversation.turns] == [*asked, "So."]
    assert (good.desirable, bad.desirable) == (True, False)
    assert good.asked == bad.asked == pair.asked
    assert has_pairs(path)


@pytest.mark.parametrize("label", [True, 1, "true", "True", 1.0])
@pytest.mark.parametrize(
    "answered",
    [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": [ASKED], "completion": [GOOD]},
        {"messages": [ASKED, GOOD]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    ],
)
def test_a_thumb_is_read_in_each_layout(answered: dict[str, Any], label: Any, tmp_path: Path):
    path = written(tmp_path, {**answered, "label": label}, {**answered, "kto_tag": False})
    up, down = read_ratings(path)
    assert [turn.content for turn in up.conversation.turns] == ["Why?", "So."]
    assert (up.desirable, down.desirable) == (True, False)
    assert not has_pairs(path)


def test_prompts_come_with_all_their_fields(tmp_path: Path):
    path = written(tmp_path, {"question": "2+2?", "answer": "4"}, {"prompt": [ASKED], "label": "x"})
    first, second = read_prompts(path)
    assert first.messages == [said("user", "2+2?")]
    assert first.values["answer"] == "4"
    assert second.messages == [ASKED]
    with pytest.raises(InputError, match=r"data.jsonl:2 has no prompt in it; write it"):
        list(read_prompts(written(tmp_path, {"prompt": "a"}, {"prompt": None, "answer": "4"})))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "same": ({"prompt": "Why?", "chosen": "So.", "rejected": "So. "},
             r"data.jsonl:1: chosen and rejected are the same answer"),
    "one": ({"prompt": "Why?", "chosen": "So."}, "has no rejected; it has the fields prompt"),
    "misspelt": ({"prompt": "Why?", "choosen": "So.", "rejected": "No."},
                 "no chosen \\(did you mean 'choosen'"),
    "no prompt": ({"chosen": "So.", "rejected": "No."}, "has no prompt; give prompt"),
    "two prompts": ({"prompt": "Why?", "chosen": [ASKED, GOOD],
                     "rejected": [said("user", "How?"), BAD]}, "before the last turns"),
    "other prompt": ({"prompt": "How?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
                     "the prompt isn't what is said before"),
    "user last": ({"prompt": "Why?", "chosen": [GOOD, ASKED], "rejected": [BAD]},
                  "chosen doesn't end with an assistant's turn"),
    "answered": ({"prompt": [ASKED, GOOD], "chosen": "So.", "rejected": "No."},
                 "the prompt doesn't end with what a user says"),
    "number": ({"prompt": "Why?", "chosen": 3, "rejected": "No."}, "chosen is a number"),
    "tools": ({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "tools": ["x"]},
              "has tools, which is not understood"),
    "two layouts": ({"prompt": "Why?", "messages": [ASKED], "chosen": "So.", "rejected": "No."},
                    "has messages and prompt"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_pair_that_says_nothing_clear_is_refused_by_name(what: str, tmp_path: Path):
    entry, sentence = BROKEN[what]
    with pytest.raises(InputError, match=sentence):
        list(read_preferences(written(tmp_path, entry)))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"prompt": "a", "completion": "b"}, "has no label; write prompt, completion and label"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "the label is 'good'; write true"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, "the label is 0.5"),
        ({"prompt": "a", "completion": "b", "label": True, "kto_tag": True}, "label and kto_tag"),
        ({"label": True, "text": "b"}, "give messages, conversations, or instruction"),
    ],
)
def test_a_rating_without_a_clear_thumb_is_refused(
    entry: dict[str, Any], sentence: str, tmp_path: Path
):
    with pytest.raises(InputError, match=sentence):
        list(read_ratings(written(tmp_path, entry)))


def test_blank_answers_are_left_out_and_counted(tmp_path: Path):
    notes: list[str] = []
    from llmctl.data.text.decoding import ReadConfig

    path = written(tmp_path, PAIRS["texts"][0], {"prompt": "a", "chosen": "b", "rejected": " "})
    pairs = list(read_preferences(path, reading=ReadConfig().read_options(notes.append)))
    assert len(pairs) == 1
    assert "left out 1 of 2 entries" in notes[0]
    assert "rejected" in notes[0]
    with pytest.raises(InputError, match="none of its 1 entries"):
        list(read_preferences(written(tmp_path, {"prompt": "a", "chosen": "", "rejected": "b"})))
    with pytest.raises(InputError, match="plain text"):
        list(read_prompts(Path(__file__).with_suffix(".txt")))
