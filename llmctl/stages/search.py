"""Search: the texts of a file of vectors that are nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.inference.vectors import nearest, open_vectors
from llmctl.tasks.embed.texts import TextEmbedder, single
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace


@dataclass(frozen=True)
class SearchResult:
    """What is nearest to a query."""

    query: str
    hits: list[dict[str, Any]]
    """``row`` (from 0), ``score`` (the cosine) and ``text``, where the file has texts."""

    def record(self) -> dict[str, Any]:
        """The result in JSON values."""
        return {"query": self.query, "hits": self.hits}


def search(
    workspace: Workspace,
    index: Path,
    queries: Sequence[str],
    *,
    start: str | None = None,
    top: int = 5,
    device: str = "auto",
) -> list[SearchResult]:
    """The nearest texts of each query.

    start: the model; None: that which the file says it was made with. Raises InputError where the
    vectors are of another model.
    """
    file = open_vectors(index)
    made = file.made
    name = start or made.model.removeprefix("run/")
    try:
        model = OpenedModel.open(workspace, name)
    except InputError as error:
        if start is not None:
            raise
        raise InputError(
            f"{index} was made with {name}, which can't be opened ({error}); give the model with "
            "--from"
        ) from None
    if model.folder.digest() != made.digest:
        raise InputError(
            f"{index} was made by another model than {name} (their digests differ), and vectors of "
            f"different models can't be compared; embed the texts again: llmctl embed "
            f"--from {name} --data {made.data} --out {index}"
        )
    width = None if made.width == model.folder.config.hidden_size else made.width
    embedder = TextEmbedder(model, width=width, device=device)
    found = nearest(file, embedder.vectors(single(queries)), top)
    texts = file.texts([hit.row for hits in found for hit in hits])
    taken = iter(texts or [])
    return [
        SearchResult(
            query,
            [
                {
                    "row": hit.row,
                    "score": round(hit.score, 6),
                    **({"text": next(taken)} if texts is not None else {}),
                }
                for hit in hits
            ],
        )
        for query, hits in zip(queries, found, strict=True)
    ]
