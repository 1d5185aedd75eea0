"""Texts to vectors with a model that is opened: what embedding, searching and measuring share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.errors import LOGITS_NOT_FINITE, ConfigError, InputError
from llmctl.formats.base import Pretrained
from llmctl.inference.embedding import embed_ids, narrowed
from llmctl.models.heads.embed import POOLING, Embedder, Pooling
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace

TEXTS_AT_A_TIME = 4096
"""Texts that are sorted by length together, and written together."""


class TextEmbedder:
    """A model that is ready to make vectors of texts."""

    def __init__(
        self,
        model: OpenedModel,
        *,
        network: Embedder | None = None,
        width: int | None = None,
        device: str = "auto",
    ) -> None:
        """network: another than the model's own. width: how many of the first coordinates are
        kept; None: all.

        Raises InputError for a model that makes no vectors, ConfigError for a width that they don't
        have.
        """
        self.model, self.folder = model, model.folder
        full = int(self.folder.config.hidden_size)
        network = network or self.folder.embedder()
        self._network = network.to(choose_device(device, "--device"))
        if width is not None and not 1 <= width <= full:
            raise ConfigError(
                f"--width {width}: the model's vectors are {full} wide; give 1 to {full}"
            )
        self._narrowed = width
        self.width = width or full
        self._pad = pad_token(self.folder.tokenizer)
        self.cut = 0
        """Texts so far that were longer than what is read of them."""

    def vectors(self, texts: Sequence[Example]) -> NDArray[np.float32]:
        """Vectors (N, D) in fp32. Raises InputError for an empty text, naming its place."""
        for text in texts:
            if not text.text:
                raise InputError(
                    f"{text.source} is empty, and an empty text has no vector; remove it, or write "
                    "something there"
                )
        encoded = encode_examples(self.folder.tokenizer, texts, self.folder.max_length)
        self.cut += sum(text.cut for text in encoded)
        found = embed_ids(self._network, [text.ids for text in encoded], self._pad)
        if not np.isfinite(found).all():
            raise InputError(LOGITS_NOT_FINITE)
        return narrowed(found, self._narrowed)

    def blocks(
        self, texts: Iterable[Example]
    ) -> Iterator[tuple[list[Example], NDArray[np.float32]]]:
        """Some texts with their vectors at a time."""
        stream = iter(texts)
        while block := list(islice(stream, TEXTS_AT_A_TIME)):
            yield block, self.vectors(block)


def pooling_for(base: Pretrained, asked: Pooling | Literal["auto"]) -> Pooling:
    """How a text's vector is made: as asked for, as the model has it, or the mean."""
    if asked != "auto":
        return asked
    given = base.fields.get(POOLING) if base.purpose.kind == "embed" else None
    pooling: Pooling = given or "mean"
    return pooling


def new_embedder(
    base: Pretrained,
    pooling: Pooling,
    *,
    dropout: float = 0.0,
    scratch: bool = False,
    projection: bool = False,
) -> Embedder:
    """A model's backbone, or from ``scratch`` a random one, with a pooling: see ``Embedder``.

    Raises InputError where the backbone takes no texts end to end in a row, ConfigError for a
    pooling by which all texts of a decoder would have one vector.
    """
    if base.spec.kind == "encoder-decoder":
        raise InputError(
            f"{base.path} has an encoder and a decoder, and vectors are made by one network; take "
            "a BERT, or a decoder"
        )
    if base.spec.kind == "decoder" and pooling == "cls":
        raise ConfigError(
            f"pooling cls: the first token of a {base.spec.name} has seen no other, so every text "
            "would have the same vector; take mean or last"
        )
    body = base.backbone(dropout=dropout, scratch=scratch)
    return Embedder(body, pooling, projection=projection)


def open_embedder(
    workspace: Workspace, start: str, *, width: int | None = None, device: str = "auto"
) -> TextEmbedder:
    """A model that makes vectors. Raises InputError if there is none."""
    return TextEmbedder(OpenedModel.open(workspace, start), width=width, device=device)


def single(texts: Sequence[str]) -> list[Example]:
    """Texts of the command line."""
    return [Example(text, None, None, f"text {n}") for n, text in enumerate(texts, 1)]
