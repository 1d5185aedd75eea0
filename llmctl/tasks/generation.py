"""Generation: models that are ready to write, whatever the task makes of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from llmctl.errors import InputError, UsageError
from llmctl.formats.sampling_defaults import AUTO
from llmctl.inference.constraints import GrammarKind, Grammars
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, Completion, GenerationConfig
from llmctl.inference.decoding import generate as write_texts
from llmctl.inference.decoding.batches import block_size
from llmctl.inference.decoding.config import DEFAULT_CANDIDATES, MOST_AT_ONCE
from llmctl.inference.engine import Constraint, Engine, EngineConfig
from llmctl.inference.weights import Kernels, WeightType, chosen_kernels
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

TEXTS = 8
"""Texts that are written together by default."""


class GenerateConfig(GenerationConfig):
    """How texts are written, and on what."""

    batch_size: int = Field(0, ge=0)
    """Texts that are written together, each beam counted. 0: 8, and where texts are written from
    sources as many as make 64 sources."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    dtype: WeightType = "fp32"
    """Number format of the weights; int8 and int4 are the fastest on a processor."""
    kernels: Kernels = "auto"
    """Whose products int8 and int4 weights are multiplied by: torch, PyTorch's; native, ours, which
    this machine's C compiler makes when they are first asked for; auto: ours on a processor with
    AVX-512 VNNI, if there is a compiler."""
    generation_config: str = AUTO
    """Whose generation_config.json says how texts are chosen, where nothing else does: auto, the
    model's own; none; or that of another folder."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, and where it is from."""

    text: str
    source: str
    suffix: str | None = None
    """What comes behind what is to be written; None: nothing is said of it."""


@dataclass(frozen=True)
class Generated:
    """What was written behind a prompt."""

    prompt: Prompt
    completions: list[Completion]


