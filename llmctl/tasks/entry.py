"""What the table of tasks knows of each: what it is called, and where its parts are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from llmctl.tasks.evaluation import Evaluator
    from llmctl.tasks.explanation import Explainer
    from llmctl.tasks.generation import TextGenerator
    from llmctl.tasks.prediction import Predictor


class TaskEntry(ABC):
    """A task in the table ``TASKS``. Its parts are loaded when they are called for, so that a list
    of names loads no PyTorch.

    A model whose ``llmctl_task`` is the task's name answers, writes and is measured by what the
    entry names.
    """

    name: ClassVar[str]
    """What ``--task`` takes, and a model's ``llmctl_task`` says."""
    makes: ClassVar[str] = ""
    """What its models' ``llmctl_task`` says, where that is another task's name."""
    command: ClassVar[Literal["pretrain", "finetune"]]
    """The command that it goes with."""
    purpose: ClassVar[str]
    """What its models are for, behind "to": ``give texts labels``."""
    backbones: ClassVar[tuple[str, ...]] = ()
    """Kinds of backbone that it pretrains, whatever the architecture; (): of those architectures
    that name it."""
    has_network: ClassVar[bool] = True
    """False: it is an architecture of its own, which counts."""

    @abstractmethod
    def task(self) -> Any:
        """The class of the task, a subclass of ``llmctl.tasks.base.Task``."""

    def evaluators(self) -> Sequence[type[Evaluator]]:
        """Ways of measuring its models: the first that suits files and options is taken."""
        return ()

    def predictor(self) -> type[Predictor] | None:
        """What answers single texts, if its models do."""
        return None

    def asker(self) -> Any:
        """What asks its models by a template, an ``Asker`` made of a model and a device; None: they
        say of no word how likely it is."""
        return None

    def generator(self) -> type[TextGenerator] | None:
        """What writes texts, if its models do."""
        return None

    def explainer(self) -> type[Explainer] | None:
        """What makes of its models' answers a function of the text, to tell which words decided."""
        return None
