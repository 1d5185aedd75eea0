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
write --from gpt-code --prompt "$prompt" --top-p 0.9 --num-samples 2

echo "== 5. complete the functions of modules that it has not seen"
asked=$tasks/functions.jsonl
"$python" recipes/complete_functions.py ask "$LLMCTL_WORKSPACE/shards/python-code" "$asked"
write --from gpt-code --prompt-file "$asked" --output "$tasks/greedy.jsonl"
write --from gpt-code --prompt-file "$asked" --output "$tasks/beam.jsonl" --num-beams 4
write --from gpt-code --prompt-file "$asked" --output "$tasks/nucleus.jsonl" --top-p 0.9
write --from ngram-code --prompt-file "$asked" --output "$tasks/ngram.jsonl"
"$python" recipes/complete_functions.py judge "$asked" \
  "gpt-code, likeliest token=$tasks/greedy.jsonl" "gpt-code, 4 beams=$tasks/beam.jsonl" \
  "gpt-code, nucleus of 0.9=$tasks/nucleus.jsonl" "5-gram, likeliest token=$tasks/ngram.jsonl"

echo "== 6. the runs"
llmctl status

echo "== 7. does the network pay?"
llmctl eval --from gpt-code
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
