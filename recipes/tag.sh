#!/usr/bin/env bash
# From tagged words to a tagger: pretrain a small encoder on their text, and on further texts if there
# are some, finetune it on the tags, and measure on others, beside the same network from random weights,
# each word's most frequent tag, and a linear model on a word and its neighbours.
#
#   bash recipes/tag.sh TRAIN TEST [TEXT ...] [RECIPE.toml]
#
# TRAIN and TEST have a word a line with its tag behind it, or are JSONL with spans: see tag.md.
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give tagged words to train on, and others to test on: bash recipes/tag.sh TRAIN TEST"
train=$(realpath "${1:?$usage}") test=$(realpath "${2:?$usage}")
recipe=$(realpath "$(dirname "$0")/tag.toml")
texts=()
for word in "${@:3}"; do
  case $word in
    *.toml) recipe=$(realpath "$word") ;;
    *) texts+=("$(realpath "$word")") ;;
  esac
done
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=tags

echo "== 1. learn WordPiece on the texts, write shards"
"$python" recipes/words_of.py "$train" "$tasks/$name.txt"
llmctl tokenize "$tasks/$name.txt" "${texts[@]}" --recipe "$recipe" --name "$name"

echo "== 2. pretrain a small ModernBERT on them"
llmctl pretrain --arch modernbert --shards "$name" --recipe "$recipe" --name "encoder-$name"

echo "== 3. finetune it on the tags, and the same network from random weights"
llmctl finetune --from "encoder-$name" --task tag --data "$train" --recipe "$recipe" \
  --name "$name-pretrained"
llmctl finetune --from scratch --like "encoder-$name" --task tag --data "$train" \
  --recipe "$recipe" --name "$name-scratch"

echo "== 4. does pretraining pay?"
llmctl eval --from "$name-pretrained" --compare "$name-scratch" --data "$test"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
