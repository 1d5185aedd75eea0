"""Masked pretraining: shards as packed rows with hidden tokens."""

from __future__ import annotations

from llmctl.data.packing import PackedBatches
from llmctl.data.shards.chunks import Chunks
from llmctl.models.spec import Backbone
from llmctl.objectives.masked_lm import MaskedBatch, MaskedLM, MaskedLMConfig, Vocabulary, collate
from llmctl.objectives.pretraining import DataConfig, Pretraining
from llmctl.tokenizers import Tokenizer


class MaskedBatches:
    """The batches of a split: masked, paired, packed."""

    def __init__(
        self,
        packed: PackedBatches,
        vocabulary: Vocabulary,
        objective: MaskedLMConfig,
        sequence_length: int,
        seed: int,
    ) -> None:
        self.packed, self._vocabulary, self._objective = packed, vocabulary, objective
        self._length, self._seed = sequence_length, seed

    @property
    def per_epoch(self) -> int:
        return self.packed.batches_per_epoch if self.packed.chunks.count else 0

    def __call__(self, number: int) -> MaskedBatch:
        refs, rows = self.packed.batch(number)
        return collate(
            self.packed.chunks,
            refs,
            rows,
            config=self._objective,
            vocabulary=self._vocabulary,
            sequence_length=self._length,
            seed=self._seed,
        )


class MaskedPretraining(Pretraining[MaskedLMConfig, DataConfig]):
    """Masked language modelling, with pairs or without, over shards."""

    config = MaskedLMConfig
    data_config = DataConfig
    # 44 thousand tokens a second with them, 43 to 50 without, and half a minute to make them
    # (2 layers × 128, two cores): its blocks are few large operations as they are.
    compile_on_cpu = False
    roles = ("cls", "sep", "mask", "pad")
    described = "which BERT needs; learn one with `llmctl tokenize --tokenizer wordpiece`"

    @staticmethod
    def peak_rate(width: int) -> float:
        """2e-3 for a body up to 128 wide, then in inverse proportion to the width (Yang et al.
        2022, μP): a step changes each layer's output as much."""
        return 2e-3 * 128 / max(width, 128)

    def batches(self, split: str, *, seed: int) -> MaskedBatches:
        length = self.data.sequence_length
        overhead = 3 if self.objective.next_sentence else 2
        training = split == "train"
        chunks = Chunks(self.reader(split), length - overhead, seed=seed, shuffle=training)
        packed = PackedBatches(
            chunks,
            sequence_length=length,
            batch_size=self.batch_size,
            overhead=overhead,
            seed=seed,
            repeat=training,
        )
        return MaskedBatches(packed, self.vocabulary, self.objective, length, seed)

    def model(self, body: Backbone) -> MaskedLM:
        return MaskedLM(body, next_sentence=self.objective.next_sentence)

    @property
    def vocabulary(self) -> Vocabulary:
        """What masking needs to know of the tokenizer."""
        return vocabulary_of(self.tokenizer)

    def head_weights(self) -> float:
        width = self.model_config.hidden_size
        return self.objective.mask_rate * (width * self.model_config.vocab_size + width**2)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What masking needs of a tokenizer with BERT's special tokens."""
    return Vocabulary(
        cls=tokenizer.special["cls"],
        sep=tokenizer.special["sep"],
        mask=tokenizer.special["mask"],
        pad=tokenizer.special["pad"],
        ordinary=tokenizer.ordinary,
        continuation=tokenizer.continuation,
    )
