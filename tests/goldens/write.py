"""Write the goldens anew, from the code as it is: ``python -m tests.goldens.write [FILE]``."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch

from tests.goldens.recipe import Recipe

GOLDENS = Path(__file__).with_name("goldens.json")


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def write(path: Path) -> None:
    """Give every command and keep what it said."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"written_with": machine(), **Recipe(Path(folder)).make()}
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=GOLDENS)
    write(parser.parse_args().file)
