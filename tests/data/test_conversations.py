"""Instruction files: three layouts, turns that are missing, the fault's place in the message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.conversations import Conversation, Turn, read_conversations
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


@settings(max_examples=60, deadline=None)
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
        ({"instruction": "Do it.", "input": "", "output": " "}, "has no output; fill it in"),
        ({"instruction": "Do it."}, "has no output"),
        ({"instruction": "", "output": "Done."}, "has no instruction"),
        ({"instruction": 5, "output": "Done."}, "instruction is a number, and a text"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "exchange 1 of history is no"),
        ({"instruction": "a", "output": "b", "history": [["c", ""]]},
         "no assistant turn in exchange 1 of history"),
        (said("user", "user", "assistant"),
         r"has a user turn after another \(turn 2\): an assistant turn is missing"),
        (said("user", "assistant", "assistant"), r"after another \(turn 3\): a user turn"),
        (said("assistant"), "begins with an assistant turn .* a user turn is missing"),
        (said("system", "assistant"), "begins with an assistant turn"),
        (said("user"), "ends with a user turn: the assistant's answer is missing"),
        (said("user", "assistant", "user"), "ends with a user turn"),
        (said("system"), "ends with a system turn"),
        (said(), "has no turns"),
        (said("user", "system", "assistant"), "turn 2 is a system turn"),
        (said("user", "asistant"), "role 'asistant' .did you mean 'assistant'"),
        (said("user", "tool"), "turn 2 has the role 'tool'; use one of system, user, assistant"),
        ({"messages": [{"content": "a"}]}, "turn 1 has no role"),
        ({"messages": [{"role": "user"}]}, "has no content in turn 1"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content in turn 1 is a list"),
        ({"messages": ["a"]}, "turn 1 is a text"),
        ({"messages": "a"}, "messages is a text; give a list"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "answer is missing"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "from 'bot'; use one of"),
        ({"mesages": []}, "has the fields mesages .did you mean 'messages'"),
        ({"text": "a", "label": "b"}, "has the fields text, label; give messages,"),
    ],
)  # fmt: skip
def test_a_missing_turn_is_one_sentence_with_its_place(tmp_path: Path, entry: Any, says: str):
    good = said("user", "assistant")
    for suffix, place in (("jsonl", r"data\.jsonl:2\b"), ("json", r"data\.json item 2\b")):
        path = write(tmp_path, [good, entry], suffix)
        conversations = read_conversations(path)
        assert isinstance(next(conversations), Conversation)
        with pytest.raises(InputError, match=rf"{place}.*{says}"):
            next(conversations)


def test_half_a_character_is_refused_or_replaced(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "\\ud83d"}, '
        '{"role": "assistant", "content": "b"}]}\n'
    )
    with pytest.raises(InputError, match=r"data\.jsonl:1: content in turn 1 has half of a"):
        next(read_conversations(path))
    replaced = next(read_conversations(path, encoding_errors="replace"))
    assert replaced.turns[0].content == "\ufffd"


def test_plain_text_is_no_instruction_file(tmp_path: Path):
    path = tmp_path / "data.txt"
    path.write_text("hello\n")
    with pytest.raises(InputError, match="plain text"):
        next(read_conversations(path))


REAL = Path(__file__).parents[3] / "shared" / "data" / "instruct"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not beside the project")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_instructions_are_read(language: str):
    conversations = list(read_conversations(REAL / f"alpaca_{language}_demo.json"))
    assert len(conversations) in (999, 1000)
    assert all(len(c.turns) == 2 for c in conversations)
