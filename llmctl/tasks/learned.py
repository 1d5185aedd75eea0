"""What a pretraining has learned, in words: its figures beside guesses by frequency.

A masked accuracy of 12 % looks like something and may be what the commonest words give. Such a body
is worth no more than random weights, which whoever finetunes it or measures what came of it should
hear: the sentence is kept in the run's summary and repeated there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmctl.evaluation.frequencies import guesses
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import Manifest

if TYPE_CHECKING:
    from llmctl.tasks.pretraining import Pretraining

LEARNED = "learned"
"""The key of a run's summary."""
NOTHING, LITTLE, CONTEXT = "nothing", "little", "context"
"""No better than frequencies; no better than the token before; better than both."""

PREDICTED = {"mlm": "a hidden token", "lm": "the next token", "hidden": "a hidden token"}
"""What is asked for, by the figures of a validation that measure it."""
MIN_NATS_GAINED = 0.1
"""By how much a loss must be below that of the frequencies to come of more than a good fit to
them."""
NSP_CHANCE = 0.55
"""Share of next sentences that were told right up to which it may be chance, which is a half: of a
few hundred pairs."""
HELPS = "ten times as long would help"


def describe_learning(
    pretraining: Pretraining[Any, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What to add to a pretraining's summary; nothing where there was no look at other text."""
    values = summary.get("validation", {})
    kind = next(
        (kind for kind in PREDICTED if {f"{kind}_loss", f"{kind}_accuracy"} <= values.keys()), ""
    )
    loss, accuracy = (values.get(f"{kind}_{figure}") for figure in ("loss", "accuracy"))
    if loss is None or accuracy is None:
        return {}
    baseline = guesses(
        pretraining.reader("train"),
        pretraining.reader("validation"),
        pretraining.tokenizer.vocab_size,
        end=pretraining.tokenizer.special["eos"] if kind == "lm" else None,
    )
    if baseline is None:
        return {}
    figures = f"for {PREDICTED[kind]} a loss of {loss:.2f} nats and {accuracy:.1%} right"
    frequency = (
        f"{baseline.unigram_loss:.2f} and {baseline.unigram_accuracy:.1%} by frequency alone"
    )
    before = f"{baseline.bigram_loss:.2f} and {baseline.bigram_accuracy:.1%} by the token before it"
    if loss > baseline.unigram_loss - MIN_NATS_GAINED:
        how, said = NOTHING, f"has not learned from context yet: {figures}, {frequency}; {HELPS}"
    elif loss > baseline.bigram_loss:
        how = LITTLE
        said = f"has learned little from context yet: {figures}, {frequency}, {before}; {HELPS}"
    else:
        how, said = CONTEXT, f"has learned from context: {figures}, {frequency}, {before}"
    next_sentence = values.get("nsp_accuracy")
    if next_sentence is not None and next_sentence <= NSP_CHANCE:
        said += f"; next sentences, {next_sentence:.1%} right, it tells by chance (50%)"
    return {LEARNED: {"from": how, "says": said, **baseline.document()}}


def said_of(manifest: Manifest) -> str | None:
    """What a pretraining has learned, in words, with its name."""
    learned = manifest.summary.get(LEARNED)
    return f"{manifest.name} {learned['says']}" if isinstance(learned, dict) else None


def weak_start(workspace: Workspace, run: Artefact | None) -> str | None:
    """A sentence where a run, or the pretraining that it began from, has hardly learned from
    context."""
    if run is None:
        return None
    lineage = (manifest for _, _, manifest in workspace.lineage(run.manifest))
    for manifest in (run.manifest, *lineage):
        learned = manifest.summary.get(LEARNED) if manifest is not None else None
        if manifest is not None and isinstance(learned, dict):
            return said_of(manifest) if learned.get("from") != CONTEXT else None
    return None
