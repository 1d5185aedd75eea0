#!/usr/bin/env bash
# From nothing to a model that completes Python functions, on the source that Python carries: at
# most ten minutes on two cores, packages aside. Run it again after any accident: finished stages
# say "up to date".
#
#   bash recipes/gpt.sh [RECIPE.toml]
#
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
recipe=$(realpath "${1:-$(dirname "$0")/gpt.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh

echo "== 1. learn byte-level BPE on the standard library's source, write shards"
llmctl tokenize python:code --recipe "$recipe" --name python-code

echo "== 2. count its n-grams, to compare with"
llmctl pretrain --arch ngram --order 5 --shards python-code --name ngram-code

echo "== 3. pretrain a small decoder on it"
llmctl pretrain --shards python-code --recipe "$recipe" --name gpt-code

echo "== 4. complete a function: by the likeliest tokens, by a beam, from a nucleus"
prompt='def read_lines(path):
    """Return the lines of a text file, without their ends."""
'
write() { llmctl generate --recipe "$recipe" "$@"; }
write --from gpt-code --prompt "$prompt"
write --from gpt-code --prompt "$prompt" --num-beams 4
write --from gpt-code --prompt "$prompt" --top-p 0.9

echo "== 5. complete what it has not seen: lines, and functions"
code=$tasks/code
"$python" recipes/complete_code.py ask "$LLMCTL_WORKSPACE/shards/python-code" "$code"
complete() {  # RUN WAY OPTION …
  local way=$2 model=(--from "$1")
  shift 2
  write "${model[@]}" "$@" --prompt-file "$code/lines.jsonl" --stop $'\n' \
    --output "$code/lines-$way.jsonl"
  write "${model[@]}" "$@" --prompt-file "$code/functions.jsonl" \
    --output "$code/functions-$way.jsonl"
}
complete gpt-code greedy
complete gpt-code nucleus --top-p 0.9
complete ngram-code ngram
"$python" recipes/complete_code.py judge "$code" "gpt-code, likeliest token=greedy" \
  "gpt-code, nucleus of 0.9=nucleus" "5-gram, likeliest token=ngram"

echo "== 6. the runs"
llmctl status

echo "== 7. does the network pay?"
llmctl eval --from gpt-code
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
