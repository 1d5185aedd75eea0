"""Chat: a model that has learned to answer, and a conversation with it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from llmctl.config import build
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import CHAT, TOKENIZER
from llmctl.formats.open import open_model
from llmctl.formats.sampling_defaults import AUTO, taken_defaults
from llmctl.inference.chat import ChatSession
from llmctl.inference.constraints import GrammarKind
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import GenerationConfig
from llmctl.inference.weights import Kernels, WeightType, chosen_kernels, prepare
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.generation import check_draft, check_draft_tokens, engine_draft
from llmctl.tasks.opened import OpenedModel
from llmctl.tokenizers.chat_template import ChatTemplate
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Workspace


class ChatConfig(GenerationConfig):
    """How answers are chosen: as in generation, for one answer at a time."""

    max_new_tokens: int = Field(256, ge=1)
    """Tokens of an answer at most."""
    temperature: float | None = 0.7
    """Logits are divided by it: below 1 sharper, above 1 flatter; 0: the likeliest token always."""
    top_p: float | None = 0.9
    """Sample among the likeliest tokens that together have this probability."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    dtype: WeightType = "fp32"
    """Number format of the weights; int8 and int4 are the fastest on a processor."""
    kernels: Kernels = "auto"
    """Whose products int8 and int4 weights are multiplied by: torch, PyTorch's; native, ours, which
    this machine's C compiler makes when they are first asked for; auto: ours on a processor with
    AVX-512 VNNI, if there is a compiler."""
    generation_config: str = AUTO
    """Whose generation_config.json says how answers are chosen, where nothing else does: auto, the
    model's own; none; or that of another folder."""

    @model_validator(mode="before")
    @classmethod
    def _one_by_one(cls, values: Any) -> Any:
        for name, only in ONE_BY_ONE.items():
            if isinstance(values, dict) and values.get(name, only) != only:
                raise ValueError(
                    f"{name} {values[name]}: a chat writes one answer, token by token; leave it out"
                )
        return values


ONE_BY_ONE = {"num_beams": 1, "num_samples": 1, "penalty_alpha": None}
"""Fields that a conversation can't have another value of."""


def open_chat(
    workspace: Workspace,
    start: str,
    config: ChatConfig,
    *,
    system: str | None = None,
    form: tuple[GrammarKind, Any] | None = None,
    draft: str | None = None,
    reporter: Reporter | None = None,
) -> ChatSession:
    """A conversation with the model of a run or of a folder.

    system: what stands before the conversation. form: what answers are kept to. draft: a smaller
    model that writes ahead. What the folder's generation_config.json says of how answers are chosen
    counts where the configuration was not given otherwise, and is told. Raises InputError if the
    model doesn't answer, or the form can't be used, UsageError for a draft of another vocabulary.
    """
    check_draft_tokens(config, draft)
    where = choose_device(config.device, "--device")
    folder, _ = open_model(workspace, start)
    reporter = reporter or Reporter()
    config = _as_the_folder_says(folder, config, reporter)
    kernels = chosen_kernels(config.kernels, config.dtype, where, reporter.note)
    model = folder.owning().causal_lm().to(where)
    made_here = TOKENIZER in folder.fields
    if folder.tokenizer.chat_template is None or (made_here and not folder.fields.get(CHAT)):
        raise InputError(
            f"{start} has not learned to answer; finetune it first: llmctl finetune --from {start} "
            "--task instruct --data FILE"
        )
    ahead = None
    if draft is not None:
        smaller = OpenedModel.open(workspace, draft)
        check_draft(smaller, folder.tokenizer, start)
        ahead = engine_draft(
            smaller, device=config.device, dtype=config.dtype, kernels=kernels, rows=1
        )
    guesses = draft is not None or config.prompt_lookup is not None
    rows = config.draft_tokens + 1 if guesses else 1
    head = prepare(model, config.dtype, rows=rows, kernels=kernels)
    decoder = CausalDecoder(model, longest=folder.max_length, head=head, tokenizer=folder.tokenizer)
    template = ChatTemplate(folder.tokenizer.chat_template, folder.tokenizer)
    session = ChatSession(decoder, folder.tokenizer, template, config, form=form, draft=ahead)
    if system is not None:
        session.set_system(system)
    return session


def _as_the_folder_says(model: Pretrained, config: ChatConfig, reporter: Reporter) -> ChatConfig:
    """The configuration with a folder's own values of what was not given."""
    given = config.model_fields_set
    taken = taken_defaults(
        model,
        config.generation_config,
        fields=GenerationConfig,
        given=given,
        user="a chat",
        reporter=reporter,
    )
    # The chat's own temperature and top_p go together, so one isn't kept without the other.
    own = {"top_p": None} if "temperature" in taken else {}
    return build(ChatConfig, own, config.model_dump(exclude_unset=True), taken)
