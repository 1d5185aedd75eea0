"""How a server behaves: where it listens, what it takes, how long it waits."""

from __future__ import annotations

from pydantic import Field

from llmctl.formats.sampling_defaults import AUTO
from llmctl.inference.engine import EngineConfig
from llmctl.inference.weights import Kernels, WeightType


class ServeConfig(EngineConfig):
    """How models are served, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every one of this machine, which --api-key should guard."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen at; 0: one that is free."""
    api_key: str | None = None
    """What clients have to show (Authorization: Bearer …); unset: nothing."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    dtype: WeightType = "fp32"
    """Number format of the weights; int8 and int4 are the fastest on a processor."""
    kernels: Kernels = "auto"
    """Whose products int8 and int4 weights are multiplied by: torch, PyTorch's; native, ours, which
    this machine's C compiler makes when they are first asked for; auto: ours on a processor with
    AVX-512 VNNI, if there is a compiler."""
    generation_config: str = AUTO
    """Whose generation_config.json says how texts are chosen, where a request doesn't: auto, the
    model's own; none; or that of another folder."""
    max_waiting: int = Field(256, ge=0)
    """Texts that may wait for a place; further requests are answered with 429."""
    max_body_bytes: int = Field(4 << 20, ge=1 << 10)
    """Bytes of a request at most."""
    max_seconds: float = Field(600.0, gt=0)
    """Seconds that a request may take."""
    body_seconds: float = Field(20.0, gt=0)
    """Seconds that a client has to send a request."""
    max_inputs: int = Field(2048, ge=1)
    """Texts that a request may bring."""
    default_max_tokens: int = Field(16, ge=1)
    """New tokens of a completion that asks for no number; a chat has what the context holds."""
