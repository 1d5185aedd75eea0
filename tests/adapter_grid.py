"""Every way of training with every task: small models, and what holds of a finished run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl import tokenizers
from llmctl.config import build
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.train import finetune
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.finetuning import resolve
from llmctl.workspace.artefacts import Workspace
from tests.adapter_cases import (
    ASKED,
    CASES,
    ENCODERS,
    LABELS,
    ROWS,
    VIRTUAL,
    WITHOUT_ADAPTER,
    options_of,
    predicted,
    predicted_pairs,
    text_of,
)


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
        above = ("body.blocks.1.", "body.norm.", "body.decoder.blocks.1.", "body.decoder.norm.")
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
