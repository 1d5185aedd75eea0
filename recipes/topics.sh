#!/usr/bin/env bash
# A labelled table of texts: pretrain on all of its text, unlabelled, then finetune on 500 labels
# and measure on 1,000 others, beside the same network from random weights and TF-IDF.
#
#   bash recipes/topics.sh TABLE TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]
#
# Columns are names, or positions from 1 where the table has no header; TEXT_COLUMN may be several
# (2,3). LLMCTL_WORKSPACE and LLMCTL_PYTHON as in quickstart.sh.
set -euo pipefail
table=$(realpath "$1") text=$2 label=$3
cd "$(dirname "$0")/.."
recipe=${4:-recipes/topics.toml}
name=$(basename "$table" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')
python=${LLMCTL_PYTHON:-.venv/bin/python}
export LLMCTL_WORKSPACE=${LLMCTL_WORKSPACE:-$PWD/workspace}
llmctl() { "$python" -m llmctl "$@"; }
tasks=$LLMCTL_WORKSPACE/tasks

llmctl tokenize "$table" --text-column "$text" --recipe "$recipe" --name "$name"
llmctl pretrain --arch bert --shards "$name" --recipe "$recipe" --name "bert-$name"
"$python" recipes/split_labels.py "$table" "$tasks" --text-column "$text" --label-column "$label"
llmctl finetune --from "bert-$name" --task classify --data "$tasks/$name-train.csv" \
  --recipe "$recipe" --name "$name-pretrained"
llmctl finetune --from scratch --like "bert-$name" --task classify \
  --data "$tasks/$name-train.csv" --recipe "$recipe" --name "$name-scratch"
llmctl eval --from "$name-pretrained" --compare "$name-scratch" --data "$tasks/$name-test.csv"
