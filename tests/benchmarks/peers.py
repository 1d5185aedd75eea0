"""What the benchmarks run beside llmctl: Hugging Face's tools as their users write them."""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Document = list[list[int]]
"""Sentences, each the ids of its tokens."""

UNTIMED_STEPS = 5
"""The first steps allocate memory and choose kernels."""

SHORT_SEQUENCES = 0.1
"""create_pretraining_data's short_seq_prob: this share of the pairs aims at a random length."""

WARMUP = 0.06
"""Share of the steps; the same as llmctl's default, so that the losses can be compared."""


def hugging_face_bert_pretraining(
    text_documents: list[list[str]],
    tokenizer_folder: str,
    *,
    hidden_size: int = 256,
    num_layers: int = 4,
    sequence_length: int = 128,
    batch_size: int = 32,
    real_tokens: int,
    learning_rate: float,
    seed: int,
    bf16: bool = False,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Pretrain ``BertForPreTraining`` in a plain loop until it has seen ``real_tokens``.

    text_documents: the sentences of each document. real_tokens: padding not counted. bf16:
    autocast, as the Trainer's option of that name does; the default is fp32.
    evaluate: called with the model at the end, in eval mode and not timed; its answer is under
    ``evaluation``.
    Returns tokens_per_second (real tokens, without the first steps and without making pairs),
    seconds (the timed ones), padding_share, steps, real_tokens, losses and model.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from torch.utils.data import DataLoader
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForPreTraining,
        DataCollatorForLanguageModeling,
        get_linear_schedule_with_warmup,
    )

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    documents = tokenize_sentences(text_documents, tokenizer)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            intermediate_size=4 * hidden_size,
        )
    )
    model.train()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    pairs = make_pairs(documents, tokenizer, sequence_length, rng)
    tokens_per_step = batch_size * sum(len(pair["input_ids"]) for pair in pairs) / len(pairs)
    total_steps = math.ceil(real_tokens / tokens_per_step)
    scheduler = get_linear_schedule_with_warmup(optimizer, round(WARMUP * total_steps), total_steps)

    losses: list[float] = []
    seen = timed_tokens = places = 0
    seconds = 0.0
    while seen < real_tokens:
        loader = DataLoader(pairs, batch_size=batch_size, shuffle=True, collate_fn=collator)
        started = time.perf_counter()
        for batch in loader:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            now = time.perf_counter()
            real = int(batch["attention_mask"].sum())
            if len(losses) > UNTIMED_STEPS:
                seconds += now - started
                timed_tokens += real
            seen += real
            places += batch["input_ids"].numel()
            if seen >= real_tokens:
                break
            started = time.perf_counter()
        else:
            pairs = make_pairs(documents, tokenizer, sequence_length, rng)
    model.eval()
    return {
        "tokens_per_second": timed_tokens / seconds if seconds else math.nan,
        "seconds": seconds,
        "padding_share": 1.0 - seen / places,
        "steps": len(losses),
        "real_tokens": seen,
        "losses": losses,
        "evaluation": evaluate(model) if evaluate else {},
        "model": model,
    }


def tokenize_sentences(text_documents: list[list[str]], tokenizer: Any) -> list[Document]:
    """The documents' sentences as ids without special tokens; empty ones left out."""
    documents = []
    for sentences in text_documents:
        ids = tokenizer(sentences, add_special_tokens=False)["input_ids"] if sentences else []
        if document := [sentence for sentence in ids if sentence]:
            documents.append(document)
    if len(documents) < 2:
        raise ValueError("random successors need at least two documents with text")
    return documents


def make_pairs(
    documents: list[Document], tokenizer: Any, sequence_length: int, rng: random.Random
) -> list[dict[str, Any]]:
    """One pass over the documents as sentence pairs, the collator's examples."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [
        {
            "input_ids": [cls, *a, sep, *b, sep],
            "token_type_ids": [0] * (len(a) + 2) + [1] * (len(b) + 1),
            "special_tokens_mask": [1] + [0] * len(a) + [1] + [0] * len(b) + [1],
            "attention_mask": [1] * (len(a) + len(b) + 3),
            "next_sentence_label": int(is_random),
        }
        for number in range(len(documents))
        for a, b, is_random in _document_pairs(documents, number, sequence_length - 3, rng)
    ]


def _document_pairs(
    documents: list[Document], number: int, room: int, rng: random.Random
) -> Iterator[tuple[list[int], list[int], bool]]:
    """create_instances_from_document of BERT's create_pretraining_data, without the masking."""

    def target_length() -> int:
        return rng.randint(2, room) if rng.random() < SHORT_SEQUENCES else room

    document, target, chunk, place = documents[number], target_length(), [], 0
    while place < len(document):
        chunk.append(document[place])
        if place == len(document) - 1 or sum(map(len, chunk)) >= target:
            split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            a = _joined(chunk[:split])
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                other = documents[(number + rng.randrange(1, len(documents))) % len(documents)]
                b: list[int] = []
                for sentence in other[rng.randrange(len(other)) :]:
                    b.extend(sentence)
                    if len(b) >= target - len(a):
                        break
                place -= len(chunk) - split  # the sentences that a random one replaced
            else:
                b = _joined(chunk[split:])
            while len(a) + len(b) > room:
                longer = a if len(a) > len(b) else b
                del longer[0 if rng.random() < 0.5 else -1]
            yield a, b, is_random
            chunk, target = [], target_length()
        place += 1


def _joined(sentences: list[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def hugging_face_tokenize(
    files: Sequence[str | Path], tokenizer_folder: str, num_proc: int, out: str | Path
) -> dict[str, Any]:
    """``datasets.map`` with a fast tokenizer, saved as Arrow under ``out``.

    files: all .jsonl or .json with a column ``text``, or all plain text, a row a line.
    Returns read_seconds (the files to a table), seconds (map and save), megabytes of the files,
    rows and tokens.
    """
    # Read by both libraries when they are imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        import datasets
        import pyarrow.compute as pc
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, use_fast=True)
        is_json = Path(files[0]).suffix in {".jsonl", ".json"}
        started = time.perf_counter()
        rows = datasets.load_dataset(
            "json" if is_json else "text",
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=cache,
        )
        read_seconds = time.perf_counter() - started
        started = time.perf_counter()
        encoded = rows.map(
            lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]},
            batched=True,
            num_proc=num_proc,
            remove_columns=rows.column_names,
        )
        encoded.save_to_disk(str(out))
        seconds = time.perf_counter() - started
        megabytes = sum(Path(file).stat().st_size for file in files) / 1e6
        return {
            "read_seconds": read_seconds,
            "seconds": seconds,
            "megabytes": megabytes,
            "rows": len(encoded),
            "tokens": pc.sum(pc.list_value_length(encoded.data.column("input_ids"))).as_py(),
        }
