"""Readers of texts, tables, conversations, questions, templates and options."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from llmctl.config import Config, build, parse_assignments, read_recipe
from llmctl.data.tables.conversations import read_conversations
from llmctl.data.tables.labelled import Example, read_examples, resolve_columns
from llmctl.data.tables.parallel_text import SourceTarget, read_pairs, resolve_pair_columns
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.documents import Corpus, Document
from llmctl.evaluation.benchmarks import BENCHMARKS, read_questions
from llmctl.inference.prompts import Shots, find_columns, read_rows
from llmctl.inference.templates import read_template
from llmctl.reporting.units import parse_duration
from llmctl.stages.chat import ChatConfig
from llmctl.stages.generate import read_prompts
from llmctl.stages.sweep.grid import parse_grid, points
from llmctl.stages.tokenize.parts import parse_part
from llmctl.stages.tokenize.stage import TokenizeConfig
from llmctl.tasks import finetuning, pretraining
from llmctl.tasks.evaluation import EvaluateConfig
from llmctl.tasks.generation import GenerateConfig
from tests.robustness.children import Reader
from tests.robustness.mutators import as_arrow, as_parquet

TEXTS = [
    "The ship sails over the wide sea.", "Hens lay eggs in the barn, and wheat grows tall.",
    'The baker said: "Open the shop early!"', "Ein Zug hält am Platz; äöü ß 東京.", "a",
]  # fmt: skip
LABELS = ["sea", "farm", "city", "city", "sea"]


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def _json_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _delimited(rows: Iterable[Iterable[str]], delimiter: str = ",") -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if delimiter == "," and "," in text else text

    plain = [[text.replace('"', "") for text in row] for row in rows]
    return "\n".join(delimiter.join(map(cell, row)) for row in plain) + "\n"


LABELLED = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
PAIRS = [{"source": text, "target": text.upper()} for text in TEXTS]
TABLE = pa.table({"text": TEXTS, "label": LABELS})


# Documents


def _documents(name: str) -> Callable[[Path], list[Document]]:
    def read(folder: Path) -> list[Document]:
        corpus = Corpus([str(folder / name)])
        found = list(corpus)
        corpus.digest()
        return found

    return read


def _unicode(texts: Iterable[str | None]) -> None:
    for text in texts:
        assert text is None or isinstance(text, str), f"{text!r} is no text"
        (text or "").encode()  # half a surrogate pair is no Unicode


def _sound_documents(found: list[Document]) -> None:
    assert found, "no document, and no word of it"
    _unicode(document.text for document in found)
    assert all(document.text for document in found), "an empty document"


def _document_reader(what: str, name: str, form: str, content: str | bytes) -> Reader:
    return Reader(
        f"documents: {what}",
        _write(name, content),
        {name: form},
        _documents(name),
        _sound_documents,
    )


PLAIN = "\n\n".join(TEXTS * 3)
DOCUMENTS = [
    _document_reader("plain text", "corpus.txt", "text", PLAIN),
    _document_reader("gzip", "corpus.txt.gz", "gzip", gzip.compress(PLAIN.encode(), mtime=0)),
    _document_reader(
        "zstandard", "corpus.txt.zst", "zstd", zstandard.ZstdCompressor().compress(PLAIN.encode())
    ),
    _document_reader(
        "CSV", "corpus.csv", "csv", _delimited([["text", "title"], *([t, "b"] for t in TEXTS)])
    ),
    _document_reader(
        "TSV",
        "corpus.tsv",
        "tsv",
        _delimited([["text", "title"], *([t, "b"] for t in TEXTS)], "\t"),
    ),
    _document_reader("JSON", "corpus.json", "json", json.dumps(LABELLED)),
    _document_reader("JSON lines", "corpus.jsonl", "jsonl", _json_lines(LABELLED)),
    _document_reader("Parquet", "corpus.parquet", "parquet", as_parquet(TABLE)),
    _document_reader("Arrow", "corpus.arrow", "arrow", as_arrow(TABLE)),
]


# Tables


def _examples(name: str) -> Callable[[Path], list[Example]]:
    def read(folder: Path) -> list[Example]:
        columns = resolve_columns(folder / name, need_label=True)
        columns.describe()
        return list(read_examples(folder / name, columns))

    return read


def _sound_examples(found: list[Example]) -> None:
    for example in found:
        _unicode([example.text, example.text_pair, example.label])
        assert example.label, f"{example.source} has no label"


def _pairs(name: str, target: str | None = None) -> Callable[[Path], list[SourceTarget]]:
    def read(folder: Path) -> list[SourceTarget]:
        if target is None:
            resolve_pair_columns(folder / name)
        return list(read_pairs(folder / name, target_file=folder / target if target else None))

    return read


def _sound_pairs(found: list[SourceTarget]) -> None:
    for pair in found:
        _unicode([pair.source, pair.target])


def _conversations(folder: Path) -> list[Any]:
    return list(read_conversations(folder / "talks.jsonl"))


def _sound_conversations(found: list[Any]) -> None:
    for talk in found:
        _unicode(message["content"] for message in talk.messages)
        assert talk.messages[-1]["role"] == "assistant"


TALKS = [
    {"instruction": "Where does the ship sail?", "input": "", "output": "Over the sea."},
    {"conversations": [{"from": "human", "value": "Hens?"}, {"from": "gpt", "value": "Eggs."}]},
    {"messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "a"},
                  {"role": "assistant", "content": "b"}]},
]  # fmt: skip


def _aligned(folder: Path) -> None:
    (folder / "source.txt").write_text("\n".join(TEXTS) + "\n")
    (folder / "target.txt").write_text("\n".join(text.upper() for text in TEXTS) + "\n")


def _rows(folder: Path) -> list[Any]:
    reader = RowReader(folder / "rows.json")
    return [*reader, *reader.rows(reader.columns)]


TABLES = [
    Reader(
        "labelled CSV",
        _write("labelled.csv", _delimited([["text", "label"], *zip(TEXTS, LABELS, strict=True)])),
        {"labelled.csv": "csv"},
        _examples("labelled.csv"),
        _sound_examples,
    ),
    Reader(
        "labelled CSV without a header",
        _write("labelled.csv", _delimited(zip(LABELS * 3, TEXTS * 3, strict=True))),
        {"labelled.csv": "csv"},
        _examples("labelled.csv"),
        _sound_examples,
    ),
    Reader(
        "labelled JSON lines",
        _write("labelled.jsonl", _json_lines(LABELLED)),
        {"labelled.jsonl": "jsonl"},
        _examples("labelled.jsonl"),
        _sound_examples,
    ),
    Reader(
        "labelled Parquet",
        _write("labelled.parquet", as_parquet(TABLE)),
        {"labelled.parquet": "parquet"},
        _examples("labelled.parquet"),
        _sound_examples,
    ),
    Reader(
        "a list of rows in JSON",
        _write("rows.json", json.dumps(LABELLED)),
        {"rows.json": "json"},
        _rows,
    ),
    Reader(
        "pairs in JSON lines",
        _write("pairs.jsonl", _json_lines(PAIRS)),
        {"pairs.jsonl": "jsonl"},
        _pairs("pairs.jsonl"),
        _sound_pairs,
    ),
    Reader(
        "pairs in TSV",
        _write("pairs.tsv", _delimited(([t, t.upper()] for t in TEXTS), "\t")),
        {"pairs.tsv": "tsv"},
        _pairs("pairs.tsv"),
        _sound_pairs,
    ),
    Reader(
        "aligned texts",
        _aligned,
        {"source.txt": "text", "target.txt": "text"},
        _pairs("source.txt", "target.txt"),
        _sound_pairs,
    ),
    Reader(
        "conversations",
        _write("talks.jsonl", _json_lines(TALKS)),
        {"talks.jsonl": "jsonl"},
        _conversations,
        _sound_conversations,
    ),
]


# Prompts, streams and questions


def _prompts(name: str) -> Callable[[Path], list[str]]:
    return lambda folder: [prompt.text for prompt in read_prompts(folder / name)]


def _stdin(read: Callable[[], Any]) -> Callable[[Path], Any]:
    """With a file as standard input."""

    def reading(folder: Path) -> Any:
        before = sys.stdin
        with (folder / "stdin").open(encoding="utf-8") as stream:
            sys.stdin = stream
            try:
                return read()
            finally:
                sys.stdin = before

    return reading


def _stdin_examples() -> list[Example]:
    path = Path("-")
    columns = resolve_columns(path, need_label=False)
    return list(read_examples(path, columns))


def _said() -> list[str]:
    from llmctl.cli.chat import _Talk

    talk = object.__new__(_Talk)
    talk._typed = False
    return list(talk._lines())


def _questions(task: str, name: str) -> Callable[[Path], list[Any]]:
    return lambda folder: read_questions(BENCHMARKS[task], folder / name)


def _sound_questions(found: list[Any]) -> None:
    for question in found:
        _unicode([question.context, *question.choices])
        assert 0 <= question.gold < len(question.choices)
        assert all(choice.strip() for choice in question.choices)


CHOICES = [
    {"query": "The ship", "choices": ["sails", "lays eggs"], "gold": 0},
    {"query": "Hens", "choices": ["sail", "lay eggs"], "gold": 1},
]
ENDINGS = [
    {"ctx": "The ship [title] is", "ctx_a": "The ship", "ctx_b": "is", "activity_label": "Sailing",
     "endings": ["wide", "a hen"], "label": "0"},
]  # fmt: skip
SCIENCE = [
    {"question": "What sails?", "answerKey": "B",
     "choices": {"text": ["a hen", "a ship"], "label": ["A", "B"]}},
    {"question": {"stem": "What lays?", "choices": [{"text": "a hen", "label": "1"},
                                                     {"text": "a ship", "label": "2"}]},
     "answerKey": "1"},
]  # fmt: skip
PAIRED = [{"sentence_good": "Hens lay eggs.", "sentence_bad": "Hens lays eggs."}]


def _question_reader(what: str, task: str, rows: list[Any]) -> Reader:
    return Reader(
        f"questions: {what}",
        _write("questions.jsonl", _json_lines(rows)),
        {"questions.jsonl": "jsonl"},
        _questions(task, "questions.jsonl"),
        _sound_questions,
    )


PROMPTS = [{"prompt": text} for text in TEXTS]
STREAMS = [
    Reader("prompts, a line each", _write("prompts.txt", "\n".join(TEXTS)),
           {"prompts.txt": "text"}, _prompts("prompts.txt"), _unicode),
    Reader("prompts in JSON lines", _write("prompts.jsonl", _json_lines(PROMPTS)),
           {"prompts.jsonl": "jsonl"}, _prompts("prompts.jsonl"), _unicode),
    Reader("prompts from a pipe", _write("stdin", _json_lines(PROMPTS)),
           {"stdin": "jsonl"}, _stdin(lambda: _prompts("-")(Path())), _unicode),
    Reader("texts from a pipe", _write("stdin", "\n".join(TEXTS)),
           {"stdin": "text"}, _stdin(_stdin_examples)),
    Reader("documents from a pipe", _write("stdin", "\n".join(TEXTS)),
           {"stdin": "text"}, _stdin(lambda: list(Corpus(["-"]))), _sound_documents),
    Reader("chat from a pipe", _write("stdin", "\n".join(TEXTS)),
           {"stdin": "text"}, _stdin(_said), _unicode),
    _question_reader("minimal pairs", "blimp", PAIRED),
    _question_reader("last words", "lambada", LABELLED[:-1]),
    _question_reader("multiple choice", "multiple-choice", CHOICES),
    _question_reader("endings", "multiple-choice", ENDINGS),
    _question_reader("science", "multiple-choice", SCIENCE),
]  # fmt: skip


# Templates, recipes and options

TEMPLATE = r"""
input = "Review: {{ text }}\nSubject:"
target = " {{ label }}"
separator = "\n\n"
instruction = "Tell the subject."
prior = "Subject:"
[verbalizer]
sea = "the sea"
farm = "a farm"
city = "a city"
"""


def _template(folder: Path) -> None:
    (folder / "template.toml").write_text(TEMPLATE)
    (folder / "rows.jsonl").write_text(_json_lines(LABELLED))


def _filled(folder: Path) -> list[str]:
    template, data = read_template(folder / "template.toml"), folder / "rows.jsonl"
    columns = find_columns(data, template, need_label=template.tells_label)
    rows = list(read_rows(data, template, columns))
    shots = Shots(template, rows, seed=0)
    return [
        template.prior,
        *(template.prompt(shots.draw(n, template.question(row), 1), template.question(row))
          for n, row in enumerate(rows)),
    ]  # fmt: skip


CONFIGS: Mapping[str, type[Config]] = {
    "tokenize": TokenizeConfig, "generate": GenerateConfig, "chat": ChatConfig,
    "eval": EvaluateConfig,
}  # fmt: skip
RECIPE = """
[tokenize]
tokenizer = "bpe"
vocab_size = 300
validation = 0.1
document = "line"
text_column = 1

