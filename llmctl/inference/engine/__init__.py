"""One engine for all texts that a model writes: each has parameters and a place of its own, comes
in and leaves between two steps, and comes out as if it had been written alone."""

from llmctl.inference.engine.engine import Engine
from llmctl.inference.engine.requests import Constraint, EngineRequest, Token
from llmctl.inference.engine.scheduler import EngineConfig

__all__ = ["Constraint", "Engine", "EngineConfig", "EngineRequest", "Token"]
