"""Every way of training with every task: small models, a table for each task, and what is asked of
a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl import tokenizers
from llmctl.config import build
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.inference.templates import PromptRow
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import open_predictor, predict
from llmctl.stages.train import finetune
from llmctl.tasks.embed.texts import open_embedder, single
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.finetuning import resolve
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


CLOZE_ASKED = {"template": "{text} about {mask}", "labels": "sea=ship,farm=hens,city=tram"}
SHORT_ANSWERS = {"objective": {"reward": "regex", "pattern": "[aeo]", "group_size": 6,
                               "max_new_tokens": 4}}  # fmt: skip
PAIR = {"text": "text", "text_pair": "text_pair"}
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
    **{
        f"{name} pairs": replace(
            _case(task, bases, answers, layer=layer, **more, **PAIR), in_diagonal=False
        )
        for name, task, bases, answers, layer, more in (
            (
                "multi-label",
                "classify",
                READERS,
                predicted_pairs,
                {"multi_label": True},
                {"labels": "labels"},
            ),
            (
                "ordinal",
                "classify",
                READERS,
                predicted_pairs,
                {"ordinal": True},
                {"label": "stars"},
            ),
            ("setfit", "setfit", READERS, predicted_pairs, {}, {"label": "label"}),
            (
                "cloze",
                "cloze",
                ENCODERS,
                asked_pairs,
                {**CLOZE_ASKED, "template": "{text} {mask} {text_pair}"},
                {"label": "label"},
            ),
        )
    },
}
"""By what they are called here."""


def refusal(method: str, name: str, base: str) -> str | None:
    """What is said of a cell that can't be; None where it can."""
    if method == "bitfit" and base in ("modernbert", "llama", "t5"):
        return f"--method bitfit trains biases, and a {base} has none"
    if method in VIRTUAL and name == "seq2seq decoder":
        return f"--method {method} with --style decoder"
    return None


# Models.

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}


class Grid:
    """A folder with models of random weights and tables, and a workspace for runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = Workspace(folder / "workspace")
        self._tables: dict[str, Path] = {}

    @cached_property
    def _texts(self) -> list[str]:
        return [*map(text_of, range(ROWS)), "say about"] * 3

    def model(self, name: str) -> Path:
        """The folder of an architecture's language model, a ``classifier`` or an ``embedder``."""
        path = self.folder / name
        if not path.exists():
            self._write(path, name)
        return path

    def _write(self, path: Path, name: str) -> None:
        arch = {"classifier": "bert", "embedder": "bert"}.get(name, name)
        spec = ARCHITECTURES[arch]
        kind = "wordpiece" if arch in ENCODERS else "bpe"
        tokenizer = tokenizers.learn(kind, self._texts, 300, exact=False)
        shape = spec.config(**SHAPE).with_vocabulary(tokenizer.vocab_size, tokenizer.special)
        torch.manual_seed(len(name))
        body: Any = spec.build(shape)
        extra: dict[str, Any] = {MAX_LENGTH: SHAPE["max_positions"]}
        model: Any
        if name == "classifier":
            model = Classifier(body, len(LABELS), dropout=0.0)
            extra |= {"id2label": {str(n): label for n, label in enumerate(LABELS)}}
        elif name == "embedder":
            model = Embedder(body, "mean")
        elif spec.kind == "encoder":
            model = MaskedLM(body, next_sentence=False)
        else:
            model = CausalLM(body) if spec.kind == "decoder" else EncoderDecoderLM(body)
        with torch.no_grad():  # fresh norms and biases would hide mistakes
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        if name == "embedder":
            SentenceTransformers().save(path, model, tokenizer.for_encoder(), extra)
        else:
            write_model_folder(path, model, tokenizer, extra)

    def data(self, name: str) -> Path:
        """The table of a case."""
        if name not in self._tables:
            path = self.folder / f"{name.replace(' ', '_')}.{'txt' if _is_text(name) else 'jsonl'}"
            self._tables[name] = CASES[name].data(path)
        return self._tables[name]

    def try_cell(self, method: str, name: str, base: str | None = None) -> None:
        """Train by a method for a task, and check all that holds of the run."""
        case = CASES[name]
        base = base or case.bases[0]
        layer = {
            # The weights of the best step are kept: without warm-up the first has learned, too.
            "training": {
                "max_steps": 2,
                "batch_size": 8,
                "precision": "fp32",
                "device": "cpu",
                "warmup": 0.0,
            },
            "seed": 1,
            **options_of(method),
            **case.layer,
        }
        if "teacher" in layer:
            layer["teacher"] = str(self.model(str(layer["teacher"])))
        start, data = self.model(base), self.data(name)
        run_name = f"{method}-{name}-{base}".replace(" ", "-")
        before = open_folder(start)
        digest = before.digest()
        given = (self.place, str(start), data, resolve(case.task, layer))
        run, up_to_date = finetune(*given, name=run_name)
        assert not up_to_date
        assert before.digest() == digest == open_folder(start).digest()
        check_changed(method, name, before, open_folder(run.folder / "model"))
        assert finetune(*given, name=run_name)[1], "a second call is up to date"
        answers = case.answers(self.place, run_name)
        assert len(answers) == len(ASKED)
        adapter = run.folder / "adapter"
        assert adapter.exists() == (method not in WITHOUT_ADAPTER)
        if name == "seq2seq decoder" and adapter.exists():
            with pytest.raises(InputError, match="goes with a decoder that was attached"):
                case.answers(self.place, str(adapter))
        elif adapter.exists():
            assert_alike(answers, case.answers(self.place, str(adapter)))
        config = {"baselines": False, "resamples": 5, "max_new_tokens": 3, "num_beams": 1,
                  "device": "cpu", "max_tokens": 20}  # fmt: skip
        asked = dict(case.asked)
        files = Files(self.data(case.measured or name), template=asked.pop("template", None))
        options = build(EvaluateConfig, config | asked)
        report, _, _ = prepare_evaluation(self.place, run_name, files, options).run()
        assert report.document()["results"]


