#!/usr/bin/env bash
# An embedder from nothing: pretrain a small encoder on sentences, refine it without labels
# (SimCSE), then by pairs and by scores, measured at each step on the STS benchmark beside TF-IDF
# and a body with random weights; and search by meaning with it.
#
#   bash recipes/embed.sh STSB_FOLDER PAIRS.jsonl [RECIPE.toml]
#
# STSB_FOLDER has sts-train.csv, sts-dev.csv and sts-test.csv. PAIRS is a table of texts that belong
# together, such as MNLI's (premise, hypothesis, label). LLMCTL_TEXT may name a text file to pretrain
# on besides, a document a line. LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="give the STS benchmark's folder and a table of pairs: bash recipes/embed.sh STSB PAIRS.jsonl"
stsb=$(realpath "${1:?$usage}") pairs=$(realpath "${2:?$usage}")
recipe=$(realpath "${3:-$(dirname "$0")/embed.toml}")
text=${LLMCTL_TEXT:+$(realpath "$LLMCTL_TEXT")}
cd "$(dirname "$0")/.."
. recipes/setup.sh

echo "== 1. the benchmark as tables, and sentences to pretrain on"
"$python" recipes/sentence_pairs.py "$stsb" "$pairs" "$tasks" ${text:+"$text"}
llmctl tokenize "$tasks/sentences.txt" --document line --recipe "$recipe" --name sentences

echo "== 2. pretrain a small encoder"
llmctl pretrain --shards sentences --recipe "$recipe" --name encoder

echo "== 3. refine it without labels: a sentence read twice with other dropout"
llmctl pretrain --task simcse --from encoder --shards sentences --name simcse \
  --set training.epochs="${LLMCTL_EPOCHS:-1}"

echo "== 4. learn from pairs, then from scores; and from scores with random weights"
llmctl finetune --from simcse --task embed --data "$pairs" --recipe "$recipe" --name pairs
llmctl finetune --from pairs --task embed --data "$tasks/sts-train.jsonl" --recipe "$recipe" \
  --name scores
llmctl finetune --from scratch --like encoder --task embed --data "$tasks/sts-train.jsonl" \
  --recipe "$recipe" --name scores-scratch

echo "== 5. what each step was worth"
llmctl eval --from scores --compare pairs --compare simcse --compare encoder \
  --compare scores-scratch --data "$tasks/sts-test.jsonl" --name sts

echo "== 6. search by meaning"
llmctl embed --from scores --data "$tasks/sts-test.jsonl" --text-column sentence1 \
  --out "$tasks/sentences.arrow"
llmctl search "$tasks/sentences.arrow" "someone makes music" --top 3
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
