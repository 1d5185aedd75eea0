"""Predict with a language model that fills masks too: what the masks of a text may stand for."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.masked_lm.predict import MaskPredictor


class NextMaskPredictor(MaskPredictor):
    """Such a model, reading both ways, that is ready to fill masks."""

    kinds = ("gpt_bert",)

    def network(self) -> Any:
        return self.folder.causal_lm()
