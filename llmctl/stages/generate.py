"""Generate: prompts to what a language model writes behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions, text_lines
from llmctl.data.text.files import STDIN, format_of, named
from llmctl.data.text.sources import no_file
from llmctl.errors import InputError, UsageError
from llmctl.formats.columns import Finetuned
from llmctl.formats.huggingface.model_folder import ModelFolder
from llmctl.formats.ngram.ngram_folder import NgramFolder
from llmctl.formats.open import open_any_model
from llmctl.inference.decoder import CausalDecoder, NextToken, SourceDecoder
from llmctl.inference.decoding import Completion, GenerationConfig, Rules
from llmctl.inference.decoding import generate as write_texts
from llmctl.inference.decoding.batches import block_size
from llmctl.inference.decoding.config import DEFAULT_CANDIDATES
from llmctl.inference.ngram_decoder import NgramDecoder
from llmctl.inference.prompts import Shots, find_columns, read_rows, read_template, write_prompts
from llmctl.inference.weights import WeightType, prepare
from llmctl.objectives.seq2seq import ended
from llmctl.parsing import Malformed, parse_json
from llmctl.reporting.reporter import Reporter
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import to_json
from llmctl.workspace.manifests import InputRecord
from llmctl.workspace.outputs import Output

PROMPT_FIELD = "prompt"

TEXTS, SOURCES = 8, 64
"""Written together by default: sources and what is written from them are short."""


class GenerateConfig(GenerationConfig):
    """How texts are written, and on what."""

    batch_size: int = Field(0, ge=0)
    """Texts that are written together, each beam counted. 0: 8, and where texts are written from
    sources as many as make 64 sources."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    dtype: WeightType = "fp32"
    """Number format of the weights; int8 is fastest on a processor."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, and where it is from."""

    text: str
    source: str


@dataclass(frozen=True)
class Answer:
    """What was written behind a prompt."""

    prompt: Prompt
    completions: list[Completion]


@dataclass(frozen=True)
class Templated:
    """A template and the tables that its prompts are made of."""

    template: Path
    data: Path
    examples: Path | None
    shots: int
    reading: ReadOptions = DEFAULT


class Opened(NamedTuple):
    """A model that was opened, by the name that it was given."""

    name: str
    folder: ModelFolder | NgramFolder
    record: InputRecord
    run: Artefact | None = None
    """The run that it is of, if it isn't a mere folder."""


