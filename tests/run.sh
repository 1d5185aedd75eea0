#!/usr/bin/env bash
# Sets up on a fresh machine and runs everything that must pass: ruff, mypy, the tests.
# Further words go to pytest: bash tests/run.sh -k resume
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
python=.venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
