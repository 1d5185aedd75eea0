"""Why a text is written from a source: the log-probability of its tokens.

R rows, S tokens of a source, T of a target, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.inference.decoder import SourceDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig, generate
from llmctl.tasks.explanation import Explainer, rather


class TargetExplainer(Explainer):
    """A model that writes from sources, of which one target is explained by the source's words."""

    def build(self) -> Any:
        if self.folder.writes_from_source == "prefix":
            raise InputError(
                f"{self.model.name} reads source and target as one text; explain its next word "
                "instead, from a folder without what it was finetuned to, or give a model with an "
                "encoder"
            )
        return self.folder.seq2seq()

    def explained(self, example: Example) -> ExplainedText:
        """The likeliest target, token by token, unless another is asked for."""
        folder = self.folder
        pieces, begins = self.tokenizer.encode_offsets(example.text)
        if folder.frame.source_cut(len(pieces), folder.max_source):
            raise InputError(
                f"{example.source} is longer than the {folder.max_source} tokens that "
                f"{self.model.name} reads; shorten it"
            )
        ids = folder.frame.source(pieces.tolist(), folder.max_source)
        shift = len(folder.frame.before)
        first_T = self._written(ids) if self.asked.answer is None else self._ids(self.asked.answer)
        other_T = None if self.asked.against is None else self._ids(self.asked.against)

        def score(ids_RS: Tensor) -> Tensor:
            R, S = ids_RS.shape
            lengths_R = torch.full((R,), S, device=ids_RS.device)
            source = self.network.read(ids_RS, lengths_R)  # type: ignore[operator]
            first_R = self._log_prob(source, first_T)
            return first_R if other_T is None else first_R - self._log_prob(source, other_T)

        said = [self.tokenizer.decode(target) for target in (first_T, other_T) if target]
        return self.text(
            example,
            ids,
            range(shift, shift + len(pieces)),
            begins.tolist(),
            score,
            answer=rather(f"“{said[0]}”", f"“{said[1]}”" if other_T else None),
            read_at=(),
        )

    def _ids(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text), *self.folder.frame.end]

    def _written(self, source: list[int]) -> list[int]:
        decoder = SourceDecoder(
            self.network,  # type: ignore[arg-type]
            start=self.folder.frame.start,
            longest=self.folder.max_length,
            tokenizer=self.tokenizer,
        )
        rules = CompiledSamplingParams(GenerationConfig(), self.tokenizer)
        (completions,) = generate(decoder, [source], rules, batch_size=1)
        return list(completions[0].ids)

    def _log_prob(self, source: Any, target: list[int]) -> Tensor:
        """The log-probability (R,) of a target after each source."""
        network: Any = self.network
        start = list(self.folder.frame.start)
        inputs_1T = torch.tensor([[*start, *target[:-1]]], device=self.device)
        rows = len(source.states_GSD)
        hidden_RTD = network.write(inputs_1T.expand(rows, -1), source)
        logits_RTV = network.writer.logits(hidden_RTD[:, len(start) - 1 :])
        target_RT = torch.tensor([target], device=self.device).expand(rows, -1)
        losses_RT = F.cross_entropy(logits_RTV.transpose(1, 2), target_RT, reduction="none")
        return -losses_RT.sum(1)
