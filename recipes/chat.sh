#!/usr/bin/env bash
# From a model that continues text to one that answers, by all its weights and by a LoRA: at most
# ten minutes on two cores, packages aside. Run it again after any accident: finished stages say
# "up to date".
#
#   bash recipes/chat.sh [RECIPE.toml]                     the model of gpt.sh, on Python's docstrings
#   bash recipes/chat.sh RUN_OR_FOLDER DATA [RECIPE.toml]  any model; Alpaca's layout, or messages
#
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
start="" data="" name=chat
if [ $# -ge 2 ]; then
  start=$1 data=$(realpath "$2")
  if [ -d "$start" ]; then start=$(realpath "$start"); fi
  name=chat-$(basename "$data" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')
  shift 2
fi
recipe=$(realpath "${1:-$(dirname "$0")/gpt.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh

echo "== 1. a model to begin with"
if [ -z "$start" ]; then
  start=gpt-code
  llmctl tokenize python:code --recipe "$recipe" --name python-code
  llmctl pretrain --shards python-code --recipe "$recipe" --name "$start"
fi

echo "== 2. questions with answers, a few held out"
"$python" recipes/questions.py "$tasks/$name" ${data:+"$data"}

echo "== 3. finetune all weights, and a small addition to them"
for method in full lora; do
  llmctl finetune --from "$start" --task instruct --method $method \
    --data "$tasks/$name.jsonl" --recipe "$recipe" --name "$name-$method"
done

echo "== 4. ask what was held out"
while read -r question; do
  echo "> $question"
  llmctl chat --from "$name-full" --recipe "$recipe" <<< "$question"
done < "$tasks/$name-few.txt"

echo "== 5. the runs"
llmctl status
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
