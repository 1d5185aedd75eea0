# Sourced by summarise.sh and dialogue.sh: from $tasks/$name-train.jsonl and $name-test.jsonl to a
# GPT with a decoder and one without, and their table.
echo "== 2. pretrain a small GPT on the texts to learn from"
llmctl tokenize "$tasks/$name-train.jsonl" --text-column source,target --recipe "$recipe" --name "$name"
llmctl pretrain --shards "$name" --recipe "$recipe" --name "gpt-$name"

echo "== 3. attach a decoder and finetune; and finetune the GPT with both in one sequence"
for style in decoder prefix; do
  llmctl finetune --from "gpt-$name" --task seq2seq --style "$style" \
    --data "$tasks/$name-train.jsonl" --recipe "$recipe" --name "$name-$style"
done

echo "== 4. measure on what was held out"
llmctl eval --from "$name-decoder" --compare "$name-prefix" --data "$tasks/$name-test.jsonl" \
  --recipe "$recipe"
echo "done in $((SECONDS - begun)) s; artefacts in $LLMCTL_WORKSPACE"
