"""Ways of training and tasks: options, a table for each, and what is asked of a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.config import build
from llmctl.data.tables.labelled import Example
from llmctl.inference.templates import PromptRow
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import open_predictor, predict
from llmctl.tasks.embed.texts import open_embedder, single
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.workspace.artefacts import Workspace

LABELS = ("sea", "farm", "city")
WORDS = {
    "sea": ("ship", "waves", "captain"),
    "farm": ("cows", "hens", "wheat"),
    "city": ("tram", "people", "baker"),
}
ROWS = 24
ASKED = ("the ship and the waves", "hens")

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "last-layers": {"last_layers": 1},
    "lora": {},
    "dora": {"method": "lora", "lora": {"dora": True}},
    "rslora": {"method": "lora", "lora": {"rslora": True, "rank": 4}},
    "ia3": {},
    "bitfit": {},
    "prompt": {"prompt": {"tokens": 3}},
    "prefix": {"prefix": {"tokens": 3, "projection": 5}},
    "ptuning": {"prefix": {"tokens": 3}},
}
"""What is laid over a task's configuration."""
WITHOUT_ADAPTER = ("full", "last-layers")
VIRTUAL = ("prompt", "prefix", "ptuning")


def options_of(name: str) -> dict[str, Any]:
    """A method's layer."""
    return {"method": name, **METHODS[name]}


# Data.


def text_of(number: int) -> str:
    words = WORDS[LABELS[number % 3]]
    return f"the {words[number % 2]} and the {words[number // 3 % 3]} {'go ' * (number % 4)}on"


def _row(number: int) -> dict[str, Any]:
    """A row from which each table has its columns."""
    label, other = LABELS[number % 3], LABELS[(number + 1) % 3]
    return {
        "text": text_of(number), "text_pair": text_of(number + number % 5), "label": label,
        "labels": [label] if number % 2 else [label, other],
        "stars": number % 3, "score": number % 4 / 2,
        "prompt": f"say {text_of(number)}", "answer": f"the {WORDS[label][0]}",
        "chosen": f"the {WORDS[label][0]}", "rejected": f"the {WORDS[other][0]}",
    }  # fmt: skip


