"""Instruction files: three layouts, turns that are missing, the fault's place in the message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.conversations import Conversation, read_conversations
from llmctl.data.tables.turns import Turn
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: bool(text.strip())
)
EXCHANGES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def turns_of(system: str | None, exchanges: list[tuple[str, str]]) -> tuple[Turn, ...]:
    first = [Turn("system", system)] if system is not None else []
    return (
        *first,
        *(
            turn
            for asked, answered in exchanges
            for turn in (Turn("user", asked), Turn("assistant", answered))
        ),
    )


AB = turns_of(None, [("a", "b")])


def as_messages(turns: tuple[Turn, ...]) -> dict[str, Any]:
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}


def as_sharegpt(turns: tuple[Turn, ...]) -> dict[str, Any]:
    return {
        "conversations": [{"from": SHAREGPT[turn.role], "value": turn.content} for turn in turns]
    }


def as_alpaca(turns: tuple[Turn, ...]) -> dict[str, Any]:
    said = [turn.content for turn in turns if turn.role != "system"]
    return {
        "system": turns[0].content if turns[0].role == "system" else "",
        "history": [said[i : i + 2] for i in range(0, len(said) - 2, 2)],
        "instruction": said[-2],
        "input": "",
        "output": said[-1],
    }


def write(folder: Path, entries: list[Any], suffix: str = "jsonl") -> Path:
    path = folder / f"data.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        path.write_text(json.dumps(entries, ensure_ascii=False))
    return path


@given(system=TEXT | st.none(), exchanges=EXCHANGES, suffix=st.sampled_from(["json", "jsonl"]))
def test_every_layout_gives_the_same_turns(
    tmp_path_factory: pytest.TempPathFactory,
    system: str | None,
    exchanges: list[tuple[str, str]],
    suffix: str,
):
    turns = turns_of(system, exchanges)
    entries = [as_messages(turns), as_sharegpt(turns), as_alpaca(turns)]
    path = write(tmp_path_factory.mktemp("layouts"), entries, suffix)
    read = list(read_conversations(path))
    assert [conversation.turns for conversation in read] == [turns] * 3
    assert read[0].messages == as_messages(turns)["messages"]


def test_a_system_field_beside_the_turns(tmp_path: Path):
    entry = {"system": "Be brief.", **as_sharegpt(turns_of(None, [("a", "b")]))}
    path = write(tmp_path, [entry])
    assert next(read_conversations(path)).turns == turns_of("Be brief.", [("a", "b")])


def test_the_input_stands_under_the_instruction(tmp_path: Path):
    path = write(tmp_path, [{"instruction": "Add.", "input": "1 and 2", "output": "3"}])
    assert next(read_conversations(path)).turns == turns_of(None, [("Add.\n1 and 2", "3")])


def test_tables_hold_conversations_too(tmp_path: Path):
    turns = turns_of(None, [("a", "b"), ("c", "d")])
    pq.write_table(pa.table({"messages": [as_messages(turns)["messages"]]}), tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text('instruction,input,output\n"say, please",,yes\n')
    assert next(read_conversations(tmp_path / "d.parquet")).turns == turns
    assert next(read_conversations(tmp_path / "d.csv")).turns == turns_of(
        None, [("say, please", "yes")]
    )


def said(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "hello"} for role in roles]}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"instruction": "Do it."}, "has no output; it has the fields instruction"),
        ({"instruction": "a", "ouput": "b"}, "has no output .did you mean 'ouput'"),
        ({"instruction": 5, "output": "Done."}, "instruction is a number, and a text"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "exchange 1 of history is no"),
        (said("user", "user", "assistant"),
         r"has a user turn after another \(turn 2\): an assistant turn is missing"),
        (said("user", "assistant", "assistant"), r"after another \(turn 3\): a user turn"),
        (said("user", "system", "assistant"), "turn 2 is a system turn"),
        (said("user", "asistant"), "role 'asistant' .did you mean 'assistant'"),
        (said("user", "tool"), "turn 2 has the role 'tool'; use one of system, user, assistant"),
        ({"messages": [{"content": "a"}]}, "turn 1 has no role"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content in turn 1 is a list"),
        ({"messages": ["a"]}, "turn 1 is a text"),
        ({"messages": "a"}, "messages is a text; give a list"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "from 'tool'; use one of"),
        ({"prompt": "a", "text": "b"}, "has no completion; .*: give prompt and completion"),
        ({"question": "a", "answer": {"text": ["b"]}}, "answer is an object, and a text"),
        ({"instruction": "a", "output": "b", "response": "c"}, "has output and response; leave"),
        ({"instruction": "a", "input": "d", "context": "c", "output": "b"},
         "has input and context; leave"),
        ({**said("system", "user", "assistant"), "system_prompt": "a"}, "turn 2 is a system turn"),
        ({"mesages": []}, "has the fields mesages .did you mean 'messages'"),
        ({"text": "a", "label": "b"}, "has the fields text, label; give messages,"),
        ({**said("user", "assistant"), "conversations": [{"from": "human"}]},
         "has messages and conversations"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_one_sentence_with_its_place(
    tmp_path: Path, entry: Any, says: str
):
    good = said("user", "assistant")
    for suffix, place in (("jsonl", r"data\.jsonl:2\b"), ("json", r"data\.json item 2\b")):
        path = write(tmp_path, [good, entry], suffix)
        conversations = read_conversations(path)
        assert isinstance(next(conversations), Conversation)
        with pytest.raises(InputError, match=rf"{place}.*{says}"):
            next(conversations)


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"tool_calls": [{"id": "1"}]}, "turn 2 has tool_calls, which is not understood"),
        ({"function_call": {"name": "f"}}, "turn 2 has function_call"),
        ({"reasoning_content": "so"}, "turn 2 has reasoning_content"),
        ({"name": "Ann"}, "turn 2 has name"),
        ({"refusal": "no"}, "turn 2 has refusal"),
        ({"weight": 0.5}, "turn 2 has the weight 0.5; .* write 1 or 0"),
        ({"train": "no"}, "turn 2 has the train 'no'"),
        ({"content": [{"type": "text", "text": "a"}, IMAGE]}, "a list of parts .text, image_url"),
        ({"content": [{"type": "text", "text": "a", "cache": True}]}, "a list of parts .text."),
    ],
)
def test_fields_of_a_turn_that_may_change_what_is_learned_are_refused_by_name(
    tmp_path: Path, turn: dict[str, Any], says: str
):
    messages = said("user", "assistant")["messages"]
    path = write(tmp_path, [{"messages": [messages[0], {**messages[1], **turn}]}])
    with pytest.raises(InputError, match=rf"data\.jsonl:1.*{says}"):
        list(read_conversations(path))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]}, {"functions": [{}]}, {"images": ["x.png"]},
        {"chosen": {"value": "a"}}, {"rejected": "b"}, {"kto_tag": False}, {"label": False},
        {"weight": 0}, {"train": False}, {"reasoning_content": "so"},
    ],
)  # fmt: skip
def test_fields_of_an_entry_that_change_what_is_learned_are_refused_by_name(
    tmp_path: Path, fields: dict[str, Any]
):
    for entry in (said("user", "assistant"), {"instruction": "a", "input": "", "output": "b"}):
        path = write(tmp_path, [{**fields, **entry}])
        with pytest.raises(InputError, match=f"jsonl:1 has {next(iter(fields))}, which"):
            list(read_conversations(path))


def test_fields_that_are_empty_or_tell_where_a_turn_is_from_are_neutral(tmp_path: Path):
    messages = [
        {"role": "user", "content": "a", "name": None, "timestamp": 5, "id": "x", "weight": 0},
        {"role": "assistant", "content": "b", "tool_calls": [], "function_call": None,
         "refusal": None, "weight": 1, "train": True},
    ]  # fmt: skip
    entry = {"messages": messages, "tools": None, "functions": "[]", "images": [], "id": 7,
             "source": "web", "label": "travel", "kto_tag": True}  # fmt: skip
    (found,) = read_conversations(write(tmp_path, [entry]))
    assert found.turns == turns_of(None, [("a", "b")])


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_an_answer_that_is_not_to_be_learned_says_so(tmp_path: Path, mark: dict[str, Any]):
    messages = said("user", "assistant", "user", "assistant")["messages"]
    messages[1] |= mark
    (found,) = read_conversations(write(tmp_path, [{"messages": messages}]))
    assert [turn.learned for turn in found.turns] == [True, False, True, True]
    messages[3] |= mark
    with pytest.raises(InputError, match=r"none of its 1 entries can be learned from .*no answer"):
        list(read_conversations(write(tmp_path, [{"messages": messages}])))


@pytest.mark.parametrize(
    "entry",
    [
        {"instruction": "a", "context": "", "response": "b", "category": "qa"},  # Dolly
        {"prompt": "a", "completion": "b"}, {"prompt": "a", "response": "b"},
        {"question": "a", "answer": "b"},
        {"conversation": [{"role": "user", "content": "a", "country": "US", "toxic": False},
                          {"role": "assistant", "content": "b", "redacted": False}]},  # WildChat
        {"conversations": [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b"}]},
        {"messages": [{"role": "prompter", "content": "a"}, {"role": "model", "content": "b"}]},
        {"prompt": "what is not read", **as_messages(AB)},  # UltraChat
    ],
)  # fmt: skip
def test_the_same_under_other_names_as_published_files_have_it(
    tmp_path: Path, entry: dict[str, Any]
):
    (found,) = read_conversations(write(tmp_path, [entry]))
    assert found.turns == AB


def test_of_a_prompt_in_turns_only_the_completion_is_learned(tmp_path: Path):
    turns = as_messages(turns_of("s", [("a", "b"), ("c", "d")]))["messages"]
    entry = {"prompt": turns[:4], "completion": turns[4:]}
    (found,) = read_conversations(write(tmp_path, [entry]))
    assert found.messages == turns
    assert [turn.learned for turn in found.turns if turn.role == "assistant"] == [False, True]
    with pytest.raises(InputError, match=r"jsonl:1: prompt is a list, and completion is not"):
        list(read_conversations(write(tmp_path, [{"prompt": turns[:4], "completion": "d"}])))


def test_what_a_question_is_about_and_a_system_prompt_have_other_names_too(tmp_path: Path):
    entries = [
        {"system_prompt": "s", "question": "a\nc", "response": "b"},  # OpenOrca
        {"system": "s", "instruction": "a", "context": "c", "response": "b"},
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a\nc"},
                      {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    found = [conversation.turns for conversation in read_conversations(write(tmp_path, entries))]
    assert found == [turns_of("s", [("a\nc", "b")])] * 3


def test_what_can_be_understood_is_read(tmp_path: Path):
    """Other names for the same, as published files have them."""
    parts = [{"type": "text", "text": "b"}]
    entries = [
        {"conversations": as_messages(AB)["messages"]},
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT", "value": "b"}]},
        {"messages": [{"role": "USER", "content": "a"}, {"role": "Assistant", "content": parts}]},
        {"messages": [{"role": "system", "content": " "}, *as_messages(AB)["messages"]]},
        {"messages": None, "conversations": as_sharegpt(AB)["conversations"]},
    ]  # fmt: skip
    found = list(read_conversations(write(tmp_path, entries)))
    assert [conversation.turns for conversation in found] == [AB] * len(entries)


NOTHING_TO_LEARN = [
    ({"instruction": "Do it.", "input": "", "output": " "}, "has no output"),
    ({"instruction": "Do it.", "output": None}, "has no output"),
    ({"instruction": "", "output": "Done."}, "has no instruction"),
    (
        {"instruction": "a", "output": "b", "history": [["c", ""]]},
        "has no assistant turn in exchange",
    ),
    (said("user"), "ends with a user turn: nothing is answered"),
    (said("assistant"), "has no question"),
    (said("system"), "ends with a system turn"),
    (said(), "has no turns"),
    ({"messages": [{"role": "user"}]}, "has no content in turn 1"),
]


@pytest.mark.parametrize(("entry", "says"), NOTHING_TO_LEARN)
def test_an_entry_that_cannot_be_learned_from_is_left_out_and_counted(
    tmp_path: Path, entry: dict[str, Any], says: str
):
    notes: list[str] = []
    good = as_messages(AB)
    path = write(tmp_path, [good, entry, good, entry])
    reading = ReadOptions(note=notes.append)
    assert [c.source for c in read_conversations(path, reading=reading)] == [
        f"{path}:1", f"{path}:3",
    ]  # fmt: skip
    (note,) = notes
    assert note.startswith("left out 2 of 4 entries that can't be learned from (the first: ")
    assert f"{path}:2 {says}" in note
    with pytest.raises(InputError, match=r"none of its 1 entries"):
        list(read_conversations(write(tmp_path, [entry])))


def test_an_answer_before_the_first_question_and_a_question_behind_the_last_answer_go(
    tmp_path: Path,
):
    notes: list[str] = []
    around = [Turn("system", "s"), Turn("assistant", "x"), *AB, Turn("user", "y")]
    path = write(tmp_path, [as_messages(AB), as_messages(tuple(around))])
    found = list(read_conversations(path, reading=ReadOptions(note=notes.append)))
    assert [c.turns for c in found] == [AB, turns_of("s", [("a", "b")])]
    assert notes == [
        "in 1 of 2 entries an answer before the first question, or a question behind the last "
        f"answer, was left out (the first: {path}:2)"
    ]


def test_half_a_character_is_refused_or_replaced(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "\\ud83d"}, '
        '{"role": "assistant", "content": "b"}]}\n'
    )
    with pytest.raises(InputError, match=r"data\.jsonl:1: messages\[0\]\.content has half of a"):
        next(read_conversations(path))
    replaced = next(read_conversations(path, reading=ReadOptions(errors="replace")))
    assert replaced.turns[0].content == "\ufffd"


def test_plain_text_is_no_instruction_file(tmp_path: Path):
    path = tmp_path / "data.txt"
    path.write_text("hello\n")
    with pytest.raises(InputError, match=r"plain text"):
        next(read_conversations(path))


REAL = Path(__file__).parents[4] / "shared" / "data" / "instruct"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not beside the project")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_instructions_are_read(language: str):
    conversations = list(read_conversations(REAL / f"alpaca_{language}_demo.json"))
    assert len(conversations) in (999, 1000)
    assert all(len(c.turns) == 2 for c in conversations)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not beside the project")
def test_real_preferences_are_refused_by_name():
    path = REAL.parent / "preference" / "dpo_en_demo.json"
    with pytest.raises(InputError, match=r"item 1 has chosen, which is not understood"):
        list(read_conversations(path))
