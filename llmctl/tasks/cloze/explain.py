"""Why a text has a label by a cloze: the log-probability of the label's word at the template's
mask, or what it is above another label's.

Words of several pieces are read all at once, as in training: at as many masks as the longest has.

R rows, T tokens, K masks, C labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llmctl.attribution.explained import ExplainedText
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError, UsageError
from llmctl.inference.cloze import encode_cloze
from llmctl.inference.templates import MASK_PLACE, TEXT, TEXT_PAIR, PromptRow, PromptTemplate
from llmctl.tasks.cloze.batches import example_of
from llmctl.tasks.cloze.loss import LabelWords
from llmctl.tasks.cloze.template import kept_template
from llmctl.tasks.explanation import Explainer, rather
from llmctl.tasks.prediction import softmax

TEXT_PLACE = "\ufdd1"
"""What stands in a prompt where the text is to stand; no character of texts."""


class ClozeExplainer(Explainer):
    """A classifier by a cloze whose labels are explained."""

    def build(self) -> Any:
        return self.folder.masked_lm()

    def explained(self, example: Example) -> ExplainedText:
        """The words of the text are explained; the template's stay as they are."""
        template = kept_template(self.folder)
        values = {TEXT: example.text}
        if example.text_pair is not None:
            values[TEXT_PAIR] = example.text_pair
        if missing := template.fields - values.keys():
            raise UsageError(
                f"the template of {self.model.name} asks for {', '.join(sorted(missing))} beside "
                "the text; give a pair with --text-pair, or take a template of the text alone"
            )
        if example.text_pair is not None and TEXT_PAIR not in template.fields:
            raise UsageError(
                f"the template of {self.model.name} asks for one text; leave the second out"
            )
        row = PromptRow(values, None, example.source)
        prompt, begin = self._around(template, row)
        labels = list(template.verbalizer)
        words = [template.answer(row, label) for label in labels]
        query = encode_cloze(
            self.tokenizer, prompt, words,
            max_length=self.folder.max_length, source=example.source,
        )  # fmt: skip
        if query.cut:
            raise InputError(
                f"{example.source} is longer than the {self.folder.max_length} tokens that "
                f"{self.model.name} reads with its template; shorten it"
            )
        ids = example_of(query, self.tokenizer.special["mask"], 0).ids.tolist()
        start = len(query.before)
        own = [
            (place, max(0, first - begin), last - begin)
            for place, first, last in self._offsets(prompt, start, query.longest)
            if begin < last and first < begin + len(example.text)
        ]
        places, begins, ends = [list(part) for part in zip(*own, strict=True)] or [[], [], []]
        scores_of = self._scores(LabelWords(query.words), start)
        with torch.no_grad():
            answered_C = scores_of(torch.tensor([ids], device=self.device))[0]
        first_label = self.choose(self.asked.answer, labels, "--answer")
        other = self.choose(self.asked.against, labels, "--against")
        first = int(answered_C.argmax()) if first_label is None else first_label

        def score(ids_RT: Tensor) -> Tensor:
            scores_RC = scores_of(ids_RT)
            return scores_RC[:, first] - (0.0 if other is None else scores_RC[:, other])

        return self.text(
            example,
            ids,
            places,
            begins,
            score,
            answer=rather(labels[first], None if other is None else labels[other]),
            ends=ends,
            read_at=range(start, start + query.longest),
            facts={"probability": float(softmax(answered_C)[first]), "prompt": _shown(prompt)},
        )

    def _around(self, template: PromptTemplate, row: PromptRow) -> tuple[str, int]:
        """The prompt, and where in it the text begins. Raises InputError where the template doesn't
        write it as it is, once."""
        prompt, text = template.question(row), str(row.values[TEXT])
        marked = PromptRow({**row.values, TEXT: TEXT_PLACE}, None, row.source)
        before, place, after = template.question(marked).partition(TEXT_PLACE)
        if not place or before + text + after != prompt:
            raise InputError(
                f"{row.source}: the template of {self.model.name} doesn't write the text as it is, "
                "once, so its words aren't told apart; explain one whose template has {{ text }}"
            )
        return prompt, len(before)

    def _offsets(self, prompt: str, start: int, masks: int) -> Iterator[tuple[int, int, int]]:
        """The place of each of the prompt's tokens among the ids, and where in the prompt it begins
        and ends. start: the place of the first mask."""
        head, _, tail = prompt.partition(MASK_PLACE)
        layout = self.tokenizer.layout
        for part, first, at in (
            (head.removesuffix(" "), len(layout.before), 0),
            (tail, start + masks, len(head) + len(MASK_PLACE)),
        ):
            begins = self.tokenizer.encode_offsets(part)[1].tolist()
            ends = [*begins[1:], len(part)]
            for number in range(len(begins)):
                yield first + number, at + begins[number], at + ends[number]

    def _scores(self, words: LabelWords, start: int) -> Callable[[Tensor], Tensor]:
        """What gives the log-probability of each label's word (R, C) in some rows."""
        network: Any = self.network
        places_K = torch.arange(words.longest, device=self.device)
        pieces_CK, there_CK = words.pieces_CK.to(self.device), words.there_CK.to(self.device)

        def scores_of(ids_RT: Tensor) -> Tensor:
            hidden_RKD = network.body(ids_RT)[:, start : start + words.longest]
            logits_RKV = network.token_logits(hidden_RKD.flatten(0, 1)).float()
            logs_RKV = logits_RKV.unflatten(0, (len(ids_RT), -1)).log_softmax(-1)
            each_RCK = logs_RKV[:, places_K, pieces_CK]
            return each_RCK.masked_fill(~there_CK, 0.0).sum(-1)

        return scores_of


def _shown(prompt: str) -> str:
    return prompt.replace(MASK_PLACE, "[…]")
