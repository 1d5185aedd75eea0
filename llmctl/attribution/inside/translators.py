"""The translators of a tuned lens (Belrose et al. 2023, §3): of each layer an affine map of its
states to the last layer's, learned so that the model's own output layer then says what the model
says.

    logits(l) = unembed(norm(h + A h + b)),    min KL(model ‖ layer l)

Each starts as the ridge regression to the last layer's states (Din et al. 2023), which costs one
pass over the text, and is then trained by Adam.

L layers, P places, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmctl.attribution.inside.base import Subject
from llmctl.attribution.inside.passages import DocumentPart
from llmctl.attribution.inside.states import states_of
from llmctl.errors import InputError
from llmctl.workspace.files import errors_naming
from llmctl.workspace.tensors import read_tensors, write_tensors

Unembed = Callable[[Tensor], Tensor]

MASKED_SHARE = 0.15
"""Share of a text's tokens that are masked for a masked language model, which answers there."""
HELD_OUT_PASSAGES = 8
"""A passage of so many is held out, to measure on."""
MOST_PLACES, MOST_BYTES = 1 << 14, 1 << 29
"""Places whose states are kept, and the memory that these may take."""
LEAST_PLACES = 64
BATCH_PLACES = 256
LENS_LEARNING_RATE = 1e-3
RIDGE = 1e-3
"""The penalty, as a share of the mean variance of a coordinate."""


@dataclass(frozen=True)
class LensText:
    """What translators are learned from, or where they are kept."""

    source: str
    """What the text is called; empty where they are read from a file."""
    passages: list[DocumentPart]
    steps: int
    kept: Path | None = None
    """A file that they are read from where it is there, and written to where it isn't."""
    digest: str = ""
    """The model's, so that a file of another one's is known."""


@dataclass(frozen=True)
class Translators:
    """Those of a network's layers, the lowest being the input's, without the last."""

    weight_LDD: Tensor
    """A of each layer."""
    bias_LD: Tensor
    losses: dict[str, list[float]]
    """KL on held-out text, in nats, by layer: of the plain lens and of the tuned one."""
    source: str
    """What they were tuned on."""

    def translated(self, layer: int, h_PD: Tensor) -> Tensor:
        """A layer's states as the last layer's would be."""
        return h_PD + h_PD @ self.weight_LDD[layer].T + self.bias_LD[layer]


def _masked(subject: Subject, passages: list[DocumentPart]) -> list[tuple[DocumentPart, list[int]]]:
    """Passages with some tokens masked, and the places where the model answers."""
    mask = subject.tokenizer.special.get("mask")
    if subject.body.kind == "decoder":
        return [(one, list(range(one.own.start, one.own.stop))) for one in passages]
    if mask is None:
        raise InputError(f"the tokenizer of {subject.name} has no mask, where a lens could look")
    generator, result = np.random.default_rng(0), []
    for one in passages:
        own = np.arange(one.own.start, one.own.stop)
        count = max(1, round(MASKED_SHARE * len(own)))
        places = np.sort(generator.choice(own, size=count, replace=False))
        ids = one.ids.copy()
        ids[places] = mask
        result.append((DocumentPart(one.name, ids, one.own), places.tolist()))
    return result


def places_of(subject: Subject, passages: list[DocumentPart]) -> tuple[Tensor, Tensor]:
    """States (L + 1, P, D) at places where the model answers: to learn from, and held out."""
    masked = _masked(subject, passages)
    width = int(subject.body.config.hidden_size)
    layers = len(subject.body.layers()) + 1
    most = min(MOST_PLACES, MOST_BYTES // (4 * layers * width))
    share = min(1.0, most / max(1, sum(len(places) for _, places in masked)))
    generator = np.random.default_rng(0)
    chosen = [[p for p in places if generator.random() < share] for _, places in masked]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])

    def told(done: int, total: int) -> None:
        subject.progress("passages read", done, total)

    for members, states_LBTD, _ in states_of(subject.body, [one.ids for one, _ in masked], told):
        for row, number in enumerate(members):
            if chosen[number]:
                held = number % HELD_OUT_PASSAGES == HELD_OUT_PASSAGES - 1
                parts[held].append(states_LBTD[:, row, chosen[number]])
    counts = [sum(part.shape[1] for part in some) for some in parts]
    if counts[0] < LEAST_PLACES or not counts[1]:
        raise InputError(
            f"there are {sum(counts)} places in {len(passages)} passages to tune a lens on, and "
            f"{LEAST_PLACES} in {HELD_OUT_PASSAGES} passages are the least; give a longer text "
            "with --data, or more of it with --limit"
        )
    return torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1)


