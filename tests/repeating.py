"""Spares a process that runs many commands what each of them does at its start and its end."""

from __future__ import annotations

import functools
import gc
import sys

import typer.main

MANY = 100
"""Modules: a library's."""
_settled = 0
"""Modules that were loaded when this process last settled."""


def keep_parsers() -> None:
    """Build the command line's parsers once, not for each command (0.15 s)."""
    typer.main.get_command = functools.cache(typer.main.get_command)


def settle() -> None:
    """Where libraries have been loaded since the last call: let the collection of garbage that ends
    a training pass over them (0.2 s), and measure the machine's speed, as it begins, by products
    small enough for models so small (0.2 s)."""
    global _settled
    if len(sys.modules) < _settled + MANY:
        return
    _settled = len(sys.modules)
    gc.collect()
    gc.freeze()
    if "llmctl.training.precision" in sys.modules:
        from llmctl.training import precision

        precision.MATRIX_TRIAL_SECONDS = 0.003
        rows, width = 256, 256
        precision.matrix_rate.__defaults__ = (rows, width, precision.TRIALS)