[pretrain]
[pretrain.model]
num_layers = 2
hidden_size = 32
num_heads = 2
[pretrain.data]
sequence_length = 64
[pretrain.training]
time_limit = "10m"
batch_size = 8
learning_rate = 3e-4
muon_learning_rate = 0.02
max_steps = 100
beta_2 = 0.95

[finetune]
task = "instruct"
patience = 2
method = "lora"
[finetune.lora]
rank = 8
[finetune.data]
validation = 0.05
max_length = 64
[finetune.training]
epochs = 2

[generate]
max_new_tokens = 20
temperature = 0.8
stop = ["x", "y"]
num_beams = 1

[chat]
temperature = 0

[eval]
task = "lambada"
shots = 1
seed = 3
"""


def resolved(stage: str, *layers: Mapping[str, Any]) -> Config:
    """A stage's configuration of any layers."""
    if stage == "pretrain":
        return pretraining.resolve("gpt", "nano", *layers)
    if stage == "finetune":
        return finetuning.resolve(None, *layers)
    return build(CONFIGS[stage], *layers)


STAGES = (*CONFIGS, "pretrain", "finetune")


def _recipe(folder: Path) -> list[Any]:
    """What each stage makes of a recipe; the first error is the recipe's."""
    path = folder / "recipe.toml"
    return [resolved(stage, read_recipe(path, stage)) for stage in STAGES]