def ridge(x_PD: Tensor, y_PD: Tensor) -> tuple[Tensor, Tensor]:
    """W (D, D) and b (D,) of y ≈ W x + b, in fp64 on the way."""
    x_mean_D, y_mean_D = x_PD.double().mean(0), y_PD.double().mean(0)
    x, y = x_PD.double() - x_mean_D, y_PD.double() - y_mean_D
    product_DD = x.T @ x
    product_DD.diagonal().add_(RIDGE * product_DD.diagonal().mean().clamp(min=1e-12))
    weight_DD = torch.linalg.solve(product_DD, x.T @ y).T
    return weight_DD.float(), (y_mean_D - weight_DD @ x_mean_D).float()


def divergence(own_PV: Tensor, layer_PV: Tensor) -> Tensor:
    """KL(model ‖ layer) of log-probabilities, in nats, a mean over places."""
    return (own_PV.exp() * (own_PV - layer_PV)).sum(-1).mean()


def tune(subject: Subject, unembed: Unembed, text: LensText) -> Translators:
    """Learn the translators of all layers but the last. Raises InputError for too short a text."""
    for parameter in subject.network.parameters():
        parameter.requires_grad_(False)
    train_LPD, held_LPD = places_of(subject, text.passages)
    weights, biases = [], []
    losses: dict[str, list[float]] = {"lens": [], "tuned": []}
    total = len(train_LPD) - 1
    for layer in range(total):
        weight_DD, bias_D = _trained(unembed, train_LPD[layer], train_LPD[-1], text.steps)
        weights.append(weight_DD)
        biases.append(bias_D)
        found = _held_out(unembed, held_LPD[layer], held_LPD[-1], weight_DD, bias_D)
        for name, value in zip(losses, found, strict=True):
            losses[name].append(value)
        subject.progress("translators trained", layer + 1, total)
    return Translators(torch.stack(weights), torch.stack(biases), losses, text.source)


def _trained(unembed: Unembed, h_PD: Tensor, last_PD: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """A and b of one layer."""
    weight_DD, bias_D = ridge(h_PD, last_PD)
    weight_DD.diagonal().sub_(1.0)
    weight_DD.requires_grad_(True)
    bias_D.requires_grad_(True)
    optimiser = torch.optim.Adam([weight_DD, bias_D], lr=LENS_LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LENS_LEARNING_RATE * (1 - step / steps)
        rows = torch.randint(len(h_PD), (BATCH_PLACES,), generator=generator).to(h_PD.device)
        with torch.no_grad():
            own_PV = unembed(last_PD[rows]).log_softmax(-1)
        h = h_PD[rows]
        with torch.enable_grad():
            layer_PV = unembed(h + h @ weight_DD.T + bias_D).log_softmax(-1)
            loss = divergence(own_PV, layer_PV)
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    return weight_DD.detach(), bias_D.detach()


@torch.no_grad()
def _held_out(
    unembed: Unembed, h_PD: Tensor, last_PD: Tensor, weight_DD: Tensor, bias_D: Tensor
) -> tuple[float, float]:
    """KL of the plain lens and of the tuned one on held-out places."""
    sums = [0.0, 0.0]
    for h, last in zip(h_PD.split(BATCH_PLACES), last_PD.split(BATCH_PLACES), strict=True):
        own_PV = unembed(last).log_softmax(-1)
        for number, states in enumerate((h, h + h @ weight_DD.T + bias_D)):
            sums[number] += len(h) * float(divergence(own_PV, unembed(states).log_softmax(-1)))
    return sums[0] / len(h_PD), sums[1] / len(h_PD)


KEPT_PARTS = {"weight", "bias", "lens", "tuned", "model", "source"}
"""Tensors of a file of translators; the last two are texts in bytes: the model's digest, and what
they were tuned on."""


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).decode(errors="replace")


def keep(path: Path, found: Translators, digest: str) -> None:
    """Write translators: the file appears whole."""
    partial = path.with_name(f".{path.name}.partial")
    with errors_naming(path, partial):
        try:
            tensors = {
                "weight": found.weight_LDD,
                "bias": found.bias_LD,
                **{
                    name: torch.tensor(values, dtype=torch.float64)
                    for name, values in found.losses.items()
                },
                "model": _bytes(digest),
                "source": _bytes(found.source),
            }
            write_tensors(partial, tensors)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def kept(path: Path, subject: Subject, digest: str) -> Translators:
    """Read translators. Raises InputError for another file, or that of another model."""
    tensors = read_tensors(path)
    if set(tensors) != KEPT_PARTS:
        raise InputError(f"--lens {path} holds no translators; name a file that isn't there yet")
    layers, width = len(subject.body.layers()), int(subject.body.config.hidden_size)
    right = tensors["weight"].shape == (layers, width, width)
    if _text(tensors["model"]) != digest or not right:
        raise InputError(
            f"--lens {path} was tuned on another model than {subject.name}; name a file that isn't "
            "there yet"
        )
    device = subject.body.embedding().weight.device
    losses = {name: tensors[name].tolist() for name in ("lens", "tuned")}
    weight_LDD, bias_LD = tensors["weight"].to(device), tensors["bias"].to(device)
    return Translators(weight_LDD, bias_LD, losses, _text(tensors["source"]))
