"""Every place where llmctl reads what somebody else may have written."""

from __future__ import annotations

from tests.robustness import data_readers, model_readers, workspace_readers
from tests.robustness.children import Reader

READERS: list[Reader] = [*data_readers.READERS, *model_readers.READERS, *workspace_readers.READERS]
