#!/usr/bin/env bash
# From texts and their summaries to a summariser: pretrain a small GPT on them, attach a Transformer
# decoder and finetune, and measure on texts that were held out, beside one decoder-only model that
# has both in one sequence, the source itself and its first words. A quarter of an hour on two cores,
# packages aside. Run it again after any accident: finished stages say "up to date".
#
#   bash recipes/summarise.sh [RECIPE.toml]                     docstrings' bodies to their first lines
#   bash recipes/summarise.sh FILE [TEXT SUMMARY] [RECIPE.toml] two columns of a table, such as news
#                                                               and their headlines
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
name=summaries
given=(docstrings)
if [ $# -ge 1 ] && [[ $1 != *.toml ]]; then
  [ -f "$1" ] || { echo "error: $1: no such file; give a table of texts and summaries" >&2; exit 3; }
  name=$(basename "$1" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')
  given=(columns "$(realpath "$1")")
  shift
  if [ $# -ge 2 ]; then given+=("$1" "$2"); shift 2; fi
fi
recipe=$(realpath "${1:-$(dirname "$0")/summarise.toml}")
cd "$(dirname "$0")/.."
packages="sacrebleu rouge-score"
. recipes/setup.sh

echo "== 1. pairs, a tenth held out"
"$python" recipes/text_pairs.py "${given[0]}" "$tasks/$name" "${given[@]:1}"
. recipes/seq2seq.sh
