"""A classifier as it is used: of a folder in 8 bits, on a processor, in int8."""

from __future__ import annotations

import torch

from llmctl.formats.base import Pretrained
from llmctl.inference.weights import prepare_reader
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.setfit import PooledClassifier

READING_ROWS = 256
"""Tokens of a batch, about: what a packed product is made for."""


def ready_classifier(
    folder: Pretrained, device: torch.device | str
) -> Classifier | PooledClassifier:
    """The classifier of a folder, on a device. Where the folder has its matrices in 8 bits, a
    processor multiplies them as they are, with inputs rounded row by row."""
    classifier = folder.classifier().to(device)
    read = next(iter(folder.quantised.values()), None)
    if read is not None and torch.device(device).type == "cpu" and read().bits == 8:
        prepare_reader(classifier.body, "int8", rows=READING_ROWS)
    return classifier
