"""Predict with an encoder–decoder that has learned span corruption: what a text's sentinels stand
for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.tables.labelled import Columns, Example, column_names, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.visible import visible
from llmctl.tasks.denoise.spans import FromIds, spans_in
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor


@dataclass(frozen=True)
class FilledText:
    """A text, and what each of its sentinels stands for."""

    text: str
    spans: dict[str, str | None]
    """By the sentinel; None where the model wrote nothing of it."""

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {"text": self.text, "spans": self.spans}

    def lines(self, top: int) -> Iterator[str]:
        """The text, and a line for each sentinel."""
        yield visible(self.text)
        for sentinel, span in self.spans.items():
            yield f"  {sentinel}: {'—' if span is None else visible(span)}"


class SpanPredictor(Predictor):
    """A model that is ready to fill in what sentinels stand for."""

    kinds = ("seq2seq",)

    def __init__(self, model: OpenedModel, device: str = "auto") -> None:
        """Raises InputError for a model that was finetuned, or whose tokenizer has no sentinels."""
        super().__init__(model, device)
        if self.folder.writes_from_source or not self.folder.tokenizer.sentinels:
            raise InputError(
                f"{model.name} is {model.described}, and has no spans to fill in; see what it "
                f"writes: llmctl generate --from {model.name}"
            )

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """Those that are given, or an obvious one."""
        columns = resolve_columns(
            path,
            text_column=requested.text_column,
            text_pair_column=requested.text_pair_column,
            need_label=False,
            reading=reading,
        )
        if column_names(path, columns.text, reading):
            reporter.note(f"{path.name}: {columns.describe()}")
        return columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[FilledText]:
        """What the sentinels of each text stand for: the likeliest tokens, one after another."""
        tokenizer, frame = self.folder.tokenizer, self.folder.frame
        most = self.folder.max_length
        config = GenerateConfig(max_new_tokens=most, device=str(self.device))
        generation = FromIds(self.model, config, reporter=reporter)
        names = {number: tokenizer.id_to_token(number) for number in tokenizer.sentinels}
        asked: list[tuple[str, list[int]]] = []

        def prompts() -> Iterator[Prompt]:
            for example in examples:
                ids = tokenizer.encode(example.text, allow_special=True)
                sentinels = [number for number in ids if number in names]
                self._check(example, ids, sentinels)
                asked.append((example.text, sentinels))
                generation.sources.append(frame.source(ids, most))
                yield Prompt(str(len(generation.sources) - 1), example.source)

        for number, answer in enumerate(generation.answers(prompts())):
            text, sentinels = asked[number]
            spans = spans_in(answer.completions[0].ids, tokenizer.sentinels, frame.end[-1])
            yield FilledText(
                text,
                {
                    names[sentinel]: tokenizer.decode(spans[sentinel]).strip()
                    if sentinel in spans
                    else None
                    for sentinel in sentinels
                },
            )

    def _check(self, example: Example, ids: list[int], sentinels: list[int]) -> None:
        """Raises InputError for a text without sentinels, with one twice, or that is too long."""
        first = self.folder.tokenizer.id_to_token(self.folder.tokenizer.sentinels[0])
        if not sentinels:
            raise InputError(
                f"{example.source} has no {first}; write one where something is to be filled in"
            )
        if len(set(sentinels)) < len(sentinels):
            raise InputError(f"{example.source} has a sentinel twice; number them from {first} on")
        if self.folder.frame.source_cut(len(ids), self.folder.max_length):
            raise InputError(
                f"{example.source} has {len(ids)} tokens and the model takes "
                f"{self.folder.max_length}, with what stands around them; shorten it"
            )
