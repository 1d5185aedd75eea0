"""The models that are served: opened by what they do, each under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llmctl.errors import InputError, UsageError
from llmctl.formats.description import CHAT, NEXT_TOKEN_KINDS, TOKENIZER
from llmctl.formats.sampling_defaults import NONE, taken_defaults
from llmctl.inference.constraints import Grammars
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Engine, EngineConfig
from llmctl.inference.weights import Kernels, WeightType, chosen_kernels, prepare
from llmctl.reporting.reporter import Reporter
from llmctl.serving.errors import HTTPError
from llmctl.tasks import TASKS
from llmctl.tasks.embed.texts import TextEmbedder
from llmctl.tasks.explanation import ExplainedAnswer, Explainer
from llmctl.tasks.generation import check_draft, check_draft_tokens, engine_draft
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace


@dataclass
class ServedModel:
    """A model that answers under a name."""

    name: str
    opened: OpenedModel
    created: int
    device: str = "auto"
    engine: Engine | None = None
    """What writes its texts; None: it writes none."""
    predictor: Predictor | None = None
    """What gives its classes; None: it has none."""
    embedder: TextEmbedder | None = None
    """What makes its vectors; None: it makes none."""
    sampling: dict[str, float] = field(default_factory=dict)
    """How its texts are chosen where a request doesn't say it, by the names of
    ``GenerationConfig``'s fields."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.opened.folder.tokenizer

    @property
    def context(self) -> int:
        """Tokens that it reads at most."""
        if self.engine is not None:
            return self.engine.scheduler.context
        return int(self.opened.folder.max_length)

    @property
    def writer(self) -> Engine:
        """Its engine. Raises HTTPError if it doesn't write."""
        if self.engine is None:
            raise HTTPError(
                f"{self.name} is {self.opened.described}, and doesn't write text", param="model"
            )
        return self.engine

    @cached_property
    def template(self) -> ChatTemplate | None:
        """How it has a conversation; None: it has learned none."""
        folder = self.opened.folder
        made_here = TOKENIZER in folder.fields
        if folder.tokenizer.chat_template is None or (made_here and not folder.fields.get(CHAT)):
            return None
        return ChatTemplate(folder.tokenizer.chat_template, folder.tokenizer)

    @cached_property
    def turn_end(self) -> int | None:
        """The token that ends an answer; None: the template has none."""
        try:
            return None if self.template is None else self.template.answer_end
        except InputError:
            return None

    @cached_property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer whose turns end as the template's do. There is one: what a tokenizer knows
        of its pieces' bytes takes a tenth of a second to be found out."""
        if self.turn_end is None:
            return self.tokenizer
        tokenizer = copy(self.tokenizer)
        tokenizer.special = {**tokenizer.special, "turn_end": self.turn_end}
        return tokenizer

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        own = CompiledSamplingParams(GenerationConfig(), self.tokenizer).ends
        return own if self.turn_end is None else own | {self.turn_end}

    @cached_property
    def grammars(self) -> Grammars:
        """What keeps its texts to a form. Raises HTTPError where that can't be."""
        try:
            return Grammars(self.tokenizer, self.ends)
        except UsageError as error:
            raise HTTPError(str(error), param="response_format") from None

    @cached_property
    def explainer(self) -> Explainer:
        """What explains its answers, with a network of its own. Raises InputError if they can't
        be explained."""
        explainer = TASKS[self.opened.kind].explainer()
        if explainer is None:
            raise InputError(f"the answers of {self.opened.described} are not explained yet")
        return explainer(self.opened, ExplainedAnswer(), self.device)

    def card(self) -> dict[str, Any]:
        """What ``/v1/models`` says of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "llmctl",
            "root": self.opened.name,
            "parent": self.name.partition(":")[0] if ":" in self.name else None,
            "max_model_len": self.context,
            "kind": self.opened.kind,
            "chat": self.template is not None,
            "sampling": dict(self.sampling),
        }


def open_models(
    workspace: Workspace,
    starts: Sequence[str],
    engine: EngineConfig,
    *,
    device: str,
    dtype: WeightType,
    kernels: Kernels,
    adapters: Sequence[str] = (),
    draft: str | None = None,
    created: int,
    generation_config: str = NONE,
    reporter: Reporter | None = None,
) -> dict[str, ServedModel]:
    """Models by the names under which they answer: a run's, a folder's last part, or what stands
    before ``=``. adapters: ``NAME=FOLDER``, each served as its base's name, a colon and its own;
    the base is the first model. draft: a smaller model that writes ahead for all that write.
    generation_config: whose says how texts are chosen where a request doesn't; of an
    adapter without a word of it its base does.

    Raises InputError for one that is not there or does nothing that is served, UsageError for a
    name that comes twice, and a draft whose vocabulary is another than that of one that writes.
    """
    reporter = reporter or Reporter()
    check_draft_tokens(engine, draft)
    models: dict[str, ServedModel] = {}
    GenerationConfig.model_rebuild()  # before requests do it, each in a thread of its own
    chosen = chosen_kernels(kernels, dtype, choose_device(device, "--device"), reporter.note)
    named = [_named(start) for start in starts]
    for adapter in adapters:
        own, path = _named(adapter)
        named.append((f"{named[0][0]}:{own}", path))
    ahead = None
    if draft is not None:
        # As many rows as the models have.
        rows = max(2, engine.max_sequences)
        ahead = Draft(OpenedModel.open(workspace, draft, owning=True), device, dtype, chosen, rows)
    for name, start in named:
        if name in models:
            raise UsageError(
                f"two models would be called {name}; give one another name: --from NAME={start}"
            )
        served = _open(workspace, name, start, engine, device, dtype, chosen, ahead, created)
        models[name] = served
        if served.engine is not None:
            served.sampling = taken_defaults(
                served.opened.folder,
                generation_config,
                fields=GenerationConfig,
                given=(),
                user=f"serve ({name})",
                first=f"what a request of {name} says goes before it",
                reporter=reporter,
            )
    if ahead is not None and not any(model.engine for model in models.values()):
        raise UsageError(f"--draft {draft}: none of the models writes text; leave it out")
    _check_heard(dtype, kernels, models, reporter)
    return models


def _check_heard(
    dtype: WeightType, kernels: Kernels, models: Mapping[str, ServedModel], reporter: Reporter
) -> None:
    """Tell which models an option for weights leaves as they are. Raises UsageError where it does
    with all."""
    usual = {"dtype": "fp32", "kernels": "auto"}
    given = {"dtype": dtype, "kernels": kernels}
    asked = " ".join(f"--{name} {value}" for name, value in given.items() if value != usual[name])
    others = [name for name, model in models.items() if model.engine is None]
    if not asked or not others:
        return
    if len(others) == len(models):
        raise UsageError(f"{asked}: none of the models writes text; leave it out")
    reporter.note(f"{asked} is of models that write; it leaves {', '.join(others)} as before")


@dataclass
class Draft:
    """A smaller model that writes ahead for all of a server's."""

    opened: OpenedModel
    device: str
    dtype: WeightType
    kernels: Kernels
    rows: int
    """Texts that are written at once."""

    def of(self, served: ServedModel) -> DecoderRunner:
        """What writes ahead for a model. Raises UsageError where that has another vocabulary."""
        check_draft(self.opened, served.tokenizer, served.name)
        return self._decoder

    @cached_property
    def _decoder(self) -> DecoderRunner:
        return engine_draft(
            self.opened,
            device=self.device,
            dtype=self.dtype,
            kernels=self.kernels,
            rows=self.rows,
        )


