#!/usr/bin/env bash
# Smaller students: a sentence encoder with four of its layers, and a classifier with half of its,
# each with the table of what that costs and gains beside its teacher.
#
#   bash recipes/small.sh ENCODER STSB_FOLDER PAIRS.jsonl NEWS TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]
#
# ENCODER is a model that makes vectors of sentences, such as a folder of MiniLM. STSB_FOLDER has
# sts-train.csv, sts-dev.csv and sts-test.csv; PAIRS is a table of further sentences. NEWS is a
# table of labelled texts. LLMCTL_LAYERS says how many layers students have (4), LLMCTL_TRAIN how many labels are
# trained on (2,000). LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="bash recipes/small.sh ENCODER STSB PAIRS.jsonl NEWS TEXT_COLUMN LABEL_COLUMN [RECIPE.toml]"
encoder=$(realpath "${1:?$usage}") stsb=$(realpath "${2:?$usage}") pairs=$(realpath "${3:?$usage}")
news=$(realpath "${4:?$usage}") text=${5:?$usage} label=${6:?$usage}
recipe=$(realpath "${7:-$(dirname "$0")/small.toml}")
layers=${LLMCTL_LAYERS:-4}
cd "$(dirname "$0")/.."
. recipes/setup.sh
name=$(basename "$news" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')

echo "== 1. sentences to learn from, and labelled texts in two parts"
"$python" recipes/sentence_pairs.py "$stsb" "$pairs" "$tasks"
"$python" recipes/split_labels.py "$news" "$tasks" --text-column "$text" --label-column "$label" \
  --train "${LLMCTL_TRAIN:-2000}"

echo "== 2. a student of the encoder: its vectors, hidden states and attention"
llmctl finetune --task distil --teacher "$encoder" --layers "$layers" --recipe "$recipe" \
  --data "$tasks/sentences.txt" --name small-encoder
llmctl compress "$encoder" --method distil --student small-encoder \
  --eval "$tasks/sts-test.jsonl" --name small-encoder-table

echo "== 3. a classifier, and a student of it"
llmctl finetune --from "$encoder" --data "$tasks/$name-train.csv" --name news \
  --set training.epochs="${LLMCTL_EPOCHS:-2}"
llmctl finetune --task distil --teacher news --layers "$layers" --recipe "$recipe" \
  --data "$tasks/$name-train.csv" --name small-news
llmctl compress news --method distil --student small-news --eval "$tasks/$name-test.csv" \
  --name small-news-table
llmctl compress news --method round --bits 8 --eval "$tasks/$name-test.csv" --name news-8bit

echo "== 4. size against quality"
llmctl status --compare news-8bit small-news-table --plot
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
