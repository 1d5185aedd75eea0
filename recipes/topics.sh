#!/usr/bin/env bash
# The way of quickstart.sh on a labelled table of texts: pretrain on all of its text, unlabelled,
# then finetune on 500 labels and measure on 1,000 others, beside the same network from random
# weights and TF-IDF.
#
#   bash recipes/topics.sh TABLE TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]
#
# Columns are names, or positions from 1 where the table has no header; TEXT_COLUMN may be several
# (2,3). LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give a table, its text's column and its label's: bash recipes/topics.sh TABLE TEXT LABEL"
table=${1:?$usage} text=${2:?$usage} label=${3:?$usage}
table=$(realpath "$table")
recipe=$(realpath "${4:-$(dirname "$0")/topics.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$table" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. learn WordPiece on the texts, write shards"
llmctl tokenize "$table" --text-column "$text" --recipe "$recipe" --name "$name"

echo "== 2. pretrain a small ModernBERT on them"
llmctl pretrain --arch modernbert --shards "$name" --recipe "$recipe" --name "encoder-$name"

echo "== 3. draw labelled texts to train on, and others to test on"
"$python" recipes/split_labels.py "$table" "$tasks" --text-column "$text" --label-column "$label"

echo "== 4. finetune it, and the same network from random weights"
llmctl finetune --from "encoder-$name" --task classify --data "$tasks/$name-train.csv" \
  --recipe "$recipe" --name "$name-pretrained"
llmctl finetune --from scratch --like "encoder-$name" --task classify \
  --data "$tasks/$name-train.csv" --recipe "$recipe" --name "$name-scratch"

echo "== 5. predict"
llmctl predict --from "$name-pretrained" --data "$tasks/$name-few.csv" --top 3

echo "== 6. the runs"
llmctl status

echo "== 7. does pretraining pay?"
llmctl eval --from "encoder-$name"
llmctl eval --from "$name-pretrained" --compare "$name-scratch" --data "$tasks/$name-test.csv"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
