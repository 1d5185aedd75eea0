"""A cloze's label and a detector's judgement of a word, against transformers' networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError, UsageError
from llmctl.stages.explain.words import explain, open_explainer
from llmctl.tasks import TASKS
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model

TEXT = "the ship sails over the wide sea"


def explained(
    folder: Path, text: str = TEXT, pair: str | None = None, **asked: Any
) -> ExplainedText:
    explainer = open_explainer(
        Workspace(folder.parent), str(folder), ExplainedAnswer(**asked), device="cpu"
    )
    return explainer.explained(Example(text, pair, None, "text 1"))


def cloze(folder: Path, template: str, words: dict[str, str]) -> Any:
    """A masked language model of transformers' that asks by a template."""
    theirs = save_model(folder, "BertForMaskedLM", like="bert")
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["llmctl_cloze"] = {"input": template, "target": "{{ label }}", "verbalizer": words}
    path.write_text(json.dumps(fields))
    return theirs


def words_of(folder: Path, pieces: int) -> list[str]:
    """Words that the tokenizer cuts into so many pieces."""
    tokenizer = OpenedModel.open(Workspace(folder.parent), str(folder)).folder.tokenizer
    tried = (a + b for a in ("", "sh", "se", "wa", "te") for b in ("a", "e", "s", "th", "ng", "l"))
    return [word for word in tried if len(tokenizer.encode(word)) == pieces][:3]


@pytest.mark.reference
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("template", ["{{ text }} . it is {{ mask }}", "{{ mask }} : {{ text }} !"])
def test_a_cloze_is_explained_by_its_labels_word(tmp_path: Path, pieces: int, template: str):
    folder = tmp_path / "model"
    theirs = cloze(folder, template, {"a": "s", "b": "e"})
    words = words_of(folder, pieces)
    theirs = cloze(folder, template, dict(zip("abc", words, strict=False)))
    text = explained(folder, answer="b")
    model = OpenedModel.open(Workspace(tmp_path), str(folder))
    tokenizer = model.folder.tokenizer
    # The text's words, and none of the template's.
    assert [TEXT[a:b] for a, b in text.words] == TEXT.split()
    ids, mask = text.ids_T.tolist(), tokenizer.special["mask"]
    masks = [place for place, number in enumerate(ids) if number == mask]
    assert len(masks) == pieces
    own = [ids[n] for n in np.flatnonzero(text.word_T >= 0)]
    assert own == tokenizer.encode(TEXT)
    wanted = tokenizer.encode(words[1])

    @torch.no_grad()
    def number(rows: torch.Tensor) -> float:
        logs = theirs(rows).logits[0].log_softmax(-1)
        return float(sum(logs[place, piece] for place, piece in zip(masks, wanted, strict=True)))

    whole, nothing = (number(text.rows(np.full((1, 7), kept))) for kept in (True, False))
    found = ATTRIBUTION_METHODS["integrated-gradients"]().weights(text)
    assert found.sum() == pytest.approx(whole - nothing, rel=0.02, abs=1e-3)
    kept = np.array([[False] + [True] * 6])
    lost = ATTRIBUTION_METHODS["occlusion"]().weights(text)[0]
    assert lost == pytest.approx(whole - number(text.rows(kept)), abs=1e-3)
    (one,) = explain([text])
    assert set(one.methods) == set(ATTRIBUTION_METHODS)
    # Its own answer is what it predicts.
    predicted = TASKS["cloze"].predictor()(model, "cpu")  # type: ignore[misc]
    (answer,) = predicted.answers(predicted.alone([TEXT]))
    own = explained(folder)
    if pieces == 1:
        assert own.answer == answer.label
        assert own.facts["probability"] == pytest.approx(answer.probabilities[answer.label], 1e-4)
    against = explained(folder, answer="b", against="a")
    assert against.answer == "b rather than a"


def test_what_of_a_cloze_is_not_explained(tmp_path: Path):
    folder = tmp_path / "model"
    words = {"a": "s", "b": "e"}
    cloze(folder, "{{ text }} {{ mask }}", words)
    with pytest.raises(UsageError, match=r"--answer moon: .* has no such label; it has a, b"):
        explained(folder, answer="moon")
    with pytest.raises(UsageError, match="--answer and --against are both 'a'; name two"):
        explained(folder, answer="a", against="a")
    with pytest.raises(UsageError, match="asks for one text; leave the second out"):
        explained(folder, pair="the sea")
    with pytest.raises(InputError, match="is longer than the 64 tokens"):
        explained(folder, "the sea " * 60)
    cloze(folder, "{{ text|upper }} {{ mask }}", words)
    with pytest.raises(InputError, match="doesn't write the text as it is, once"):
        explained(folder)
    cloze(folder, "{{ title }} {{ text }} {{ mask }}", words)
    with pytest.raises(UsageError, match="asks for title beside the text"):
        explained(folder)


@pytest.mark.reference
def test_a_detectors_word_is_explained_by_the_others(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "ElectraForPreTraining", like="bert")
    text = explained(folder, word=2)
    with torch.no_grad():
        logits = theirs(text.ids_T[None]).logits[0]
    # The word that is judged is none of those that explain.
    assert [TEXT[a:b] for a, b in text.words] == ["the", *TEXT.split()[2:]]
    (place,) = text.read_at
    assert text.word_T[place] == -1
    sign = 1.0 if logits[place] > 0 else -1.0
    assert text.answer == f"{'replaced' if sign > 0 else 'original'}: “ship”"
    assert text.facts["probability"] == pytest.approx(float((sign * logits[place]).sigmoid()), 1e-4)

    @torch.no_grad()
    def number(kept: list[bool]) -> float:
        return sign * float(theirs(text.rows(np.array([kept]))).logits[0, place])

    everything, nothing = number([True] * 6), number([False] * 6)
    assert everything == pytest.approx(sign * float(logits[place]), abs=1e-4)
    found = ATTRIBUTION_METHODS["integrated-gradients"]().weights(text)
    assert found.sum() == pytest.approx(everything - nothing, rel=0.02, abs=1e-3)
    lost = ATTRIBUTION_METHODS["occlusion"]().weights(text)[0]
    assert lost == pytest.approx(everything - number([False] + [True] * 5), abs=1e-3)
    other = "original" if sign > 0 else "replaced"
    asked = explained(folder, word=2, answer=other)
    assert asked.answer.startswith(other)
    assert float(asked.score(asked.ids_T[None]).detach()) == pytest.approx(-everything, abs=1e-4)
    # Without a word, the one that looks replaced most.
    suspicious = explained(folder)
    own = np.asarray(logits[1 : 1 + len(text.ids_T) - 2])
    assert suspicious.read_at == (1 + int(own.argmax()),)
    (one,) = explain([suspicious])
    assert set(one.methods) == set(ATTRIBUTION_METHODS)


def test_what_of_a_detector_is_not_explained(tmp_path: Path):
    folder = tmp_path / "model"
    save_model(folder, "ElectraForPreTraining", like="bert")
    with pytest.raises(UsageError, match="--word 9: the text has the words 1 to 7"):
        explained(folder, word=9)
    with pytest.raises(UsageError, match="--against is not for a detector"):
        explained(folder, against="replaced")
    with pytest.raises(InputError, match="has no two words"):
        explained(folder, "sea")