class Generation:
    """A language model that is ready to write."""

    def __init__(
        self,
        model: Opened,
        config: GenerateConfig,
        *,
        draft: Opened | None = None,
        prompts: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """draft: a smaller model that writes ahead. prompts: how many there will be, if that is
        known; weights are laid out for it.

        Raises InputError if one of them writes no text, UsageError if their vocabularies differ.
        """
        self._reporter = reporter or Reporter()
        self.model = Finetuned(model.name, model.folder, model.run)
        """The model, as far as the columns of its training matter."""
        self._folder, self.tokenizer = model.folder, model.folder.tokenizer
        if not config.batch_size:
            together = SOURCES * config.rows_each if self.from_sources else TEXTS
            config = config.replace(batch_size=together)
        self.config = config
        rows = rows_at_once(config, prompts, drafted=draft is not None)
        self._decoder = _decoder(model, config, rows)
        digests = [model.record.digest]
        self._draft: NextToken | None = None
        if draft is not None:
            self._draft = _decoder(draft, config, rows=1)
            digests.append(draft.record.digest)
            if draft.folder.tokenizer.digest() != self.tokenizer.digest():
                raise UsageError(
                    f"--draft {draft.name} has another vocabulary than {model.name}; take a "
                    "smaller model that was trained on the same shards"
                )
        self.identity = {"models": digests, "config": config.identity()}
        """What decides the texts."""
        around = self.tokenizer.boundaries
        self._start = None if around is None else around[0]
        self._rules = Rules(config, self.tokenizer)
        self._told = False

    def answers(
        self,
        prompts: Iterable[Prompt],
        tell: Callable[[str], None] | None = None,
        *,
        first: int = 0,
    ) -> Iterator[Answer]:
        """What is written behind each prompt, in their order; from each, if the model was finetuned
        on pairs of texts.

        first: the first prompt's number, by which samples are drawn. tell: is told the text as it
        becomes certain; for one prompt and one sample. Several processes divide the prompts.
        Raises InputError for a prompt that doesn't fit into the model's context.
        """
        world = current()
        # A round of all processes is what one alone sorts by length among themselves.
        block = max(1, self.block_size // world.size)
        yield from world.divided(
            prompts,
            lambda part, begin: self._answers(part, tell, first + begin),
            block=block,
            kind=Answer,
        )

    def _answers(
        self, prompts: Iterable[Prompt], tell: Callable[[str], None] | None, first: int
    ) -> Iterator[Answer]:
        asked: list[Prompt] = []

        def encoded() -> Iterator[list[int]]:
            for prompt in prompts:
                asked.append(prompt)
                yield self._encode(prompt)

        written = write_texts(
            self._decoder,
            encoded(),
            self._rules,
            draft=self._draft,
            batch_size=self.config.batch_size,
            first=first,
            tell=tell,
        )
        for number, completions in enumerate(written):
            yield Answer(asked[number], completions)

    def templated(self, given: Templated) -> Iterator[Prompt]:
        """A prompt for each row of a table."""
        template = read_template(given.template)
        how: dict[str, Any] = {"reading": given.reading}
        asks_label = "label" in template.input_fields
        columns = find_columns(given.data, template, need_label=asks_label, **how)
        rows = read_rows(given.data, template, columns, **how)
        solved = []
        if given.shots:
            if given.examples is None:
                raise UsageError(
                    f"--shots {given.shots} needs --examples FILE, a table of solved examples"
                )
            columns = find_columns(given.examples, template, need_label=template.tells_label, **how)
            solved = list(read_rows(given.examples, template, columns, **how))
        shots = Shots(template, solved, self.config.seed)

        def fits(row: object, prompt: str) -> bool:
            most = self._decoder.max_positions
            needed = len(self.tokenizer.encode(prompt)) + 1 + self.config.max_new_tokens
            return most is None or needed <= most

        for prompt in write_prompts(template, rows, shots, given.shots, fits):
            if prompt.dropped and not self._told:
                self._told = True
                self._reporter.note(
                    f"{prompt.row.source}: {prompt.dropped} of {given.shots} examples do not fit "
                    "into the context; the first are left out"
                )
            yield Prompt(prompt.text, prompt.row.source)

    @property
    def block_size(self) -> int:
        """Prompts that are sorted by length among themselves."""
        drafted = self._draft is not None
        return block_size(self.config, self.config.batch_size, drafted=drafted)

    @property
    def from_sources(self) -> bool:
        """Whether prompts are sources that a text is written from."""
        return self._style is not None

    @property
    def _style(self) -> str | None:
        folder = self._folder
        return folder.writes_from_source if isinstance(folder, ModelFolder) else None

    def _encode_source(self, prompt: Prompt) -> list[int]:
        """As in finetuning: cut to what the model was trained on, with the text's end behind."""
        assert isinstance(self._folder, ModelFolder)
        start, end = self._folder.boundaries
        most = self._folder.max_source
        ids = self.tokenizer.encode(prompt.text)
        if len(ids) >= most and not self._told:
            self._told = True
            self._reporter.note(
                f"{prompt.source} has {len(ids)} tokens and is cut to {most - 1}, as in finetuning"
            )
        return [*([start] if self._style == "prefix" else []), *ended(ids, end, most)]

    def _encode(self, prompt: Prompt) -> list[int]:
        if self.from_sources:
            return self._encode_source(prompt)
        ids = [*self.tokenizer.layout.before, *self.tokenizer.encode(prompt.text)]
        if not ids and self._start is not None:
            ids = [self._start]
        if not ids:
            raise InputError(
                f"{prompt.source} is empty, and the tokenizer has no token for a document's start "
                "to begin from; write a few words"
            )
        most = self._decoder.max_positions
        if most is not None and len(ids) >= most:
            raise InputError(
                f"{prompt.source} has {len(ids)} tokens and the model takes {most}, one of them "
                "new; shorten it"
            )
        if most is not None and len(ids) + self.config.max_new_tokens > most and not self._told:
            self._told = True
            self._reporter.note(
                f"{prompt.source}: the model's context of {most} tokens has room for "
                f"{most - len(ids)} more, not for {self.config.max_new_tokens}"
            )
        return ids


def rows_at_once(config: GenerateConfig, prompts: int | None, *, drafted: bool) -> int:
    """Rows of the products by which tokens are written.

    prompts: None where it isn't known. drafted: whether a draft writes ahead, and several tokens
    of one text are read at once.
    """
    if drafted:
        return config.draft_tokens + 1
    if config.penalty_alpha is not None:
        return config.top_k or DEFAULT_CANDIDATES
    batch = max(1, config.batch_size // config.rows_each)
    return config.rows_each * (batch if prompts is None else min(batch, prompts))


def open_to_write(workspace: Workspace, given: str) -> Opened:
    """The model of a run's name or of a folder. Raises InputError if there is none."""
    folder, run, record = open_any_model(workspace, given)
    return Opened(given, folder, record, run)


def _decoder(model: Opened, config: GenerateConfig, rows: int) -> NextToken:
    """A model that is ready to write so many rows at once."""
    device, folder = choose_device(config.device, "--device"), model.folder
    if isinstance(folder, NgramFolder):
        if config.dtype != "fp32":
            raise UsageError(
                f"--dtype {config.dtype}: {model.name} is an n-gram model, without weights"
            )
        return NgramDecoder(folder.model)
    if folder.kind == "seq2seq":
        pair = folder.seq2seq().to(device)
        head = prepare(pair.decoder, config.dtype, rows=rows, reader=pair.reader)
        start, _ = folder.boundaries
        return SourceDecoder(
            pair, start=start, longest=folder.max_length, head=head, tokenizer=folder.tokenizer
        )
    lm = folder.causal_lm().to(device)
    head = prepare(lm, config.dtype, rows=rows)
    return CausalDecoder(lm, longest=folder.max_length, head=head, tokenizer=folder.tokenizer)


def read_prompts(path: Path, reading: ReadOptions = DEFAULT) -> Iterator[Prompt]:
    """The prompts of a file: a line each, or of a table (JSONL, CSV, …) the ``prompt`` of each row.
    Of standard input (``-``) a line each, or JSON objects with a ``prompt`` if the first line is
    one.

    Raises InputError if there are none, or a row has no prompt.
    """
    if path.is_dir():
        raise no_file("--prompt-file", path)
    found = False
    if path == STDIN:
        prompts = _of_stream(reading)
    elif format_of(path) == ".txt":
        prompts = _of_lines(path, reading)
    else:
        rows = RowReader(path, known=frozenset([PROMPT_FIELD]), reading=reading)
        prompts = (_prompt_of(row.values, row.source) for row in rows)
    for prompt in prompts:
        found = True
        yield prompt
    if not found:
        what = named(path) if path == STDIN else f"--prompt-file {path}"
        raise InputError(f"{what} has no prompts; write one a line")


def _of_lines(path: Path, reading: ReadOptions) -> Iterator[Prompt]:
    for number, (line, _) in enumerate(text_lines(path, reading), 1):
        yield Prompt(line.removesuffix("\n"), f"{named(path)}:{number}")


def _of_stream(reading: ReadOptions) -> Iterator[Prompt]:
    as_json = None
    for line in _of_lines(STDIN, reading):
        value = _object_in(line.text) if as_json is not False else None
        if as_json is None:
            as_json = value is not None and PROMPT_FIELD in value
        if not as_json:
            yield line
        elif line.text.strip():
            if value is None:
                raise InputError(f"{line.source} is not a JSON object, as the first line is")
            yield _prompt_of(value, line.source)


def _object_in(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except Malformed:
        return None
    return value if isinstance(value, dict) else None


def _prompt_of(values: Mapping[str, Any], source: str) -> Prompt:
    value = values.get(PROMPT_FIELD)
    if not isinstance(value, str):
        raise InputError(
            f"{source} has no text {PROMPT_FIELD!r}; every row of a prompt file needs one"
        )
    return Prompt(value, source)


def as_record(answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer as JSON has it."""
    return {
        "prompt": answer.prompt.text,
        "source": answer.prompt.source,
        "completions": [
            {
                "text": completion.text,
                "finish": completion.finish,
                "tokens": [tokenizer.id_to_token(number) for number in completion.ids],
                "ids": list(completion.ids),
                "log_probs": list(completion.log_probs),
                **({} if completion.score is None else {"score": completion.score}),
            }
            for completion in answer.completions
        ],
    }


def write_records(output: Output, records: Sequence[dict[str, Any]]) -> None:
    """Write a JSON object a line, into a file all or nothing."""
    lines = (to_json(record) + "\n" for record in records)
    output.write("".join(lines))
