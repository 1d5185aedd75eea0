"""What trains and what stays as it is: a file for each method, and a line in ``METHODS``."""

from __future__ import annotations

from llmctl.training.adapters.base import Method
from llmctl.training.adapters.bitfit import BitFit
from llmctl.training.adapters.freezing import Full, LastLayers
from llmctl.training.adapters.ia3 import Ia3
from llmctl.training.adapters.lora import Lora
from llmctl.training.adapters.prefix import Prefix, PTuning
from llmctl.training.adapters.prompt import SoftPrompt

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Full(),
        Lora(),
        LastLayers(),
        Ia3(),
        BitFit(),
        SoftPrompt(),
        Prefix(),
        PTuning(),
    )
}
"""By name, as ``--method`` has it."""
