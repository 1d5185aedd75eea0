"""Beside a model that was tuned by how good answers are: the one that it started from, and answers
of both to the same prompts.

A answers, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.inference.decoding import Completion
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.sampling import AnswerSampler
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers.chat_template import ChatTemplate, default_template
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace

TUNED_BY = ("dpo", "kto", "grpo")
"""Tasks whose models are measured beside what they started from."""
UNTUNED = "untuned"
"""The row of the model that the measured one started from."""
SHOWN_SAMPLES = 32
"""Prompts that both answer, evenly chosen."""


def untuned(workspace: Workspace, model: OpenedModel) -> OpenedModel | None:
    """The model that another was tuned from; None where it wasn't tuned so, as far as is known.

    Raises InputError where it is gone.
    """
    if model.run is None or model.run.manifest.config.get("task") not in TUNED_BY:
        return None
    record = next(record for record in model.run.manifest.inputs if record.role == "model")
    name = record.artefact[1] if record.artefact else record.name
    return OpenedModel.open(workspace, name)


class AnsweringModel:
    """A model that is measured by its answers."""

    def __init__(self, model: OpenedModel, device: str, *, max_new_tokens: int, seed: int) -> None:
        """max_new_tokens: of an answer. Raises InputError where it can't answer in a chat."""
        folder = model.folder
        self.name, self.base = model.name, folder
        self.network = folder.causal_lm().to(choose_device(device, "--device")).eval()
        source, _ = default_template(folder.tokenizer)
        self.template = ChatTemplate(source, folder.tokenizer)
        self.longest = folder.max_length
        self._sampler = AnswerSampler(
            folder.tokenizer,
            self.template,
            longest=self.longest,
            max_new_tokens=max_new_tokens,
            at_once=64,
            seed=seed,
        )

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        """A prompt's ids; None where it leaves no room for an answer."""
        ids = self.template.encode_prompt(messages)
        return ids if len(ids) < self.longest else None

    def answers(
        self, prompts: Sequence[Sequence[int]], reporter: Reporter, *, temperature: float = 0.0
    ) -> list[Completion]:
        """An answer to each prompt; of several models that draw, by the same random numbers."""
        written: list[Completion] = []
        for answer in self._sampler.each(self.network, prompts, temperature=temperature):
            written.append(answer)
            reporter.progress(f"answers of {self.name}", len(written), len(prompts))
        return written


@torch.no_grad()
def divergence(
    model: AnsweringModel,
    reference: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Completion],
) -> NDArray[np.float64]:
    """KL(model ‖ reference) of each answer's text (A,), in nats: of answers that the model drew,
    the sum over places of the divergence of what may follow there."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.ids]], device=model.network.output_weight.device)
        rows = [_next_token(network, ids, len(prompt)) for network in (model, reference)]
        found.append(float(F.kl_div(rows[1], rows[0], log_target=True, reduction="sum")))
    return np.asarray(found)


def _next_token(model: AnsweringModel, ids_1T: torch.Tensor, begin: int) -> torch.Tensor:
    """Log-probabilities (T − begin, V) of what follows from the place before ``begin`` on."""
    network: Any = model.network
    hidden_TD = network.body(ids_1T[:, :-1])[0, begin - 1 :]
    return F.log_softmax(network.logits(hidden_TD), dim=-1)


def mean_interval(values_N: NDArray[Any], resamples: int, seed: int) -> tuple[float, float]:
    """The interval of a mean by the bootstrap."""
    generator = np.random.default_rng(seed)
    drawn_R = [
        values_N[generator.integers(len(values_N), size=len(values_N))].mean()
        for _ in range(resamples)
    ]
    return percentile_interval(drawn_R)


def paired_gap(
    one_N: NDArray[Any], other_N: NDArray[Any], resamples: int, seed: int
) -> dict[str, float]:
    """The difference of two means on the same examples, with its interval."""
    gap_N = one_N - other_N
    low, high = mean_interval(gap_N, resamples, seed)
    return {"difference": float(gap_N.mean()), "low": low, "high": high}


def evenly(count: int, most: int) -> list[int]:
    """At most so many of some numbers, evenly chosen."""
    return sorted({n * count // min(most, count) for n in range(min(most, count))})