class TextGenerator(ABC):
    """A language model that is ready to write."""

    from_sources: ClassVar[bool] = False
    """Whether prompts are sources that a text is written from."""

    def __init__(
        self,
        model: OpenedModel,
        config: GenerateConfig,
        *,
        draft: OpenedModel | None = None,
        prompts: int | None = None,
        form: tuple[GrammarKind, Any] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """form: what the texts are kept to. draft: a smaller model that writes ahead. prompts: how
        many there will be, if that is known; weights are laid out for it.

        Raises InputError if one of them writes no text, UsageError if their vocabularies differ.
        """
        self.reporter = reporter or Reporter()
        self.model, self.tokenizer = model, model.folder.tokenizer
        if not config.batch_size:
            config = config.replace(batch_size=self.default_batch(config))
        self._rows = rows_at_once(config, prompts)
        # Of each text several tokens are read at once where some are guessed.
        guesses = draft is not None or config.prompt_lookup is not None
        check_draft_tokens(config, draft)
        device = choose_device(config.device, "--device")
        kernels = chosen_kernels(config.kernels, config.dtype, device, self.reporter.note)
        self.config = config = config.replace(kernels=kernels)
        rows = self._rows * (config.draft_tokens + 1 if guesses else 1)
        self._decoder = self.decoder(model, config, rows)
        self._draft_model = draft
        self._draft: DecoderRunner | None = None
        if draft is not None:
            together = self._rows if Engine.writes(self._decoder, config) else 1
            check_draft(draft, self.tokenizer, model.name)
            self._draft = draft_decoder(draft, config, rows=together)
        self._rules = CompiledSamplingParams(config, self.tokenizer)
        self._told = False
        self._constraint: Callable[[], Constraint] | None = None
        self._by_engine = Engine.writes(self._decoder, config) and (
            self._draft is None or Engine.guesses_by(self._draft)
        )
        if config.prompt_lookup is not None and not self._by_engine:
            raise UsageError(
                f"--prompt-lookup goes with decoders that write token by token, and {model.name} "
                f"is {model.described}; leave it out"
            )
        if form is not None:
            self._check_constrained()
            self._constraint = Grammars(self.tokenizer, self._rules.ends).constraint(*form)
        self._form = form

    def identity(self) -> dict[str, Any]:
        """What decides the texts. The weights' digests are among it, for which they are read."""
        models = [self.model, *([self._draft_model] if self._draft_model else [])]
        value = {"models": [one.record.digest for one in models], "config": self.config.identity()}
        return value if self._form is None else {**value, "form": list(self._form)}

    @classmethod
    def default_batch(cls, config: GenerateConfig) -> int:
        """Texts that are written together where that is not given, each beam counted."""
        return TEXTS

    @staticmethod
    @abstractmethod
    def decoder(model: OpenedModel, config: GenerateConfig, rows: int) -> DecoderRunner:
        """A model that is ready to write so many rows at once.

        Raises InputError if it writes no text, UsageError for options that don't go with it.
        """

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt as the model reads it. Raises InputError for one that it can't."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that a text may have; None: any number."""
        return self._decoder.max_positions

    def note_once(self, text: str) -> None:
        """Tell the first thing that is to be told of prompts."""
        if not self._told:
            self._told = True
            self.reporter.note(text)

    def answers(
        self,
        prompts: Iterable[Prompt],
        on_text: Callable[[str], None] | None = None,
        *,
        first: int = 0,
    ) -> Iterator[Generated]:
        """What is written behind each prompt, in their order; from each, if the model was finetuned
        on pairs of texts.

        first: the first prompt's number, by which samples are drawn. on_text: is told the text as
        it becomes certain; for one prompt and one sample. Several processes divide the prompts.
        Raises InputError for a prompt that doesn't fit into the model's context.
        """
        world = get_world()
        # A round of all processes is what one alone sorts by length among themselves.
        block = max(1, self.block_size // world.size)
        yield from world.map_sharded(
            prompts,
            lambda part, begin: self._answers(part, on_text, first + begin),
            block=block,
            kind=Generated,
        )

    def _answers(
        self, prompts: Iterable[Prompt], on_text: Callable[[str], None] | None, first: int
    ) -> Iterator[Generated]:
        asked: list[Prompt] = []

        def encoded() -> Iterator[list[int]]:
            for prompt in prompts:
                asked.append(prompt)
                yield self.encode(prompt)

        if self._by_engine:
            assert isinstance(self._decoder, CausalDecoder)
            how = EngineConfig(
                max_sequences=min(self._rows, MOST_AT_ONCE),
                draft_tokens=self.config.draft_tokens,
                prompt_lookup=self.config.prompt_lookup,
            )
            engine = Engine(self._decoder, how, draft=self._draft)
            written = engine.run(
                encoded(),
                self._rules,
                first=first,
                constraint=self._constraint,
                on_text=on_text or (lambda text: None),
            )
        else:
            written = write_texts(
                self._decoder,
                encoded(),
                self._rules,
                draft=self._draft,
                batch_size=self.config.batch_size,
                first=first,
                on_text=on_text,
            )
        for number, completions in enumerate(written):
            yield Generated(asked[number], completions)

    def _check_constrained(self) -> None:
        """Raises UsageError where texts can't be kept to a form."""
        if self._draft is not None and not self._by_engine:
            raise UsageError(
                "--draft that reads sources is not for texts that are kept to a form; leave it out"
            )
        if not isinstance(self._decoder, CausalDecoder) or self.from_sources:
            raise UsageError(
                f"{self.model.name} can't be kept to a form: that is for a GPT, a Llama or another "
                "decoder; leave the option out"
            )
        if self.config.rows_each > self.config.num_samples or self.config.penalty_alpha is not None:
            raise UsageError(
                "a text that is kept to a form is written token by token: leave out num_beams and "
                "penalty_alpha"
            )

    @property
    def block_size(self) -> int:
        """Prompts that are sorted by length among themselves."""
        drafted = self._draft is not None and not self._by_engine
        return block_size(self.config, self.config.batch_size, drafted=drafted)


def rows_at_once(config: GenerateConfig, prompts: int | None) -> int:
    """Texts that are written at once. prompts: None where it isn't known."""
    if config.penalty_alpha is not None:
        return config.top_k or DEFAULT_CANDIDATES
    batch = max(1, config.batch_size // config.rows_each)
    return config.rows_each * (batch if prompts is None else min(batch, prompts))


def check_draft(draft: OpenedModel, tokenizer: Tokenizer, name: str) -> None:
    """Raises UsageError where a draft has another vocabulary than the model of that name."""
    if draft.folder.tokenizer.pieces_digest() != tokenizer.pieces_digest():
        raise UsageError(
            f"--draft {draft.name} has another vocabulary than {name}; take a smaller model that "
            "was trained on the same shards"
        )


def check_draft_tokens(config: GenerationConfig | EngineConfig, draft: object) -> None:
    """Raises UsageError for a number of tokens to guess ahead where nothing guesses: no draft, and
    no prompt lookup."""
    usual = type(config).model_fields["draft_tokens"].get_default()
    if draft is None and config.prompt_lookup is None and config.draft_tokens != usual:
        raise UsageError(
            f"--draft-tokens {config.draft_tokens}: nothing guesses ahead; give --draft or "
            "--prompt-lookup, or leave it out"
        )


def draft_decoder(draft: OpenedModel, config: GenerateConfig, *, rows: int) -> DecoderRunner:
    """What writes ahead, so many rows at once. Raises InputError if it writes no text."""
    if draft.kind == "ngram":  # which has no weights to be of a type
        config = config.replace(dtype="fp32", kernels="torch")
    return generator_of(draft).decoder(draft, config, rows=rows)


def engine_draft(
    draft: OpenedModel, *, device: str, dtype: WeightType, kernels: Kernels, rows: int
) -> DecoderRunner:
    """What writes ahead in an engine, so many rows at once. Raises InputError if it writes no text,
    UsageError if it reads sources."""
    config = GenerateConfig(device=device, dtype=dtype, kernels=kernels)
    decoder = draft_decoder(draft, config, rows=rows)
    if not Engine.guesses_by(decoder):
        raise UsageError(
            f"--draft {draft.name} is {draft.described}, and writes from sources; take a GPT, a "
            "Llama or an n-gram model"
        )
    return decoder


def generator_of(model: OpenedModel) -> type[TextGenerator]:
    """How a model writes. Raises InputError if it writes no text."""
    generator = TASKS[model.kind].generator()
    if generator is None:
        raise InputError(
            f"{model.folder.path} is {model.described}, and doesn't write text; give a GPT, a "
            "Llama or a nanochat model"
        )
    return generator
