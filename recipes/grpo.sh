#!/usr/bin/env bash
# A small model learns to add by trying: a careless teacher, who forgets most carries, tells it the results
# of sums; it answers two fifths of others rightly, and is then rewarded for right answers to sums whose
# results it is never told. Five minutes on two cores. Run it again after any accident: finished stages say "up to date".
#
#   bash recipes/grpo.sh [RECIPE.toml]
#
# LLMCTL_WORKSPACE and LLMCTL_PYTHON as in setup.sh.
set -euo pipefail
recipe=$(realpath "${1:-$(dirname "$0")/grpo.toml}")
cd "$(dirname "$0")/.."
. recipes/setup.sh
sums=$tasks/sums

echo "== 1. sums: some told by a careless teacher, some to be tried, others to test on"
"$python" recipes/arithmetic.py "$sums"

echo "== 2. a model that has read sums, and answers as it was told"
llmctl tokenize "$sums/sums.txt" --recipe "$recipe" --name sums
llmctl pretrain --shards sums --recipe "$recipe" --name sums
llmctl finetune --from sums --task instruct --data "$sums/known.jsonl" --recipe "$recipe" \
  --set training.epochs=2 --set training.learning_rate=1e-3 --name pupil

echo "== 3. it tries others, and is told which answers are right"
llmctl finetune --from pupil --task grpo --reward number --data "$sums/tried.jsonl" \
  --recipe "$recipe" --set training.epochs=5 --set training.batch_size=32 \
  --set training.learning_rate=3e-4 --set objective.max_new_tokens=6 --name solver

echo "== 4. does trying pay? on sums that it has never seen"
llmctl eval --from solver --task reward --data "$sums/test.jsonl" --recipe "$recipe"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
