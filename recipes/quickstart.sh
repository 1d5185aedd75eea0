#!/usr/bin/env bash
# From nothing to a measured classifier on the text that Python carries: at most ten minutes on two
# cores, packages aside. Run it again after any accident: finished stages say "up to date".
#
#   bash recipes/quickstart.sh [RECIPE.toml]
#
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
recipe=$(realpath "${1:-$(dirname "$0")/quickstart.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh

echo "== 1. learn WordPiece on Python's documentation, write shards"
llmctl tokenize python:docs --recipe "$recipe" --name python-docs

echo "== 2. pretrain a small ModernBERT on it"
llmctl pretrain --arch modernbert --shards python-docs --recipe "$recipe" --name docs

echo "== 3. a labelled task: which part of the standard library does a docstring belong to?"
"$python" recipes/stdlib_task.py "$tasks"

echo "== 4. finetune it, and the same network from random weights"
llmctl finetune --from docs --task classify --data "$tasks/stdlib-train.csv" \
  --recipe "$recipe" --name stdlib
llmctl finetune --from scratch --like docs --task classify --data "$tasks/stdlib-train.csv" \
  --recipe "$recipe" --name stdlib-scratch

echo "== 5. predict"
llmctl predict --from stdlib --top 3 \
  "Return the message payload decoded from base64, with its headers." \
  "Run the coroutine in the event loop and cancel the pending tasks." \
  "Fail the test unless the two objects are equal."
llmctl predict --from docs "return a [MASK] of the arguments" --top 5

echo "== 6. the runs"
llmctl status

echo "== 7. does pretraining pay?"
llmctl eval --from docs
llmctl eval --from stdlib --compare stdlib-scratch --data "$tasks/stdlib-test.csv"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
