"""Linear probes by layer (Alain and Bengio 2016), each with a control task (Hewitt and Liang 2019).

A probe is a logistic regression from a layer's states to what words, or whole texts, are labelled
with. What it can do by itself shows in the control task, whose labels say nothing of language: each
word type has one that was drawn at random, as often as the true labels come.

    selectivity = accuracy − accuracy on the control task

A whole text's state is the mean over its tokens, a word's that over its pieces; a text's control
label is that of its first word.

L layers, M labelled words or texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.softmax_regression import fit
from llmctl.attribution.inside.states import states_of
from llmctl.errors import InputError
from llmctl.reporting.report import ReportTable

HELD_OUT_EVERY = 5
"""A text of so many is held out, to measure on."""
LEAST_TEXTS = 10
PROBE_RESAMPLES = 1000


@dataclass(frozen=True)
class ProbedText:
    """A text as ids with special tokens, and what is labelled in it."""

    ids: NDArray[np.int64]
    places: Sequence[Sequence[int]]
    """Where the tokens of each word that has a label stand, or those of the whole text."""
    labels: Sequence[str]
    types: Sequence[str]
    """The word type of each, by which it has its control label."""


@dataclass(frozen=True)
class ProbedTexts:
    """What probes learn from and are measured on."""

    source: str
    unit: str
    """``words`` or ``texts``."""
    texts: Sequence[ProbedText]


def control_labels(types: Sequence[str], labels_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """A random label (M,) for each word type, as often as the true ones come."""
    known = sorted(set(types))
    drawn = np.random.default_rng(0).choice(labels_M, size=len(known))
    of_type = dict(zip(known, drawn.tolist(), strict=True))
    return np.array([of_type[word] for word in types], dtype=np.int64)


def layer_states(subject: Subject, texts: Sequence[ProbedText]) -> Tensor:
    """The mean state (L + 1, M, D) of each labelled word or text, in their order."""
    begins = np.cumsum([0, *(len(text.labels) for text in texts)]).tolist()
    result: Tensor | None = None

    def told(done: int, total: int) -> None:
        subject.progress("texts read", done, total)

    for members, states_LBTD, _ in states_of(subject.body, [text.ids for text in texts], told):
        if result is None:
            layers, _, _, width = states_LBTD.shape
            result = torch.empty(layers, begins[-1], width, device=states_LBTD.device)
        for row, number in enumerate(members):
            for item, places in enumerate(texts[number].places):
                mean_LD = states_LBTD[:, row, list(places)].mean(1)
                result[:, begins[number] + item] = mean_LD
    assert result is not None
    return result


class Probe(Way):
    """How much of some labels can be read from each layer by a linear map."""

    name = "probe"
    described = "what can be read from each layer (Hewitt and Liang 2019)"
    num_texts, takes, of_answer = 0, "labels", False

    def look(self, subject: Subject) -> Insight:
        """Raises InputError for labels of which there is nothing to learn."""
        data: ProbedTexts = subject.data
        texts = data.texts
        if len(texts) < LEAST_TEXTS:
            raise InputError(
                f"{data.source} has {len(texts)} texts that can be probed, and {LEAST_TEXTS} are "
                "the least of which some can be held out; give more"
            )
        held_N = np.arange(len(texts)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        text_M = np.repeat(np.arange(len(texts)), [len(text.labels) for text in texts])
        held_M = held_N[text_M]
        labels = [label for text in texts for label in text.labels]
        known = sorted({label for label, held in zip(labels, held_M, strict=True) if not held})
        if len(known) < 2:
            raise InputError(
                f"{data.source} has one label alone, {known[0]}, and there is nothing to tell "
                "apart; check --label-column"
            )
        number = {label: place for place, label in enumerate(known)}
        true_M = np.array([number.get(label, -1) for label in labels])
        types = [word for text in texts for word in text.types]
        control_M = control_labels(types, true_M[true_M >= 0])
        layers = self._layers(subject, (true_M, control_M), text_M, held_M, len(known))
        counts = np.bincount(true_M[~held_M], minlength=len(known))
        majority = float((true_M[held_M] == counts.argmax()).mean())
        record = {
            "data": data.source,
            "unit": data.unit,
            "trained_on": int((~held_M).sum()),
            "measured_on": int(held_M.sum()),
            "labels": known,
            "majority": majority,
            "layers": layers,
        }
        return Insight(record, self._parts(subject, data, record))

    @staticmethod
    def _layers(
        subject: Subject,
        targets: tuple[NDArray[np.int64], NDArray[np.int64]],
        text_M: NDArray[np.int64],
        held_M: NDArray[np.bool_],
        classes: int,
    ) -> list[dict[str, Any]]:
        """What the probes of each layer come to, of the task and of its control."""
        states_LMD = layer_states(subject, subject.data.texts)
        device = states_LMD.device
        held = torch.from_numpy(held_M).to(device)
        layers = []
        for layer, x_MD in enumerate(states_LMD):
            found: dict[str, Any] = {"layer": layer}
            for name, target_M in zip(("accuracy", "control"), targets, strict=True):
                y_M = torch.from_numpy(target_M).to(device)
                probe = fit(x_MD[~held], y_M[~held], classes)
                right_M = (probe.classes(x_MD) == y_M).cpu().numpy()
                found[name] = float(right_M[held_M].mean())
                if name == "accuracy":
                    found["on_training"] = float(right_M[~held_M].mean())
                    low, high = _interval(right_M[held_M], text_M[held_M])
                    found |= {"low": low, "high": high}
            found["selectivity"] = found["accuracy"] - found["control"]
            layers.append(found)
            subject.progress("layers probed", layer + 1, len(states_LMD))
        return layers

    @staticmethod
    def _parts(subject: Subject, data: ProbedTexts, record: dict[str, Any]) -> list[Any]:
        rows = [
            [
                "input" if not one["layer"] else str(one["layer"]),
                f"{one['accuracy']:.1%}",
                f"{one['low']:.1%} to {one['high']:.1%}",
                f"{one['control']:.1%}",
                f"{one['selectivity']:+.1%}",
            ]
            for one in record["layers"]
        ]
        headings = ["accuracy", "95 %", "control", "selectivity"]
        return [
            ReportTable(f"{subject.name}: probes of {data.source}, by layer", headings, rows),
            f"{len(record['labels'])} labels, learned from {record['trained_on']:,} "
            f"{data.unit} and measured on {record['measured_on']:,} others; the commonest label "
            f"has {record['majority']:.1%}",
            "control: the same probe where each word type has a random label; what a probe can do "
            "there it has learned by heart (Hewitt and Liang 2019)",
        ]


def _interval(right_M: NDArray[np.bool_], text_M: NDArray[np.int64]) -> tuple[float, float]:
    """95 % of the accuracies over texts that are drawn again."""
    _, number_M = np.unique(text_M, return_inverse=True)
    count_N = np.bincount(number_M)
    right_N = np.bincount(number_M, weights=right_M)
    drawn_RN = np.random.default_rng(0).integers(len(count_N), size=(PROBE_RESAMPLES, len(count_N)))
    values_R = right_N[drawn_RN].sum(1) / count_N[drawn_RN].sum(1)
    low, high = np.quantile(values_R, [0.025, 0.975])
    return float(low), float(high)
