#!/usr/bin/env bash
# A BERT and a ModernBERT given the same time on your own labelled table of texts: both pretrained on
# all of its text, unlabelled, finetuned on 500 labels and measured on 1,000 others, beside TF-IDF.
#
#   bash recipes/modernbert.sh TABLE TEXT_COLUMN LABEL_COLUMN [TIME] [RECIPE.toml]
#
# Columns are names, or positions from 1 where the table has no header; TEXT_COLUMN may be several
# (2,3). TIME: of each pretraining, for example 10m. LLMCTL_WORKSPACE and LLMCTL_PYTHON as in
# setup.sh.
set -euo pipefail
usage="give a table, its text's column and its label's: bash recipes/modernbert.sh TABLE TEXT LABEL"
table=${1:?$usage} text=${2:?$usage} label=${3:?$usage}
table=$(realpath "$table")
shift 3
limit=()
if [[ ${1:-} =~ ^[0-9] ]]; then
  limit=(--set "training.time_limit=$1")
  shift
fi
recipe=$(realpath "${1:-$(dirname "$0")/modernbert.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$table" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. learn WordPiece on the texts, write shards"
llmctl tokenize "$table" --text-column "$text" --recipe "$recipe" --name "$name"

echo "== 2. pretrain each for the same time"
for arch in bert modernbert; do
  llmctl pretrain --arch "$arch" --shards "$name" --recipe "$recipe" "${limit[@]}" \
    --name "$arch-$name"
done

echo "== 3. draw labelled texts to train on, and others to test on"
"$python" recipes/split_labels.py "$table" "$tasks" --text-column "$text" --label-column "$label"

echo "== 4. finetune each"
for arch in bert modernbert; do
  llmctl finetune --from "$arch-$name" --task classify --data "$tasks/$name-train.csv" \
    --recipe "$recipe" --name "$name-of-$arch"
done

echo "== 5. measure: hidden tokens found again, and classes"
for arch in bert modernbert; do llmctl eval --from "$arch-$name"; done
llmctl eval --from "$name-of-modernbert" --compare "$name-of-bert" --data "$tasks/$name-test.csv"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
