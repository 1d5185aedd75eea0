"""Pretraining by replaced-token detection: shards as packed rows whose hidden tokens a small
generator replaces (Clark et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.data.packing import PackedBatches
from llmctl.data.shards.chunks import Chunks
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.filling import fill
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.flops import flops_per_token
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator, ReplacedTokensHead
from llmctl.models.spec import HEAD_SIZE, Backbone, ModelSpec
from llmctl.tasks.electra.batches import ReplacedBatch, ReplacedBatches
from llmctl.tasks.electra.config import ElectraObjective
from llmctl.tasks.electra.learned import describe_detection
from llmctl.tasks.electra.loss import electra_loss
from llmctl.tasks.masked_lm.batches import masking_vocab
from llmctl.tasks.masked_lm.task import MaskedPretraining
from llmctl.tasks.pretraining import DataConfig, Pretraining
from llmctl.training.batches import LossParts
from llmctl.training.progress import Progress

GENERATOR = "generator"
"""The folder of the generator in that of the discriminator."""
NARROW_STEP = 8
"""Widths below that of one head are multiples of this."""


class ElectraPretraining(Pretraining[ElectraObjective, DataConfig]):
    """Replaced-token detection over shards; the discriminator is the model."""

    objective_config = ElectraObjective
    data_config = DataConfig
    embeddings = MaskedPretraining.embeddings
    compile_on_cpu = False
    roles = MaskedPretraining.roles
    described = MaskedPretraining.described
    peak_rate = staticmethod(MaskedPretraining.peak_rate)

    def batches(self, split: str, *, seed: int) -> ReplacedBatches:
        length, training = self.config.data.sequence_length, split == "train"
        packed = PackedBatches(
            Chunks(self.reader(split), length - 2, seed=seed, shuffle=training),
            sequence_length=length,
            batch_size=self.config.training.batch_size,
            overhead=2,
            seed=seed,
            repeat=training,
        )
        vocabulary = masking_vocab(self.tokenizer)
        return ReplacedBatches(packed, vocabulary, self.config.objective, length, seed)

    @property
    def detector_spec(self) -> ModelSpec:
        """The architecture of both networks."""
        detector = self.architecture.detector
        assert detector is not None  # else it would not be one of its tasks
        return ARCHITECTURES[detector]

    @property
    def detector_config(self) -> Any:
        """The discriminator's shape."""
        return self.detector_spec.config(**self.config.model.model_dump())

    @property
    def generator_config(self) -> Any:
        """The generator's shape: narrower by ``objective.generator_width``, over embeddings as wide
        as the discriminator's."""
        whole, objective = self.detector_config, self.config.objective
        width = generator_width(whole.hidden_size, objective.generator_width)
        return whole.replace(
            hidden_size=width,
            num_heads=max(1, width // HEAD_SIZE),
            intermediate_size=max(1, whole.intermediate_size * width // whole.hidden_size),
            num_layers=objective.generator_layers or whole.num_layers,
            embedding_size=whole.embedding_width,
            tie_embeddings=True,
        )

    def body(self) -> Backbone:
        return self.detector_spec.build(self.detector_config)

    def model(self, body: Backbone) -> DetectorWithGenerator:
        generator = self.detector_spec.build(self.generator_config)
        return DetectorWithGenerator(body, MaskedLM(generator, next_sentence=False))

    def pretrained(self, base: Pretrained) -> DetectorWithGenerator:
        """The network with the weights of a model: of its encoder, of its head where it is a
        discriminator, and of the generator where there is one beside it."""
        model = self.model(self.body())
        own = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.startswith("body.")
            or (base.kind == ReplacedTokensHead.kind and not name.startswith("generator."))
        }
        fill(own, base.tensors)
        if (base.path / GENERATOR).is_dir():
            generator = open_folder(base.path / GENERATOR)
            if generator.config != self.generator_config:
                raise InputError(
                    f"{generator.path} is a generator of another shape than objective."
                    "generator_width and generator_layers ask for; leave them out, or take it away "
                    "to begin with a fresh one"
                )
            fill(model.generator.state_dict(), generator.tensors)
        return model

    @classmethod
    def objective_of(cls, base: Pretrained) -> dict[str, Any]:
        if not (base.path / GENERATOR).is_dir():
            return {}
        generator = open_folder(base.path / GENERATOR).config
        return {
            "generator_width": generator.hidden_size / base.config.hidden_size,
            "generator_layers": generator.num_layers,
        }

    def loss(self, model: DetectorWithGenerator, batch: ReplacedBatch) -> LossParts:
        return electra_loss(model, batch, self.config.objective.detection_weight)

    def head_weights(self) -> float:
        width = self.config.model.hidden_size
        return float(width**2 + width)

    def flops_per_token(self) -> float:
        length, rate = self.config.data.sequence_length, self.config.objective.mask_rate
        config = self.generator_config
        narrow, wide = config.hidden_size, config.embedding_width
        # Logits are made once more to draw from, which is a third of a step's.
        generator_head = rate * wide * (narrow + config.vocab_size * 4 / 3)
        with torch.device("meta"):
            discriminator = self.body()
            generator = self.detector_spec.build(config)
        return flops_per_token(discriminator, length, self.head_weights()) + flops_per_token(
            generator, length, generator_head + wide * narrow
        )

    def export(self, model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        assert isinstance(model, DetectorWithGenerator)
        self.write(folder, model)
        count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
        return {
            "parameters": count(model.alone()),
            "generator_parameters": count(model.generator),
        }

    def write(self, folder: Path, model: nn.Module) -> None:
        """The discriminator; and in a folder of its own the generator, by which it is measured and
        goes on learning."""
        assert isinstance(model, DetectorWithGenerator)
        super().write(folder, model.alone())
        extra = {MAX_LENGTH: self.config.data.sequence_length}
        write_model_folder(folder / GENERATOR, model.generator, self.exported_tokenizer, extra)

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return describe_detection(summary)


def generator_width(width: int, share: float) -> int:
    """A share of a width, rounded to whole heads, or to a multiple of ``NARROW_STEP`` below one.

    >>> generator_width(512, 0.25), generator_width(128, 0.25), generator_width(32, 0.25)
    (128, 32, 8)
    """
    wanted = width * share
    step = HEAD_SIZE if wanted >= HEAD_SIZE else NARROW_STEP
    return max(NARROW_STEP, round(wanted / step) * step)


def open_with_generator(folder: Pretrained) -> DetectorWithGenerator:
    """A discriminator and the generator beside it. Raises InputError where there is none."""
    path = folder.path / GENERATOR
    if not (path / "config.json").is_file():
        raise InputError(
            f"{folder.path} has no folder {GENERATOR}: the discriminator is there without the "
            "generator whose replacements it learned to tell; give a run of llmctl pretrain"
        )
    detector = folder.with_head(ReplacedTokensHead.kind)
    model = DetectorWithGenerator(detector.body, open_folder(path).masked_lm())
    model.transform, model.output = detector.transform, detector.output
    return model
