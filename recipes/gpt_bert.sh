#!/usr/bin/env bash
# One network that is a language model and an encoder: pretrained on rows from left to right and on
# rows with hidden tokens, it writes, fills masks, and is finetuned on 500 labels; beside it the same
# network pretrained from left to right alone, for as long, and random weights.
#
#   bash recipes/gpt_bert.sh TABLE TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]
#
# Columns are names, or positions from 1 where the table has no header; TEXT_COLUMN may be several
# (2,3). LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give a table, its text's column and its label's: bash recipes/gpt_bert.sh TABLE TEXT LABEL"
table=${1:?$usage} text=${2:?$usage} label=${3:?$usage}
table=$(realpath "$table")
recipe=$(realpath "${4:-$(dirname "$0")/gpt_bert.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$table" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. learn byte-level BPE on the texts, write shards"
llmctl tokenize "$table" --text-column "$text" --recipe "$recipe" --name "$name-bpe"

echo "== 2. pretrain a Llama on them, both ways, and from left to right alone"
llmctl pretrain --arch llama --task gpt_bert --shards "$name-bpe" --recipe "$recipe" \
  --name "$name-both"
llmctl pretrain --arch llama --task causal_lm --shards "$name-bpe" --recipe "$recipe" \
  --name "$name-causal"

echo "== 3. as a language model, beside the other"
llmctl eval --from "$name-both" --compare "$name-causal"
llmctl generate --from "$name-both" --prompt "The" --max-new-tokens 30 --seed 1

echo "== 4. as an encoder: finetune both, and the same network from random weights"
"$python" recipes/split_labels.py "$table" "$tasks" --text-column "$text" --label-column "$label"
for way in both causal; do
  llmctl finetune --from "$name-$way" --task classify --data "$tasks/$name-train.csv" \
    --recipe "$recipe" --name "$name-of-$way"
done
llmctl finetune --from scratch --like "$name-both" --task classify \
  --data "$tasks/$name-train.csv" --recipe "$recipe" --name "$name-of-nothing"
llmctl eval --from "$name-of-both" --compare "$name-of-causal" --compare "$name-of-nothing" \
  --data "$tasks/$name-test.csv"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
