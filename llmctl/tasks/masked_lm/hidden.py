"""Rows of text of which tokens are hidden, and how well masked language models tell them: the loss
of their pretraining without its sentence pairs, on the same tokens for each.

N rows, T tokens, M hidden tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.compression.texts import windows_of_file, windows_of_shards
from llmctl.data.text.documents import Corpus
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError
from llmctl.evaluation.perplexity import bits_per_byte_interval
from llmctl.evaluation.report import MODEL, Figure, Gap, Report
from llmctl.formats.base import Pretrained
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import Evaluator, shards_of
from llmctl.tasks.masked_lm.batches import apply_mask, masking_vocab, select_masked
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.training.precision import choose_device

Hidden = tuple[Tensor, Tensor, Tensor]
"""Tokens (1, T) of which some are hidden, their places (M,), and what they were (M,)."""
HIDDEN_ROW_LENGTH, MOST_HIDDEN_TEXT = 128, 10_000
"""Tokens of a row that is measured, and of all of them where nothing is said."""


def hidden_rows(
    folder: Pretrained, windows_NT: Tensor, config: MaskedLMConfig, seed: int
) -> list[Hidden]:
    """Windows with tokens hidden as in masked pretraining; those of which none is are left out.

    Raises InputError where that is all of them.
    """
    vocabulary, ids_NT = masking_vocab(folder.tokenizer), windows_NT.numpy()
    special_NT = vocabulary.is_special[ids_NT]
    positions_NT = np.broadcast_to(np.arange(ids_NT.shape[1]), ids_NT.shape)
    numbers_NT = np.broadcast_to(np.arange(len(ids_NT))[:, None], ids_NT.shape)
    streams = positions_NT, numbers_NT, config, vocabulary, seed
    chosen_NT = select_masked(ids_NT, special_NT, *streams)
    given_NT = apply_mask(ids_NT, chosen_NT, *streams)
    rows = [
        (torch.from_numpy(given_NT[row])[None], torch.from_numpy(places), windows_NT[row, places])
        for row in range(len(ids_NT))
        if len(places := np.flatnonzero(chosen_NT[row]))
    ]
    if not rows:
        raise InputError("none of the text's tokens was hidden; take longer rows, --window")
    return rows


def hidden_token_loss(model: MaskedLM, row: Hidden) -> Tensor:
    """The cross-entropy of a row's hidden tokens in nats, their mean."""
    ids_1T, places_M, labels_M = row
    hidden_MD = model.body(ids_1T)[0].index_select(0, places_M)
    return F.cross_entropy(model.token_logits(hidden_MD), labels_M)


class HiddenTokensEvaluator(Evaluator):
    """Hidden tokens of held-out text under several masked language models."""

    kinds = ("masked_lm",)
    reports = ("hidden_tokens",)

    def choose(self) -> None:
        """A file of text, or the validation part of the run's shards."""
        if self.files.data is not None:
            self.data = data_record(self.path)
        elif self.model.run is not None:
            self.shards = shards_of(self.workspace, self.model.run.manifest)

    def run(self, reporter: Reporter) -> Report:
        """Measure all on the same hidden tokens, chosen by the seed as published."""
        rows = hidden_rows(self.model.folder, self._windows(reporter), MaskedLMConfig(),
                           self.config.seed)  # fmt: skip
        tokens_N = np.asarray([len(labels) for *_, labels in rows])
        nll = {
            name: np.asarray(self._row_losses(model.folder, rows)) * tokens_N
            for name, model in self.models.items()
        }
        differences = {}
        for name, other_N in nll.items():
            if name != MODEL:
                gap_N = nll[MODEL] - other_N
                low, high = self._interval(gap_N, tokens_N) or (None, None)
                value = float(gap_N.sum() / tokens_N.sum())
                differences[name] = {"difference": value, "low": low, "high": high}
        results = {
            name: {
                "mlm_loss": float(nll_N.sum() / tokens_N.sum()),
                "interval": self._interval(nll_N, tokens_N),
            }
            for name, nll_N in nll.items()
        }
        data = str(self.path) if self.shards is None else self.shards.manifest.reference
        return Report(
            task="hidden_tokens",
            data=data,
            facts={"hidden_tokens": int(tokens_N.sum())},
            results=results,
            differences=differences,
            summary={"mlm_loss": results[MODEL]["mlm_loss"]},
        )

    def _interval(self, nll_N: Any, tokens_N: Any) -> tuple[float, float] | None:
        """The 95 % interval of nats for each token, by the bootstrap over rows."""
        ends = bits_per_byte_interval(
            nll_N, tokens_N, resamples=self.config.resamples, seed=self.config.seed
        )
        return None if ends is None else (ends[0] * math.log(2), ends[1] * math.log(2))

    def _windows(self, reporter: Reporter) -> Tensor:
        folder = self.model.folder
        length = min(HIDDEN_ROW_LENGTH, folder.max_length)
        count = max(1, (self.config.max_tokens or MOST_HIDDEN_TEXT) // length)
        if self.shards is not None:
            return windows_of_shards(
                self.shards.folder, folder.tokenizer, count, length, split="validation"
            )
        corpus = Corpus([str(self.path)], text_column=self.config.text_column)
        for note in corpus.notes:
            reporter.note(note)
        return windows_of_file(corpus, folder.tokenizer, count, length)

    @torch.inference_mode()
    def _row_losses(self, folder: Pretrained, rows: list[Hidden]) -> list[float]:
        device = choose_device(self.config.device)
        model = folder.masked_lm().to(device).eval()
        on_device = ([part.to(device) for part in row] for row in rows)
        return [float(hidden_token_loss(model, (a, b, c))) for a, b, c in on_device]

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows and the differences."""
        title = f"{report.facts['hidden_tokens']:,} hidden tokens of {report.data}"
        loss = Figure("nats for each (95 %)", "mlm_loss", ".4f", interval="interval", ends=".4f")
        yield report.table(title, (loss,))
        yield from report.gaps(Gap("loss", "+.4f"))