def table(path: Path, **columns: str) -> Path:
    """Rows as JSONL. columns: what each is called, and which of a row's it is."""
    rows = ({new: _row(n)[old] for new, old in columns.items()} for n in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tagged(path: Path) -> Path:
    sentences = []
    for number in range(ROWS):
        words = text_of(number).split()
        tags = ["B-THING" if word in WORDS[LABELS[number % 3]] else "O" for word in words]
        sentences.append("".join(f"{w} {t}\n" for w, t in zip(words, tags, strict=True)))
    path.write_text("\n".join(sentences))
    return path


def plain(path: Path) -> Path:
    path.write_text("\n".join(map(text_of, range(ROWS))) + "\n")
    return path


# Answers.


def predicted(place: Workspace, start: str) -> list[Any]:
    predictor = open_predictor(place, start, device="cpu")
    return [answer.record() for answer in predictor.answers(predictor.alone(ASKED))]


def predicted_pairs(place: Workspace, start: str) -> list[Any]:
    pairs = [Example(text, ASKED[0], None, "asked") for text in ASKED]
    return [answer.record() for answer in predict(place, start, pairs, device="cpu")]


def asked_pairs(place: Workspace, start: str) -> list[Any]:
    rows: Any = [PromptRow({"text": text, "text_pair": ASKED[0]}, None, "asked") for text in ASKED]
    return [answer.record() for answer in open_predictor(place, start).answers(rows)]


def filled(place: Workspace, start: str) -> list[Any]:
    texts = [Example(f"{text} [MASK]", None, None, "asked") for text in ASKED]
    return [answer.record() for answer in predict(place, start, texts, device="cpu")]


def embedded(place: Workspace, start: str) -> list[Any]:
    vectors: list[Any] = open_embedder(place, start, device="cpu").vectors(single(ASKED)).tolist()
    return vectors


def written(place: Workspace, start: str) -> list[Any]:
    config = build(GenerateConfig, {"max_new_tokens": 5, "temperature": 0, "device": "cpu"})
    generator = open_generation(place, start, config)
    found = generator.answers(Prompt(text, "asked") for text in ASKED)
    return [
        [(list(one.ids), list(one.log_probs)) for one in answer.completions] for answer in found
    ]


# Tasks.


@dataclass(frozen=True)
class Case:
    """A task with what it is learned from."""

    task: str
    bases: Sequence[str]
    """Models that it is learned with; the diagonal takes the first."""
    data: Callable[[Path], Path]
    answers: Callable[[Workspace, str], list[Any]]
    layer: Mapping[str, Any]
    """What is laid over the task's configuration."""
    measured: str | None = None
    """The case whose table it is measured on, if not its own."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What is asked of an evaluation besides."""
    in_diagonal: bool = True


ENCODERS, WRITERS = ("bert", "modernbert"), ("gpt", "llama")
READERS = (*ENCODERS, *WRITERS)


def _case(
    task: str,
    bases: Sequence[str],
    answers: Callable[[Workspace, str], list[Any]],
    *,
    data: Callable[[Path], Path] | None = None,
    layer: Mapping[str, Any] | None = None,
    **columns: str,
) -> Case:
    return Case(task, bases, data or (lambda path: table(path, **columns)), answers, layer or {})


def _pairs(*given: Any, **more: Any) -> Case:
    """A task on two texts, in the whole grid alone."""
    case = _case(*given, text="text", text_pair="text_pair", **more)
    return replace(case, in_diagonal=False)


CLOZE_ASKED = {"template": "{text} about {mask}", "labels": "sea=ship,farm=hens,city=tram"}
SHORT_ANSWERS = {"objective": {"reward": "regex", "pattern": "[aeo]", "group_size": 6,
                               "max_new_tokens": 4}}  # fmt: skip
CASES: dict[str, Case] = {
    "classify": _case("classify", READERS, predicted, text="text", label="label"),
    "pairs": _case(
        "classify", READERS, predicted_pairs, text="text", text_pair="text_pair", label="label"
    ),
    "multi-label": _case(
        "classify", READERS, predicted, layer={"multi_label": True}, text="text", labels="labels"
    ),
    "ordinal": _case(
        "classify", READERS, predicted, layer={"ordinal": True}, text="text", label="stars"
    ),
    "regress": _case("regress", READERS, predicted, text="text", label="score"),
    "regress pairs": _case(
        "regress", READERS, predicted_pairs, text="text", text_pair="text_pair", label="score"
    ),
    "tag": _case("tag", READERS, predicted, data=tagged),
    "cloze": _case("cloze", ENCODERS, predicted, layer=CLOZE_ASKED, text="text", label="label"),
    "setfit": _case("setfit", READERS, predicted, text="text", label="label"),
    "embed": _case("embed", READERS, embedded, text="text", positive="text_pair"),
    "embed scores": _case(
        "embed", READERS, embedded, text="text", text_pair="text_pair", score="score"
    ),
    "instruct": replace(
        _case("instruct", WRITERS, written, prompt="prompt", completion="answer"),
        measured="distil causal",
    ),
    "seq2seq": _case("seq2seq", ("t5",), written, source="text", target="answer"),
    "seq2seq prefix": _case(
        "seq2seq", WRITERS, written, layer={"style": "prefix"}, source="text", target="answer"
    ),
    "seq2seq decoder": _case(
        "seq2seq", WRITERS, written, layer={"style": "decoder"}, source="text", target="answer"
    ),
    "dpo": _case("dpo", WRITERS, written, prompt="prompt", chosen="chosen", rejected="rejected"),
    "kto": _case("kto", WRITERS, written, prompt="prompt", chosen="chosen", rejected="rejected"),
    "grpo": replace(
        _case("grpo", WRITERS, written, layer=SHORT_ANSWERS, prompt="prompt", answer="answer"),
        asked={"task": "reward", "rewards": {"reward": "regex", "pattern": "the"}},
    ),
    "distil classes": _case(
        "distil", READERS, predicted, layer={"teacher": "classifier"}, text="text", label="label"
    ),
    "distil vectors": replace(
        _case("distil", READERS, embedded, layer={"teacher": "embedder"}, text="text"),
        measured="embed",
    ),
    "distil masked": replace(
        _case("distil", ("bert",), filled, data=plain, layer={"teacher": "bert"}),
        measured="cloze",
        asked=CLOZE_ASKED,
    ),
    "distil causal": _case("distil", ("gpt",), written, data=plain, layer={"teacher": "gpt"}),
    "multi-label pairs": _pairs(
        "classify", READERS, predicted_pairs, layer={"multi_label": True}, labels="labels"
    ),
    "ordinal pairs": _pairs(
        "classify", READERS, predicted_pairs, layer={"ordinal": True}, label="stars"
    ),
    "setfit pairs": _pairs("setfit", READERS, predicted_pairs, label="label"),
    "cloze pairs": _pairs(
        "cloze",
        ENCODERS,
        asked_pairs,
        layer={**CLOZE_ASKED, "template": "{text} {mask} {text_pair}"},
        label="label",
    ),
}
"""By what they are called here."""