def _is_text(name: str) -> bool:
    return name in ("tag", "distil masked", "distil causal")


def check_changed(method: str, name: str, before: Pretrained, after: Pretrained) -> None:
    """Of what both have, only that differs which the method trains, and something of it."""
    shared = sorted(before.tensors.keys() & after.tensors.keys())
    if CASES[name].answers in (predicted, predicted_pairs) and name != "cloze":
        # A new head of ModernBERT's begins with the layer that the old one had there.
        shared = [key for key in shared if not key.startswith("transform")]
    changed = {
        name
        for name in shared
        if before.tensors[name].shape == after.tensors[name].shape
        and not torch.equal(before.tensors[name], after.tensors[name])
    }
    assert any(name.startswith("body.") for name in shared)
    beyond = {name for name in changed if not trains(method, name)}
    assert not beyond, f"{method} changed {sorted(beyond)}"
    assert bool(changed) == (method not in VIRTUAL)


def trains(method: str, name: str) -> bool:
    """Whether a method trains a weight that its base has, by our name of it."""
    in_blocks = any(f".{part}." in name for part in ("blocks", "layers", "encoder", "decoder"))
    matrix = in_blocks and name.endswith(".weight") and "norm" not in name
    if method == "full":
        return True
    if method == "last-layers":
        above = ("body.blocks.1.", "body.norm.", "body.encoder.1.", "body.decoder.1.")
        return not name.startswith("body.") or name.startswith(above)
    if method in VIRTUAL or not name.startswith("body."):
        return False
    if method == "bitfit":
        return name.endswith(".bias")
    if method == "ia3":
        factored = ("query_key_value.", "key_value.", "feed_forward.contract.weight")
        return in_blocks and any(part in name for part in factored)
    return matrix


def assert_alike(one: Any, other: Any) -> None:
    """Equal, and numbers to 1e-5: sums in fp32 come in another order where an addition was
    merged."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    else:
        assert one == other
