"""Explanations beside captum's and TransformerLens' on the same weights: how far the figures are
apart, and how long each takes.

    python tests/benchmarks/inside_peers.py --classifier workspace/runs/reviews/model
    python tests/benchmarks/inside_peers.py --language-model SmolLM2-135M-Instruct.Q4_1.gguf

captum: LayerIntegratedGradients by the same rule with as many steps, InputXGradient, and
FeatureAblation of words. TransformerLens (its bridge, which leaves weights as they are): the logit
lens, attention, what is lost without a head, patched states, and induction scores. A GGUF file is
read by transformers too, which makes fp32 of it as llmctl does. Both libraries can be installed
without what they depend on: pip install --no-deps captum transformer-lens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.inside import VIEWS
from llmctl.attribution.inside.base import Subject
from llmctl.attribution.inside.induction import repeated_tokens
from llmctl.attribution.inside.lens import lens_of
from llmctl.attribution.inside.patching import recovered
from llmctl.data.tables.labelled import Example
from llmctl.stages.explain.words import open_explainer
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.workspace.artefacts import Workspace

REVIEWS = (
    "The rooms were small but the view over the sea was great.",
    "A slow and tedious film that never finds its tone, in spite of its cast.",
    "I would gladly watch it again, if only for the music.",
)
PROMPT, OTHER = "The capital of France is", "The capital of Italy is"


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def row(what: str, apart: float, size: float, own: float, theirs: float) -> None:
    print(f"| {what} | {apart:.1e} | {size:.3g} | {own:.2f} | {theirs:.2f} |", flush=True)


def opened(folder: Path, *texts: str) -> tuple[Any, list[Any]]:
    explainer = open_explainer(
        Workspace(folder.parent), str(folder), ExplainedAnswer(), device="cpu"
    )
    found = [explainer.explained(Example(text, None, None, "a text")) for text in texts]
    return explainer, found


def classifier(folder: Path) -> None:
    import captum.attr
    import transformers

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    embedding = theirs.get_input_embeddings()
    _, texts = opened(folder, *REVIEWS)
    sums: dict[str, list[float]] = {}
    for text in texts:
        ids, own_T = text.ids_T[None], torch.from_numpy(text.word_T)
        with torch.no_grad():
            answer = int(theirs(ids).logits.argmax())
        blank = text.ids_T.masked_fill(own_T >= 0, text.blank)[None]
        features = torch.where(own_T >= 0, own_T, len(text.words))[None]
        first = [int(np.flatnonzero(text.word_T == word)[0]) for word in range(len(text.words))]
        method = ATTRIBUTION_METHODS["integrated-gradients"]()

        def forward(ids: torch.Tensor, answer: int = answer) -> torch.Tensor:
            return theirs(ids).logits[:, answer]

        def of_vectors(vectors: torch.Tensor, answer: int = answer) -> torch.Tensor:
            return theirs(inputs_embeds=vectors).logits[:, answer]

        def integrated(ids: Any = ids, blank: Any = blank, method: Any = method) -> Any:
            found = captum.attr.LayerIntegratedGradients(forward, embedding).attribute(
                ids, baselines=blank, n_steps=int(method.facts()["steps"]),
                method="gausslegendre", internal_batch_size=32,
            )  # fmt: skip
            return found[0].sum(-1)

        def multiplied(ids: Any = ids) -> Any:
            vectors = embedding(ids).detach().requires_grad_(True)
            return captum.attr.InputXGradient(of_vectors).attribute(vectors)[0].sum(-1)

        def ablated(ids: Any = ids, blank: Any = blank, features: Any = features) -> Any:
            ablation = captum.attr.FeatureAblation(forward)
            return ablation.attribute(ids, baselines=blank, feature_mask=features)[0]

        for name, their in (
            ("integrated-gradients", integrated),
            ("gradient-input", multiplied),
            ("occlusion", ablated),
        ):
            made = method if name == "integrated-gradients" else ATTRIBUTION_METHODS[name]()
            mine, own = timed(lambda made=made, text=text: made.weights(text))
            weights_T, other = timed(their)
            values = weights_T.detach().double().numpy()
            if name == "occlusion":
                expected = values[first]
            else:
                words = range(len(text.words))
                expected = np.array([values[text.word_T == word].sum() for word in words])
            apart, size = abs(mine - expected).max(), abs(expected).max()
            found = sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            found[0], found[1] = max(found[0], apart), max(found[1], size)
            found[2], found[3] = found[2] + own, found[3] + other
    for name, found in sums.items():
        row(f"{name}, captum", *found)


def language_model(path: Path) -> None:
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    if path.suffix == ".gguf":
        auto = transformers.AutoModelForCausalLM
        theirs = auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        named = {"hf_model": theirs, "tokenizer": transformers.AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name)}  # fmt: skip
    else:
        named = {}
    explainer, (first, second) = opened(path, PROMPT, OTHER)
    bridge = TransformerBridge.boot_transformers(
        str(path.parent if named else path), device="cpu", dtype=torch.float32, **named
    )
    body = explainer.network.body
    subject = Subject("model", explainer.network, body, explainer.tokenizer, [first])
    ids = first.ids_T[None]
    layers = len(body.layers())
    with torch.no_grad():
        (logits, cache), other = timed(lambda: bridge.run_with_cache(ids))
        # The lens: what goes into the lowest layer, then what comes out of each.
        mine, own = timed(lambda: lens_of(subject))
        states = [cache["blocks.0.hook_in"]]
        states += [cache[f"blocks.{n}.hook_out"] for n in range(layers)]
        expected = torch.stack(
            [bridge.unembed(bridge.ln_final(state))[0].log_softmax(-1) for state in states]
        )
        row("logit lens", float((mine - expected).abs().max()), float(expected.abs().max()),
            own, other)  # fmt: skip
        record, own = timed(lambda: VIEWS["attention"]().look(subject).record)
        weights = torch.stack([cache[f"blocks.{n}.attn.hook_pattern"][0] for n in range(layers)])
        row("attention", float((torch.tensor(record["weights"]) - weights).abs().max()), 1.0,
            own, other)  # fmt: skip
        # What is lost without a head.
        answer = int(logits[0, -1].argmax())
        whole = float(logits[0, -1].log_softmax(-1)[answer])
    record, own = timed(lambda: VIEWS["heads"]().look(subject).record)
    lost, started = [], time.perf_counter()
    with torch.no_grad():
        for one in record["heads"][:12]:

            def emptied(z: torch.Tensor, hook: Any, head: int = one["head"]) -> torch.Tensor:
                z = z.clone()
                parts = z.view(*z.shape[:2], body.config.num_heads, -1)
                parts[:, :, head] = 0
                return z

            name = f"blocks.{one['layer']}.attn.hook_z"
            found = bridge.run_with_hooks(ids, fwd_hooks=[(name, emptied)])[0, -1]
            lost.append(whole - float(found.log_softmax(-1)[answer]))
    apart = max(abs(x - y["lost"]) for x, y in zip(lost, record["heads"][:12], strict=True))
    row("lost without a head (12)", apart, max(map(abs, lost)), own, time.perf_counter() - started)
    if len(first.ids_T) == len(second.ids_T):
        patched(bridge, cache, body, first, second, answer)
    induction(bridge, subject, layers)


@torch.no_grad()
def patched(bridge: Any, cache: Any, body: Any, first: Any, second: Any, answer: int) -> None:
    (mine, whole, other), own = timed(lambda: recovered(body, first, second))
    started, apart = time.perf_counter(), 0.0
    for layer in range(0, len(mine), max(1, len(mine) // 4)):
        for place in range(len(first.ids_T)):

            def put(state: Any, hook: Any, layer: int = layer, place: int = place) -> Any:
                state = state.clone()
                state[:, place] = cache[f"blocks.{layer}.hook_out"][:, place]
                return state

            found = bridge.run_with_hooks(
                second.ids_T[None], fwd_hooks=[(f"blocks.{layer}.hook_out", put)]
            )[0, -1]
            number = float(found.log_softmax(-1)[answer])
            expected = (number - other) / (whole - other)
            apart = max(apart, abs(float(mine[layer, place]) - expected))
    row("patched states (some)", apart, float(mine.abs().max()), own, time.perf_counter() - started)


@torch.no_grad()
def induction(bridge: Any, subject: Subject, layers: int) -> None:
    record, own = timed(lambda: VIEWS["induction"]().look(subject).record)
    half = record["tokens"]
    ids = repeated_tokens(subject, half)
    (_, cache), other = timed(
        lambda: bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    )
    before = ids.shape[1] - 2 * half
    apart = 0.0
    for one in record["heads"]:
        pattern = cache[f"blocks.{one['layer']}.attn.hook_pattern"][:, one["head"]]
        # As TransformerLens' own demonstration of induction heads takes it.
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - half)
        expected = float(stripe[:, before + 1 :].mean())
        apart = max(apart, abs(one["induction"] - expected))
    row("induction scores", apart, record["heads"][0]["induction"], own, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--language-model", type=Path)
    asked = parser.parse_args()
    print("| what | largest difference | largest value | ours, s | theirs, s |")
    print("| --- | --- | --- | --- | --- |")
    if asked.classifier:
        classifier(asked.classifier)
    if asked.language_model:
        language_model(asked.language_model)


if __name__ == "__main__":
    main()
