#!/usr/bin/env bash
# From pairs of answers to a model that gives the better kind: finetune a model by DPO, by IPO, and by
# KTO on the same answers as thumbs, and measure all three beside the untuned model on pairs that were
# held out. Half an hour on two cores for the small model that is made where none is given.
#
#   bash recipes/dpo.sh PAIRS [RECIPE.toml]                a small model, of the pairs' own text
#   bash recipes/dpo.sh PAIRS RUN_OR_FOLDER [RECIPE.toml]  any model that answers
#
# PAIRS has prompt, chosen and rejected, or another layout of preferences.md.
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
pairs=$(realpath "${1:?give pairs of answers: bash recipes/dpo.sh PAIRS}")
start="" recipe=$(realpath "$(dirname "$0")/dpo.toml")
for word in "${@:2}"; do
  case $word in
    *.toml) recipe=$(realpath "$word") ;;
    *) start=$word; if [ -d "$start" ]; then start=$(realpath "$start"); fi ;;
  esac
done
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$pairs" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. a fifth of the prompts is held out"
"$python" recipes/split_pairs.py "$pairs" "$tasks/$name"

if [ -z "$start" ]; then
  echo "== 2. a small model of their text, which answers as the better answers do"
  llmctl tokenize "$tasks/$name.txt" --recipe "$recipe" --name "$name"
  llmctl pretrain --shards "$name" --recipe "$recipe" --name "$name"
  start=$name-answers
  llmctl finetune --from "$name" --task instruct --data "$tasks/$name-chosen.jsonl" \
    --recipe "$recipe" --name "$start"
fi

echo "== 3. finetune on the pairs"
learn() {
  llmctl finetune --from "$start" --data "$tasks/$name-train.jsonl" --recipe "$recipe" "$@"
}
learn --task dpo --name "$name-dpo"
learn --task dpo --set objective.loss=ipo --name "$name-ipo"
learn --task kto --name "$name-kto"

echo "== 4. do they prefer what people preferred, and how far have they gone?"
llmctl eval --from "$name-dpo" --compare "$name-ipo" --compare "$name-kto" \
  --data "$tasks/$name-test.jsonl" --recipe "$recipe"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
