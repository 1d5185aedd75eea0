#!/usr/bin/env bash
# One model on one task in every way that llmctl adapts models: asked by a template, with examples,
# calibrated, chosen templates, clozes, a few labels, soft prompts, adapters, all weights, and the
# same network from random ones; with 0 to 512 labels and three seeds, as a table.
#
#   bash recipes/adapt.sh MODEL DATA [OPTIONS of adapt.py] [RECIPE.toml]
#
# MODEL is a run or a folder, DATA a labelled table: see adapt.md. LLMCTL_WORKSPACE and
# LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give a model and a labelled table: bash recipes/adapt.sh MODEL DATA"
model=${1:?$usage} data=${2:?$usage}
data=$(realpath "$data")
[ -d "$model" ] && model=$(realpath "$model")
words=()
for word in "${@:3}"; do
  case $word in
    *.toml) [ -f "$word" ] && word=$(realpath "$word") ;;
  esac
  words+=("$word")
done
cd "$(dirname "$0")/.."
. recipes/setup.sh
"$python" recipes/adapt.py "$model" "$data" "${words[@]}"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
