"""Why two texts are alike: the cosine of their vectors.

R rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.encoded import encode_examples
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.tasks.explanation import Explainer


class SimilarityExplainer(Explainer):
    """An embedder whose likeness of two texts is explained, by the words of the first."""

    takes, pairs = (), True

    def build(self) -> Any:
        return self.folder.embedder()

    def explained(self, example: Example) -> ExplainedText:
        """Raises InputError where there is no second text."""
        if not example.text_pair:
            raise InputError(
                f"{example.source} has no second text, and a likeness is of two; give it with "
                "--text-pair, or name its column with --text-pair-column"
            )
        both = [Example(text, None, None, example.source) for text in
                (example.text, example.text_pair)]  # fmt: skip
        first, second = encode_examples(self.tokenizer, both, self.folder.max_length)
        if first.cut:
            raise InputError(
                f"{example.source} is longer than the {self.folder.max_length} tokens that "
                f"{self.model.name} reads; shorten it"
            )
        with torch.no_grad():
            other_1D = self._vectors(torch.from_numpy(second.ids).to(self.device)[None])

        def score(ids_RT: Tensor) -> Tensor:
            return F.cosine_similarity(self._vectors(ids_RT), other_1D)

        pieces, begins = self.tokenizer.encode_offsets(example.text)
        before, T = self.tokenizer.layout.before, len(first.ids)
        value = float(score(torch.from_numpy(first.ids).to(self.device)[None]).detach())
        shown = example.text_pair if len(example.text_pair) < 60 else example.text_pair[:59] + "…"
        pooling = self.network.pooling
        return self.text(
            example,
            first.ids.tolist(),
            range(len(before), len(before) + len(pieces)),
            begins.tolist(),
            score,
            answer=f"likeness {value:.3f} to “{shown}”",
            read_at={"cls": (0,), "last": (T - 1,)}.get(str(pooling), range(T)),
            facts={"cosine": value, "text_pair": example.text_pair},
        )

    def _vectors(self, ids_RT: Tensor) -> Tensor:
        R, T = ids_RT.shape
        positions_RT = torch.arange(T, device=ids_RT.device).expand(R, -1)
        lengths_R = torch.full((R,), T, device=ids_RT.device)
        vectors: Tensor = self.network(ids_RT, positions_RT, None, lengths_R)
        return vectors
