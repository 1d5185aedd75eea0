"""Texts and tables to make goldens from: the same on every machine, for they are drawn by
``random.Random.random`` alone, whose sequence Python promises never to change."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STORY = [
    ("sea", "The ship sails over the {} sea.", ("wide", "deep", "grey")),
    ("sea", "A captain watches the {} stars.", ("bright", "cold", "far")),
    ("sea", "Waves rise against the {} rocks.", ("black", "wet", "old")),
    ("farm", "The farmer feeds his {} cows.", ("brown", "hungry", "young")),
    ("farm", "Hens lay eggs in the {} barn.", ("warm", "red", "quiet")),
    ("farm", "Wheat grows behind the {} mill.", ("tall", "stone", "broken")),
    ("city", "The tram stops at the {} square.", ("busy", "old", "wet")),
    ("city", "People hurry over the {} bridge.", ("long", "iron", "narrow")),
    ("city", "A baker opens his {} shop.", ("small", "corner", "new")),
]
"""Sentences of one story: subject, text, and what may stand in it. The first word is drawn in six
of ten cases, so that a model that has learned the story is sure which is the likeliest."""

TRANSLATED = {
    "ship": "Schiff", "cow": "Kuh", "lamp": "Lampe", "road": "Weg",
    "sails": "faehrt", "sleeps": "ruht", "burns": "brennt", "bends": "dreht",
}  # fmt: skip


class Draw:
    """Random choices of one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def below(self, bound: int) -> int:
        return int(self._generator.random() * bound)

    def sentence(self, number: int) -> str:
        _, text, words = STORY[number % len(STORY)]
        return text.format(words[(0, 0, 0, 0, 0, 0, 1, 1, 1, 2)[self.below(10)]])


def write_corpus(folder: Path) -> None:
    """Write every file that the commands read into a folder."""
    draw = Draw(0)
    documents = []
    for _ in range(300):
        first, length = draw.below(len(STORY)), 2 + draw.below(5)
        documents.append(" ".join(draw.sentence(first + place) for place in range(length)))
    pairs = [_pair(draw) for _ in range(120)]
    sayings = [_saying(draw) for _ in range(60)]
    spoken = [text for saying in sayings for text in (saying["instruction"], saying["output"])]
    written = [text for pair in pairs for text in pair.values()]
    _write_lines(folder / "stories.txt", [*documents, *spoken, *written])
    _write_lines(folder / "held-out.txt", [" ".join(map(draw.sentence, range(40)))])
    _write_rows(folder / "pairs.jsonl", pairs)
    _write_rows(folder / "few-pairs.jsonl", pairs[:12])
    _write_lines(folder / "sources.txt", [pair["source"] for pair in pairs[:4]])
    _write_rows(folder / "sayings.jsonl", sayings)
    for name, count in (("subjects.csv", 90), ("subjects-test.csv", 24), ("asked.csv", 6)):
        _write_labelled(folder / name, draw, count)
    _write_questions(folder, draw)
    (folder / "subject.toml").write_text(
        'input = "{{ text }} It is"\nseparator = " "\n'
        '[verbalizer]\nsea = " the sea"\nfarm = " his barn"\ncity = " a shop"\n'
    )


def _pair(draw: Draw) -> dict[str, str]:
    nouns, verbs = list(TRANSLATED)[:4], list(TRANSLATED)[4:]
    noun, verb = nouns[draw.below(4)], verbs[draw.below(4)]
    return {
        "source": f"the {noun} {verb}",
        "target": f"{TRANSLATED[verb]} {TRANSLATED[noun]}",
    }


def _saying(draw: Draw) -> dict[str, str]:
    number = draw.below(len(STORY))
    first, *_, last = STORY[number][1].format(STORY[number][2][0]).rstrip(".").split()
    place = f"({draw.below(100)})"
    return {"instruction": f"What of {first} and {last}? {place}", "output": f"{last.upper()}!"}


def _write_labelled(path: Path, draw: Draw, count: int) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["label", "text"])
        for _ in range(count):
            number = draw.below(len(STORY))
            writer.writerow([STORY[number][0], draw.sentence(number)])


def _write_questions(folder: Path, draw: Draw) -> None:
    """Minimal pairs, multiple choice and last words (LAMBADA), 12 rows each."""
    minimal, choices, last = [], [], []
    for number in range(12):
        sentence, other = draw.sentence(number), draw.sentence(number + 4)
        *front, end = sentence.split()
        minimal.append({"sentence_good": sentence, "sentence_bad": " ".join([end, *front])})
        endings = [f" {end}", f" {other.split()[-1]}", " eggs"]
        choices.append({"query": " ".join(front), "choices": endings, "gold": 0})
        last.append({"text": f"{draw.sentence(number - 1)} {sentence.rstrip('.')}"})
    _write_rows(folder / "blimp.jsonl", minimal)
    _write_rows(folder / "choices.jsonl", choices)
    _write_rows(folder / "lambada.jsonl", last)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    _write_lines(path, [json.dumps(row) for row in rows])