def _named(start: str) -> tuple[str, str]:
    name, equals, path = start.partition("=")
    if equals and name and path:
        return name, path
    return start.rstrip("/").rpartition("/")[2], start


def _open(
    workspace: Workspace,
    name: str,
    start: str,
    config: EngineConfig,
    device: str,
    dtype: WeightType,
    kernels: Kernels,
    draft: Draft | None,
    created: int,
) -> ServedModel:
    opened = OpenedModel.open(workspace, start, owning=True)
    served = ServedModel(name, opened, created, device)
    if opened.kind in NEXT_TOKEN_KINDS:
        folder = opened.folder
        model = folder.causal_lm().to(choose_device(device, "--device"))
        # With a row of one kind and another: packed for several.
        head = prepare(model, dtype, rows=max(2, config.max_sequences), kernels=kernels)
        decoder = CausalDecoder(
            model, longest=folder.max_length, head=head, tokenizer=folder.tokenizer
        )
        served.engine = Engine(decoder, config, draft=None if draft is None else draft.of(served))
    elif opened.kind == "embed":
        served.embedder = TextEmbedder(opened, device=device)
    elif opened.kind == "classify":
        predictor = TASKS["classify"].predictor()
        assert predictor is not None
        served.predictor = predictor.for_model(opened)(opened, device)
    else:
        raise InputError(
            f"{start} is {opened.described}, which llmctl serve has no address for; give a model "
            "that writes, an embedder or a classifier"
        )
    return served
