#!/usr/bin/env bash
# From aligned sentences to a translator by denoising: pretrain a small T5 by span corruption on both
# languages, see how many spans it fills in exactly, finetune it on the pairs, and measure on the test
# set, beside random weights finetuned for as long. About a quarter of an hour on two cores, packages
# aside. Run it again after any accident: finished stages say "up to date".
#
#   bash recipes/denoise.sh SOURCE_LANGUAGE TARGET_LANGUAGE DIR [RECIPE.toml]
#
# DIR has train.LANGUAGE and test*.LANGUAGE for both, a sentence a line, as plain text or .gz:
#   bash recipes/denoise.sh en de multi30k
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="bash recipes/denoise.sh SOURCE_LANGUAGE TARGET_LANGUAGE DIR [RECIPE.toml]"
[ $# -ge 3 ] || { echo "error: $usage" >&2; exit 2; }
from=$1 to=$2
[ -d "$3" ] || { echo "error: $3: no such folder; $usage" >&2; exit 3; }
folder=$(realpath "$3")
recipe=$(realpath "${4:-$(dirname "$0")/denoise.toml}")
# The one file of a part and a language.
file() {
  for found in "$folder/$1"*."$2" "$folder/$1"*."$2".gz; do
    if [ -f "$found" ]; then echo "$found"; return; fi
  done
  echo "error: $folder has no file $1*.$2 or $1*.$2.gz" >&2
  exit 3
}
train_from=$(file train "$from") train_to=$(file train "$to")
test_from=$(file test "$from") test_to=$(file test "$to")
cd "$(dirname "$0")/.."
packages="sacrebleu rouge-score"
. recipes/setup.sh
pair=$from-$to

echo "== 1. one vocabulary for both languages, with sentinels"
llmctl tokenize "$train_from" "$train_to" --recipe "$recipe" --name "t5-$pair"

echo "== 2. pretrain a small T5 by span corruption, and see what it fills in"
llmctl pretrain --shards "t5-$pair" --recipe "$recipe" --name "t5-$pair"
llmctl eval --from "t5-$pair"

echo "== 3. finetune it, and random weights for as long"
learn() {
  name=$1 start=$2
  shift 2
  llmctl finetune --from "$start" --task seq2seq --data "$train_from" --target "$train_to" \
    --recipe "$recipe" --name "$name" "$@"
}
learn "t5-$pair-tuned" "t5-$pair"
# Fresh embeddings are far from zero and need longer steps, as in pretraining.
learn "t5-$pair-scratch" scratch --like "t5-$pair" --set training.learning_rate=0.02

echo "== 4. translate the test set, and compare"
llmctl eval --from "t5-$pair-tuned" --compare "t5-$pair-scratch" \
  --data "$test_from" --target "$test_to" --recipe "$recipe"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
