"""Evaluate a pretrained encoder: the losses of its pretraining, and its pseudo-perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError
from llmctl.evaluation.pseudo_perplexity import pseudo_perplexity
from llmctl.objectives.masked_lm import PUBLISHED_MASK_RATE
from llmctl.objectives.masked_pretraining import vocabulary_of
from llmctl.objectives.pretraining import VALIDATION_SEED
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, trained_config
from llmctl.tasks.pretraining import open_pretraining
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.training.validation import evaluate

MAX_TOKENS = 2000
"""Tokens scored for the pseudo-perplexity: each costs a forward pass."""


def masked_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """The validation part of the run's shards under the model."""
    run, shards = given.subject.run, given.shards
    assert run is not None
    assert shards is not None
    trained = trained_config(run.manifest)
    # Always as published, whatever the model was trained with: so that models can be compared.
    objective = trained.objective.replace(
        mask_rate=PUBLISHED_MASK_RATE, mask_share=0.8, random_share=0.1, whole_word=False
    )
    pretraining, trained = open_pretraining(
        shards, trained.replace(objective=objective.model_dump())
    )
    batches = pretraining.batches("validation", seed=VALIDATION_SEED)
    if not batches.per_epoch:
        raise InputError(
            f"shards {shards.manifest.name} have no validation documents; tokenize with a larger "
            "--validation"
        )
    device = choose_device(config.device)
    model = given.subject.neural.masked_lm().to(device)
    total = batches.per_epoch

    def batch(number: int) -> Any:
        reporter.progress("masked-LM loss", number + 1, total)
        return batches(number)

    world = current()
    values = evaluate(model, batch, total, device=device, world=world)
    reader = ShardReader(shards.folder, "validation", given.subject.tokenizer.vocab_size)
    limit = config.max_tokens or MAX_TOKENS
    perplexity, scored = pseudo_perplexity(
        model,
        _texts(reader, trained.data.sequence_length - 2),
        vocabulary_of(given.subject.tokenizer),
        max_tokens=limit,
        progress=lambda done: reporter.progress("pseudo-perplexity", done, limit),
        part=(world.rank, world.size),
        summed=lambda own: world.total([own])[0],
    )
    reporter.progress("pseudo-perplexity", limit, limit)
    results = {**values, "pseudo_perplexity": perplexity if scored else None}
    return {
        "task": "pretrain",
        "data": shards.manifest.reference,
        "validation_tokens": int(reader.document_lengths.sum()),
        "mask_rate": PUBLISHED_MASK_RATE,
        "pseudo_perplexity_tokens": scored,
        "results": results,
        "notes": [],
        "summary": results,
    }


def _texts(reader: ShardReader, longest: int) -> Iterator[list[int]]:
    """The beginning of each document."""
    for document in range(len(reader)):
        yield reader.tokens(document, 0, longest).tolist()
