#!/usr/bin/env bash
# From dialogues to answers: pretrain a small GPT on what was said, attach a Transformer decoder that
# answers, finetune, and measure on questions that were held out. A quarter of an hour on two cores,
# packages aside. Run it again after any accident: finished stages say "up to date".
#
#   bash recipes/dialogue.sh FILE [RECIPE.toml]
#
# FILE: dialogues as JSONL or JSON, in messages', ShareGPT's or Alpaca's layout.
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
file=${1:?give a file of dialogues: bash recipes/dialogue.sh FILE [RECIPE.toml]}
[ -f "$file" ] || { echo "error: $file: no such file; give dialogues as JSONL" >&2; exit 3; }
file=$(realpath "$file")
name=dialogue-$(basename "$file" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')
recipe=$(realpath "${2:-$(dirname "$0")/summarise.toml}")
cd "$(dirname "$0")/.."
packages="sacrebleu rouge-score"
. recipes/setup.sh

echo "== 1. questions and answers, a tenth held out"
"$python" recipes/text_pairs.py dialogues "$tasks/$name" "$file"
. recipes/seq2seq.sh
