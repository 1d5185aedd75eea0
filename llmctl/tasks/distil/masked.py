"""A student of a masked language model, asked for hidden tokens (DistilBERT, Sanh et al. 2019).

B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.random import key_of
from llmctl.data.tables.encoded import EncodedExample
from llmctl.errors import InputError
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tasks.distil.batches import TokenBatch, padded
from llmctl.tasks.distil.config import DistilConfig
from llmctl.tasks.distil.language import SHORTEST_ROW, LanguageDistilTask
from llmctl.tasks.masked_lm.batches import apply_mask, masking_vocab, select_masked
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.training.batches import LossParts, TensorBatch


class MaskedDistilTask(LanguageDistilTask):
    """Text as rows with hidden tokens, and a masked language model to train on them."""

    fields_of_others: ClassVar[tuple[str, ...]] = ("on_policy", "vectors")
    backbones: ClassVar[tuple[str, ...]] = ("encoder",)

    @classmethod
    def kinds(cls, config: DistilConfig) -> tuple[str, ...]:
        return ("masked_lm",)

    def _rows(self, documents: Sequence[NDArray[np.int64]]) -> list[EncodedExample]:
        special = self.base.tokenizer.special
        if missing := [role for role in ("cls", "sep", "mask", "pad") if role not in special]:
            raise InputError(
                f"the tokenizer has no token for {', '.join(missing)}, which a masked language "
                "model needs; take another teacher"
            )
        self._vocabulary = masking_vocab(self.base.tokenizer)
        room = self._length - 2
        rows: list[EncodedExample] = []
        for ids in documents:
            for begin in range(0, len(ids), room):
                piece = ids[begin : begin + room]
                if len(piece) >= SHORTEST_ROW:
                    whole = np.concatenate([[special["cls"]], piece, [special["sep"]]])
                    rows.append(EncodedExample(whole, len(whole), len(rows)))
        return rows

    def _student(self) -> MaskedLM:
        if self.scratch:
            body = self.base.spec.build(self.base.config_with(self.config.dropout))
            return MaskedLM(body, next_sentence=False)
        model: MaskedLM = self.base.with_head("masked_lm", dropout=self.config.dropout)
        # It isn't learned here, and what the student knew of it no longer holds.
        model.pooler = model.next_sentence = None
        return model

    def _collated(self, examples: Sequence[EncodedExample], number: int | None) -> TensorBatch:
        fields = padded(examples, self._pad, self._longest)
        ids_BT = fields["input_ids_BT"].numpy()
        seed: int | str = "held out" if number is None else self.config.seed
        epoch = 0 if number is None else number // self.batches_per_epoch
        key = key_of(seed, "masks", epoch)
        stream_BT = np.broadcast_to(fields["labels_B"].numpy()[:, None], ids_BT.shape)
        place_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape)
        masking = MaskedLMConfig(mask_rate=self.config.objective.mask_rate, next_sentence=False)
        special_BT = self._vocabulary.is_special[ids_BT] | ~fields["mask_BT"].numpy()
        chosen_BT = select_masked(
            ids_BT, special_BT, place_BT, stream_BT, masking, self._vocabulary, key
        )
        hidden_BT = apply_mask(
            ids_BT, chosen_BT, place_BT, stream_BT, masking, self._vocabulary, key
        )
        targets_BT = torch.from_numpy(np.where(chosen_BT, ids_BT, IGNORED))
        counts = self._counts(int(chosen_BT.sum()), len(examples), "mlm")
        fields |= {"input_ids_BT": torch.from_numpy(hidden_BT)}
        return TokenBatch(
            **fields, counts=counts, targets_BT=targets_BT, place_B=torch.arange(len(examples))
        )

    def loss(self, model: MaskedLM, batch: TokenBatch) -> LossParts:
        teacher: Any = self.teacher_network(batch.input_ids_BT.device)
        found = self._compared(model, batch, model.token_logits, teacher.token_logits)
        return self._parts(*found, "mlm")
