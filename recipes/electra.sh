#!/usr/bin/env bash
# Which of two ways of pretraining pays on a labelled table of texts, in as much time each: hidden
# words that are to be found again (a BERT), or replaced ones that are to be told (ELECTRA). Both
# are finetuned on 500 labels and measured on 1,000 others.
#
#   bash recipes/electra.sh TABLE TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]
#
# Columns are names, or positions from 1 where the table has no header; TEXT_COLUMN may be several
# (2,3). LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give a table, its text's column and its label's: bash recipes/electra.sh TABLE TEXT LABEL"
table=${1:?$usage} text=${2:?$usage} label=${3:?$usage}
table=$(realpath "$table")
recipe=$(realpath "${4:-$(dirname "$0")/electra.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$table" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. learn WordPiece on the texts, write shards"
llmctl tokenize "$table" --text-column "$text" --recipe "$recipe" --name "$name"

echo "== 2. pretrain on them, one way and the other"
llmctl pretrain --arch bert --task electra --shards "$name" --recipe "$recipe" \
  --name "$name-electra"
llmctl pretrain --arch bert --task masked_lm --shards "$name" --recipe "$recipe" \
  --name "$name-masked"

echo "== 3. what the discriminator tells, and how well"
llmctl eval --from "$name-electra"
"$python" recipes/split_labels.py "$table" "$tasks" --text-column "$text" --label-column "$label"
llmctl predict --from "$name-electra" --data "$tasks/$name-few.csv" --text-column text --top 3

echo "== 4. finetune both, and the same network from random weights"
for way in electra masked; do
  llmctl finetune --from "$name-$way" --task classify --data "$tasks/$name-train.csv" \
    --recipe "$recipe" --name "$name-of-$way"
done
llmctl finetune --from scratch --like "$name-electra" --task classify \
  --data "$tasks/$name-train.csv" --recipe "$recipe" --name "$name-of-nothing"

echo "== 5. which way pays?"
llmctl eval --from "$name-of-electra" --compare "$name-of-masked" --compare "$name-of-nothing" \
  --data "$tasks/$name-test.csv"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
