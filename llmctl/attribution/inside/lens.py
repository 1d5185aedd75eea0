"""The logit lens (nostalgebraist 2020): what each layer would answer if it were the last.

    logits(l) = unembed(norm(h(l)))

h(0) is what goes into the lowest layer. What the last layer gives is the model's own answer.

L layers, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.states import recorded_reading
from llmctl.errors import InputError
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.reporting.heat_maps import HeatMap
from llmctl.reporting.report import ReportTable

BEST = 3
"""Tokens that are named of each layer."""


def unembedding(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Logits (…, V) in fp32 of states (…, D) of any layer.

    Raises InputError for a network without an output layer for tokens.
    """
    network, body = subject.network, subject.body
    if isinstance(network, CausalLM):
        return lambda states: network.logits(body.finish(states))
    if isinstance(network, MaskedLM):
        return lambda states: network.token_logits(body.finish(states)).float()
    raise InputError(
        f"{subject.name} has no output layer for tokens, through which its layers could be read; "
        "give a language model or a masked one"
    )


@torch.no_grad()
def lens_of(subject: Subject) -> Tensor:
    """The log-probabilities (L + 1, T, V) of each layer for the subject's text."""
    (text,) = subject.texts
    logits_of = unembedding(subject)
    with recorded_reading(subject.body) as states:
        text.score(text.ids_T[None])
    T = len(text.ids_T)
    return torch.stack([logits_of(state[0, :T]).log_softmax(-1) for state in states])


def layer_answers(
    subject: Subject, logs_LTV: Tensor, place: int
) -> tuple[str, list[dict[str, Any]]]:
    """The model's own answer at a place, and what each layer answers there, in JSON values.

    logs_LTV: log-probabilities of each layer; those of the last are the model's.
    """
    final_V = logs_LTV[-1, place]
    answer = int(final_V.argmax())
    name_of = subject.tokenizer.id_to_token
    layers: list[dict[str, Any]] = []
    for layer, logs_TV in enumerate(logs_LTV):
        log_V = logs_TV[place]
        best = log_V.topk(min(BEST, len(log_V)))
        layers.append(
            {
                "layer": layer,
                "best": [
                    {"token": name_of(int(token)), "probability": float(log.exp())}
                    for log, token in zip(*best, strict=True)
                ],
                "probability": float(log_V[answer].exp()),
                "rank": int((log_V > log_V[answer]).sum()) + 1,
                "kl": float((final_V.exp() * (final_V - log_V)).sum()),
                "tokens": [name_of(int(token)) for token in logs_TV.argmax(-1)],
            }
        )
    return name_of(answer), layers


def layer_row(one: Mapping[str, Any]) -> list[str]:
    """A layer's answer of ``layer_answers`` as tables show it."""
    return [
        "input" if not one["layer"] else str(one["layer"]),
        "  ".join(f"{best['token']} {best['probability']:.1%}" for best in one["best"]),
        f"{one['probability']:.1%}",
        str(one["rank"]),
        f"{one['kl']:.3f}",
    ]


class LogitLens(Way):
    """Each layer's answer at the place that the answer is read from."""

    name = "lens"
    described = "what each layer would answer if it were the last (nostalgebraist 2020)"

    def look(self, subject: Subject) -> Insight:
        """Shown at one place; the record has every place's best token by layer."""
        (text,) = subject.texts
        place = text.read_at[0]
        logs_LTV = lens_of(subject).double()
        said, layers = layer_answers(subject, logs_LTV, place)
        rows = [layer_row(one) for one in layers]
        title = f"{subject.name}: logit lens at token {place + 1} of {len(text.ids_T)}"
        headings = ["likeliest", said, "its rank", "KL"]
        record: dict[str, Any] = {
            "text": text.text,
            "tokens": subject.tokens(text),
            "place": place,
            "answer": said,
            "layers": layers,
        }
        about = "KL: of the model's own answer from the layer's, in nats"
        maps = [lens_map(record["tokens"], layers, logs_LTV)]
        return Insight(record, [ReportTable(title, headings, rows), about], maps)


def lens_map(
    tokens: Sequence[str], layers: Sequence[Mapping[str, Any]], logs_LTV: Tensor
) -> HeatMap:
    """What each layer finds likeliest at each token, coloured by how likely.

    layers: of ``layer_answers``, by the log-probabilities.
    """
    names = [layer_row(one)[0] for one in layers]
    return HeatMap(
        "the likeliest token of each layer at each place, from the highest layer",
        [f"{number} {token}" for number, token in enumerate(tokens, 1)],
        names[::-1],
        logs_LTV.amax(-1).exp().flip(0).tolist(),
        [one["tokens"] for one in reversed(layers)],
        largest=1.0,
    )