def _sound_configs(configs: list[Any]) -> None:
    for config in configs:
        json.dumps(config.model_dump(mode="json"), allow_nan=False)


ASSIGNED = "\n".join(
    ["training.max_steps=100", "model.num_layers=2", "data.sequence_length=64", "seed=1",
     "training.learning_rate=3e-4", "training.beta_2=0.95", "training.time_limit=10m"]
)  # fmt: skip


def _assigned(folder: Path) -> Any:
    """--set with each line of a file."""
    lines = (folder / "values").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [resolved("pretrain", parse_assignments(lines))]


def _given(folder: Path) -> str:
    return (folder / "value").read_text(encoding="utf-8", errors="surrogateescape")


def _grid(folder: Path) -> Any:
    lines = (folder / "values").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return points("sweep", parse_grid(lines))


def _sound_seconds(seconds: float) -> None:
    assert 0 <= seconds < float("inf")


def _sound_part(part: Any) -> None:
    assert 1 <= part.number <= part.of


OPTIONS = [
    Reader("templates", _template, {"template.toml": "toml", "rows.jsonl": "jsonl"},
           _filled, _unicode),
    Reader("recipes", _write("recipe.toml", RECIPE), {"recipe.toml": "toml"},
           _recipe, _sound_configs),
    Reader("--set", _write("values", ASSIGNED), {"values": "toml"}, _assigned, _sound_configs),
    Reader("--grid", _write("values", "training.learning_rate=1e-3,3e-4\nseed=0,1,2"),
           {"values": "toml"}, _grid),
    Reader("durations", _write("value", "1d2h30m5s"), {"value": "text"},
           lambda folder: parse_duration(_given(folder)), _sound_seconds),
    Reader("--part", _write("value", "3/8"), {"value": "text"},
           lambda folder: parse_part(_given(folder)), _sound_part),
]  # fmt: skip

READERS = [*DOCUMENTS, *TABLES, *STREAMS, *OPTIONS]
