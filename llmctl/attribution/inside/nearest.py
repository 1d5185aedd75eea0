"""The documents that a network finds most like a text: the nearest of its training text, say.

An embedder's vectors are its own. Of any other network a text's vector is the mean of its last
layer's states; from these the mean over all documents is taken first, as most of such a state is
the same whatever the text (Ethayarajh 2019; Mu and Viswanath 2018).

N passages, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.passages import DocumentPart, own_places
from llmctl.attribution.inside.states import states_of

NEAREST = 10
SHOWN_NEAREST_CHARACTERS = 160
"""Characters of a passage that a line shows; the record has all."""


@dataclass(frozen=True)
class SearchedDocuments:
    """A text, and the documents among which its nearest are looked for."""

    text: str
    query: DocumentPart
    source: str
    passages: Sequence[DocumentPart]
    embed: Callable[[Sequence[NDArray[np.int64]]], NDArray[np.float32]] | None = None
    """What makes vectors (N, D) of ids, of an embedder; None: the mean of the last states."""


def mean_states(subject: Subject, passages: Sequence[DocumentPart]) -> NDArray[np.float32]:
    """The means (N, D) of the last layer's states over the texts' own tokens."""
    is_decoder = subject.body.kind == "decoder"
    rows: list[NDArray[np.float32] | None] = [None] * len(passages)

    def told(done: int, total: int) -> None:
        subject.progress("passages read", done, total)

    for members, _, output_BTD in states_of(subject.body, [one.ids for one in passages], told):
        for row, number in enumerate(members):
            own = own_places(passages[number], is_decoder=is_decoder)
            rows[number] = output_BTD[row, own].mean(0).cpu().numpy()
    found: NDArray[np.float32] = np.stack([row for row in rows if row is not None])
    return found


class Nearest(Way):
    """The documents nearest to a text."""

    name = "nearest"
    described = "the training documents nearest to a text, by embedding"
    takes, of_answer = "documents", False

    def look(self, subject: Subject) -> Insight:
        """The record has the passages as they are, the nearest first."""
        data: SearchedDocuments = subject.data
        both = [data.query, *data.passages]
        if data.embed is not None:
            vectors_ND = data.embed([one.ids for one in both])
        else:
            vectors_ND = mean_states(subject, both)
            vectors_ND = vectors_ND - vectors_ND[1:].mean(0)
        lengths_N = np.linalg.norm(vectors_ND, axis=1)
        cosines_N = vectors_ND[1:] @ vectors_ND[0]
        cosines_N = cosines_N / np.maximum(lengths_N[1:] * lengths_N[0], 1e-12)
        hits = []
        for number in np.argsort(-cosines_N, kind="stable")[:NEAREST].tolist():
            passage = data.passages[number]
            text = subject.tokenizer.decode(passage.ids[passage.own].tolist())
            hits.append({"where": passage.name, "cosine": float(cosines_N[number]), "text": text})
        mean = float(cosines_N.mean())
        lines = []
        for one in hits:
            shown = " ".join(str(one["text"]).split())
            if len(shown) > SHOWN_NEAREST_CHARACTERS:
                shown = f"{shown[: SHOWN_NEAREST_CHARACTERS - 1]}…"
            lines.append(f"{one['cosine']:+.3f}  {one['where']}: {shown}")
        record = {
            "text": data.text,
            "data": data.source,
            "passages": len(data.passages),
            "mean_cosine": mean,
            "nearest": hits,
        }
        title = f"{subject.name}: nearest of {len(data.passages):,} passages of {data.source}"
        about = f"cosine of the texts' vectors; over all passages it is {mean:.3f} on average"
        return Insight(record, [title, *lines, about])
