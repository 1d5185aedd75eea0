"""The tuned lens (Belrose et al. 2023): what each layer would answer if it were the last, its
states being translated into what the last layer's look like first.

A layer's states may hold an answer in other directions than the output layer reads; the logit lens
then shows nothing of it. How good each lens is stands beside it, as measured on held-out text.
"""

from __future__ import annotations

import torch

from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.lens import layer_answers, layer_row, lens_map, unembedding
from llmctl.attribution.inside.states import recorded_reading
from llmctl.attribution.inside.translators import LensText, Translators, keep, kept, tune
from llmctl.reporting.report import ReportTable


def translators_of(subject: Subject) -> Translators:
    """Those that are kept, or those that are learned now, and kept where that is asked for."""
    text: LensText = subject.data
    if text.kept is not None and text.kept.is_file():
        return kept(text.kept, subject, text.digest)
    found = tune(subject, unembedding(subject), text)
    if text.kept is not None:
        keep(text.kept, found, text.digest)
    return found


class TunedLens(Way):
    """Each layer's answer through its translator, beside the logit lens."""

    name = "tuned-lens"
    described = "what each layer would answer, translated (Belrose et al. 2023)"
    takes = "documents"

    def look(self, subject: Subject) -> Insight:
        """Shown at one place; the record has every place's best token by layer."""
        (text,) = subject.texts
        unembed = unembedding(subject)
        translators = translators_of(subject)
        with torch.no_grad():
            with recorded_reading(subject.body) as states:
                text.score(text.ids_T[None])
            read = [state[0, : len(text.ids_T)] for state in states]
            logs = [
                unembed(translators.translated(layer, state.float())).log_softmax(-1)
                for layer, state in enumerate(read[:-1])
            ]
            logs.append(unembed(read[-1]).log_softmax(-1))
        place = text.read_at[0]
        logs_LTV = torch.stack(logs).double()
        said, layers = layer_answers(subject, logs_LTV, place)
        for one, plain, tuned in zip(layers, *translators.losses.values(), strict=False):
            one |= {"held_out_lens": plain, "held_out_tuned": tuned}
        layers[-1] |= {"held_out_lens": 0.0, "held_out_tuned": 0.0}
        rows = [
            [*layer_row(one), f"{one['held_out_tuned']:.3f}", f"{one['held_out_lens']:.3f}"]
            for one in layers
        ]
        record = {
            "text": text.text,
            "tokens": subject.tokens(text),
            "place": place,
            "answer": said,
            "data": translators.source,
            "layers": layers,
        }
        title = f"{subject.name}: tuned lens at token {place + 1} of {len(text.ids_T)}"
        headings = ["likeliest", said, "its rank", "KL", "KL held out", "logit lens"]
        about = (
            "KL: of the model's own answer from the layer's, in nats; held out: its mean over "
            f"text of {translators.source} that the lens was not tuned on, and that of the logit "
            "lens there"
        )
        maps = [lens_map(subject.tokens(text), layers, logs_LTV)]
        return Insight(record, [ReportTable(title, headings, rows), about], maps)
