"""Many prompts: those of about the same length are written together, and answered in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from llmctl.errors import UsageError
from llmctl.inference.decoder import CausalDecoder, DecoderRunner, EncoderDecoderRunner, truncatable
from llmctl.inference.decoding import beam, contrastive, sampling, speculative
from llmctl.inference.decoding.config import GenerationConfig
from llmctl.inference.decoding.rows import CompiledSamplingParams, Completion, SequenceState

PROMPT_BATCHES_AHEAD = 16
"""Batches of prompts read before the first answer, and sorted by length among themselves, so that
little is padding."""

PromptIds = Sequence[int]


def generate(
    decoder: DecoderRunner,
    prompts: Iterable[PromptIds],
    rules: CompiledSamplingParams,
    *,
    draft: DecoderRunner | None = None,
    batch_size: int = 8,
    first: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> Iterator[list[Completion]]:
    """The texts that continue each prompt, in the order of the prompts.

    prompts: none empty, each shorter than the model's context. draft: writes ahead; its vocabulary
    is the decoder's. batch_size: rows written together. first: the first prompt's number, by which
    samples are drawn. on_text: is told the text as it becomes
    certain; for one prompt and one sample.
    Raises UsageError for a method that the model can't do.
    """
    config = rules.config
    take = _together(config, batch_size, drafted=draft is not None)
    stream = enumerate(prompts, first)
    while block := list(islice(stream, PROMPT_BATCHES_AHEAD * take)):
        answers: dict[int, list[Completion]] = {number: [] for number, _ in block}
        by_length = sorted(block, key=lambda prompt: len(prompt[1]))
        for begin in range(0, len(by_length), take):
            batch = by_length[begin : begin + take]
            for completion in _batch(decoder, batch, rules, draft, on_text):
                answers[completion.prompt].append(completion)
        for completions in answers.values():
            yield sorted(completions, key=lambda completion: completion.sample)


def block_size(config: GenerationConfig, batch_size: int, *, drafted: bool) -> int:
    """Prompts that are sorted by length among themselves."""
    return PROMPT_BATCHES_AHEAD * _together(config, batch_size, drafted=drafted)


def _together(config: GenerationConfig, batch_size: int, *, drafted: bool) -> int:
    """Prompts that are written together; one by the methods that write a row at a time."""
    if drafted or config.penalty_alpha is not None:
        return 1
    return max(1, batch_size // config.rows_each)


def _batch(
    decoder: DecoderRunner,
    batch: Sequence[tuple[int, PromptIds]],
    rules: CompiledSamplingParams,
    draft: DecoderRunner | None,
    on_text: Callable[[str], None] | None,
) -> Iterator[Completion]:
    config = rules.config
    if config.num_beams > 1 and draft is not None:
        raise UsageError("--draft is not for beam search; leave out one of the two")
    numbers, sources = zip(*batch, strict=True)
    batch = list(zip(numbers, _begin(decoder, sources), strict=True))
    if draft is not None:
        _begin(draft, sources)
    limits = [rules.room(ids, decoder.max_positions) for _, ids in batch]
    if config.num_beams > 1:
        numbered = [
            (number, ids, limit) for (number, ids), limit in zip(batch, limits, strict=True)
        ]
        for one in beam.search(decoder, numbered, rules):
            best = one.completions()
            if on_text:
                on_text(best[0].text)
            yield from best
        return
    rows = [
        SequenceState.begin(rules, number, sample, ids, limit)
        for (number, ids), limit in zip(batch, limits, strict=True)
        for sample in range(config.num_samples)
    ]
    for row in rows:
        row.on_text = on_text or row.on_text
    for row in _write(decoder, rows, rules, draft):
        yield row.completion()


def _begin(decoder: DecoderRunner, sources: Sequence[PromptIds]) -> Sequence[PromptIds]:
    """How the texts begin: as their prompts, or as a target does of which the prompt is the
    source."""
    return decoder.begin(sources) if isinstance(decoder, EncoderDecoderRunner) else sources


def _write(
    decoder: DecoderRunner,
    rows: list[SequenceState],
    rules: CompiledSamplingParams,
    draft: DecoderRunner | None,
) -> Iterator[SequenceState]:
    if rules.config.penalty_alpha is not None:
        if draft is not None:
            raise UsageError("--draft is not for contrastive search; leave out one of the two")
        if not isinstance(decoder, CausalDecoder):
            raise UsageError(
                "contrastive search compares hidden states, and an n-gram model has none; leave "
                "out --penalty-alpha"
            )
        for row in rows:
            yield from contrastive.write(decoder, row, rules)
    elif draft is not None:
        target, writer = truncatable(decoder), truncatable(draft)
        for row in rows:
            yield from speculative.write(target, writer, row, rules)
    else:
        yield from sampling.write(decoder, rows, rules)
