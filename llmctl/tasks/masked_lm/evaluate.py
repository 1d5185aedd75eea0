"""Evaluate a pretrained encoder: the losses of its pretraining, and its pseudo-perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.pseudo_perplexity import pseudo_perplexity
from llmctl.evaluation.report import Figure, Report
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import (
    FOR_LANGUAGE_MODELS,
    FOR_SOURCES,
    FOR_WRITERS,
    Evaluator,
    shards_of,
    trained_config,
    validation_losses,
)
from llmctl.tasks.masked_lm.config import PUBLISHED_MASK_RATE
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact

MAX_TOKENS = 2000
"""Tokens scored for the pseudo-perplexity: each costs a forward pass."""

EXPLAINED = (
    "MLM: hidden tokens that are to be found again; NSP: whether one text follows the other, 50% "
    "by chance; nats: natural logarithms; pseudo-perplexity: among how many tokens it is torn on "
    "average with both sides known, lower is better"
)


class MaskedEvaluator(Evaluator):
    """The validation part of an encoder's shards under it."""

    kinds = ("masked_lm",)
    reports = ("pretrain",)

    def choose(self) -> None:
        """An encoder is measured on its own shards alone."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        self.shards = choose_own_shards(self)

    def run(self, reporter: Reporter) -> Report:
        """Measure losses by the published way of masking, whatever the model was trained with, so
        that models can be compared."""
        run, shards, tokenizer = self.model.run, self.shards, self.model.folder.tokenizer
        assert run is not None
        assert shards is not None
        trained = trained_config(run.manifest)
        objective = trained.objective.replace(
            mask_rate=PUBLISHED_MASK_RATE, mask_share=0.8, random_share=0.1, whole_word=False
        )
        device = choose_device(self.config.device)
        model = self.model.folder.masked_lm().to(device)
        values, trained = validation_losses(
            model,
            shards,
            trained.replace(objective=objective.model_dump()),
            device,
            progress=partial(reporter.progress, "masked-LM loss"),
        )
        world = get_world()
        reader = ShardReader(shards.folder, "validation", tokenizer.vocab_size)
        limit = self.config.max_tokens or MAX_TOKENS
        perplexity, scored = pseudo_perplexity(
            model,
            _texts(reader, trained.data.sequence_length - 2),
            tokenizer.special,
            max_tokens=limit,
            progress=lambda done: reporter.progress("pseudo-perplexity", done, limit),
            part=(world.rank, world.size),
            summed=lambda own: world.all_reduce_sum([own])[0],
        )
        reporter.progress("pseudo-perplexity", limit, limit)
        results = {**values, "pseudo_perplexity": perplexity if scored else None}
        return Report(
            task="pretrain",
            data=shards.manifest.reference,
            facts={
                "validation_tokens": int(reader.document_lengths.sum()),
                "mask_rate": PUBLISHED_MASK_RATE,
                "pseudo_perplexity_tokens": scored,
            },
            results=results,
            summary=results,
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """A row for each figure."""
        rate, scored = (report.facts[key] for key in ("mask_rate", "pseudo_perplexity_tokens"))
        # A handful of validation tokens may have none that is masked.
        figures = [
            Figure(f"MLM loss (at {rate:.0%}), nats", "mlm_loss", ".4f", optional=True),
            Figure("MLM accuracy", "mlm_accuracy", ".1%", optional=True),
            Figure(f"pseudo-perplexity ({scored:,} tokens)", "pseudo_perplexity", ".2f"),
        ]
        if "nsp_accuracy" in report.results:
            figures.insert(2, Figure("NSP accuracy", "nsp_accuracy", ".1%"))
        yield ReportTable(
            f"{report.model} on the validation part of {report.data}",
            ["value"],
            [[entry.heading, entry.cell(report.results)] for entry in figures],
        )
        yield EXPLAINED


def choose_own_shards(evaluator: Evaluator) -> Artefact:
    """The shards of a pretrained encoder, on which alone it is measured.

    Raises UsageError for other data or models to compare, InputError where they aren't known.
    """
    name, run = evaluator.model.name, evaluator.model.run
    if evaluator.others:
        raise UsageError(
            f"--compare is for classifiers and language models, and {name} is a pretrained encoder"
        )
    if run is None:
        raise InputError(
            f"{name} is the folder of a pretrained encoder, whose losses are measured on "
            "the shards that llmctl trained it on, and these are not known; finetune it and "
            "evaluate what comes of it, or give a run's name"
        )
    if evaluator.files.data is not None:
        raise UsageError(
            f"{name} is a pretrained encoder: it is measured on the validation part of its "
            "shards; leave out --data, or give --from a classifier"
        )
    return shards_of(evaluator.workspace, run.manifest)


def _texts(reader: ShardReader, longest: int) -> Iterator[list[int]]:
    """The beginning of each document."""
    for document in range(len(reader)):
        yield reader.tokens(document, 0, longest).tolist()
