"""What the table of heads knows of each: what models with it do, and how they are built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from llmctl.models.spec import Backbone, ModelSpec


class Head(ABC):
    """What stands on a backbone, in the table ``HEADS``."""

    kind: ClassVar[str]
    """What its models do: the task's name, which ``llmctl_task`` says."""
    described: ClassVar[str]
    """That in words, with an article."""
    network: ClassVar[type[nn.Module]]
    """The network of backbone and head."""
    has_labels: ClassVar[bool] = False
    """Whether its last layer has a row for each of some labels, which the description names."""
    endings: ClassVar[tuple[str, ...]]
    """What the names of the classes in transformers end with that have such a head."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Tensors that a folder may lack, and that are then as in a fresh network."""
    has_tensors: ClassVar[bool] = True
    """Whether it has weights, which each architecture has names for; one without suits all."""

    @abstractmethod
    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network that tensors fit into, which are in our names; nothing is filled in yet.

        Raises InputError if the head has no tensors there.
        """

    def build_described(
        self, body: Backbone, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
    ) -> nn.Module:
        """The network by the fields of a model's description, too, where tensors don't tell all."""
        return self.build(body, tensors)

    def ending(self, model: Any, spec: ModelSpec) -> str:
        """What the name of a model's class in transformers ends with."""
        return self.endings[0]
