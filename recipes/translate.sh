#!/usr/bin/env bash
# From aligned sentences to a translator: pretrain a small GPT on both languages, attach a Transformer
# decoder to it, finetune, and measure on the test set, beside random weights and the decoder that
# knows the GPT's last state alone. At most half an hour on two cores, packages aside. Run it again
# after any accident: finished stages say "up to date".
#
#   bash recipes/translate.sh SOURCE_LANGUAGE TARGET_LANGUAGE DIR [RECIPE.toml]
#
# DIR has train.LANGUAGE and test*.LANGUAGE for both, a sentence a line, as plain text or .gz:
#   bash recipes/translate.sh en de multi30k
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
usage="bash recipes/translate.sh SOURCE_LANGUAGE TARGET_LANGUAGE DIR [RECIPE.toml]"
[ $# -ge 3 ] || { echo "error: $usage" >&2; exit 2; }
from=$1 to=$2
[ -d "$3" ] || { echo "error: $3: no such folder; $usage" >&2; exit 3; }
folder=$(realpath "$3")
recipe=$(realpath "${4:-$(dirname "$0")/translate.toml}")
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

echo "== 1. one vocabulary for both languages, from the training sentences"
llmctl tokenize "$train_from" "$train_to" --recipe "$recipe" --name "$pair"

echo "== 2. pretrain a small GPT on both"
llmctl pretrain --shards "$pair" --recipe "$recipe" --name "gpt-$pair"

echo "== 3. attach a decoder and finetune"
learn() {
  name=$1 start=$2
  shift 2
  llmctl finetune --from "$start" --task seq2seq --data "$train_from" --target "$train_to" \
    --recipe "$recipe" --name "$name" "$@"
}
learn "$pair" "gpt-$pair"
learn "$pair-scratch" scratch --like "gpt-$pair"
learn "$pair-bare" "gpt-$pair" --set model.cross_attention=false

echo "== 4. translate the test set, and compare"
llmctl generate --from "$pair" --source "$test_from" --output "$LLMCTL_WORKSPACE/$pair-test.$to" \
  --num-beams 4
llmctl eval --from "$pair" --compare "$pair-scratch" --compare "$pair-bare" \
  --data "$test_from" --target "$test_to" --recipe "$recipe"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
