#!/usr/bin/env bash
# A small GPT that writes like a play: characters as tokens, nanoGPT's split of the text, and the
# loss over the whole validation part. Four minutes of training on two cores, or the time given.
#
#   bash recipes/shakespeare.sh FILE [TIME] [RECIPE.toml]
#
# FILE: a plain text, such as tinyshakespeare's. TIME: of the training, for example 1m.
# LLMCTL_SEED is the run's seed (default 0); LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
file=$(realpath "${1:?give a text file: bash recipes/shakespeare.sh FILE [TIME] [RECIPE.toml]}")
shift
[ -f "$file" ] || { echo "error: $file: no such file; give a plain text" >&2; exit 3; }
limit=()
if [[ ${1:-} =~ ^[0-9] ]]; then
  limit=(--set "training.time_limit=$1")
  shift
fi
recipe=$(realpath "${1:-$(dirname "$0")/shakespeare.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
seed=${LLMCTL_SEED:-0}

echo "== 1. characters as tokens; the last tenth is held out"
llmctl tokenize "$file" --recipe "$recipe" --name shakespeare

echo "== 2. train"
llmctl pretrain --shards shakespeare --recipe "$recipe" --seed "$seed" "${limit[@]}" \
  --name "shakespeare-$seed"

echo "== 3. measure on the whole of the held-out part"
llmctl eval --from "shakespeare-$seed"

echo "== 4. write"
llmctl generate --from "shakespeare-$seed" --prompt $'ROMEO:\n' --max-new-tokens 240 \
  --temperature 0.8 --seed "$seed"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
