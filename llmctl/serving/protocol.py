"""The fields of requests: what each means, and which are refused.

A field that would change a result and isn't known is refused by name, never passed over. Those that
only say who asks, or ask for what is done anyway, are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
)

from llmctl.serving.errors import HTTPError

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
TokenNumbers = list[StrictInt]


def _no_other_kind(value: Any) -> Any:
    """Python takes 0 for False and True for 1; JSON doesn't."""
    if value is not None and not isinstance(value, bool):
        raise ValueError("has to be true or false")
    return value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("has to be a number")
    return value


OnlyTrue = Annotated[Literal[True], BeforeValidator(_no_other_kind)]
OnlyFalse = Annotated[Literal[False], BeforeValidator(_no_other_kind)]
OnlyZero = Annotated[Literal[0], BeforeValidator(_no_truth)]
OnlyOne = Annotated[Literal[1], BeforeValidator(_no_truth)]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    user: str | None = None
    request_id: str | None = None


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: OnlyFalse | None = None


class Structured(BaseModel):
    """One way of constraining the output."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's way of asking for JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Sampling(Body):
    """How texts are written, in chat and in completions."""

    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repetition_penalty: Number | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    allowed_token_ids: TokenNumbers | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenNumbers | None = None
    ignore_eos: bool = False
    min_tokens: StrictInt = 0
    max_tokens: StrictInt | None = None
    n: StrictInt | None = None
    seed: StrictInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    cache_salt: str | None = None
    truncate_prompt_tokens: StrictInt | None = None
    add_special_tokens: bool | None = None
    # Taken at the value that says what is done anyway.
    priority: OnlyZero = 0
    skip_special_tokens: OnlyTrue = True
    spaces_between_special_tokens: StrictBool | None = None
    include_stop_str_in_output: OnlyFalse = False
    use_beam_search: OnlyFalse = False
    length_penalty: OnlyOne | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = None
    store: OnlyFalse | None = None


TextsOrIds = str | list[str] | TokenNumbers | list[TokenNumbers]


class CompletionBody(Sampling):
    """A text to go on from."""

    prompt: TextsOrIds
    echo: bool | None = None
    logprobs: StrictInt | None = None
    prompt_logprobs: StrictInt | None = None
    best_of: StrictInt | None = None
    suffix: str | None = None


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class Function(BaseModel):
    """A function that a model may call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool, which is a function."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


class ChatBody(Sampling):
    """A conversation to be answered."""

    messages: list[dict[str, Any]]
    max_completion_tokens: StrictInt | None = None
    logprobs: bool | None = None
    top_logprobs: StrictInt | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: OnlyTrue = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesTool(BaseModel):
    """A function, as OpenAI's newer way has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesBody(Body):
    """OpenAI's newer way to ask, without its memory of earlier answers."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    truncation: Literal["disabled"] | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    background: OnlyFalse | None = None


class EmbeddingBody(Body):
    """Texts to be made vectors of."""

    input: TextsOrIds
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = None


class ClassifyBody(Body):
    """Texts to be classified."""

    input: str | list[str]


class ExplainBody(Body):
    """A text whose class is to be explained."""

    input: str
    method: str | None = None
    answer: str | None = None


class RerankBody(Body):
    """Documents to be put in the order in which they suit a query."""

    query: str
    documents: list[str]
    top_n: StrictInt | None = None
    return_documents: bool = True


class TokenizeBody(Body):
    """A text, or a conversation, to be cut into tokens."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: OnlyTrue = True
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Tokens to be made a text."""

    tokens: TokenNumbers


B = TypeVar("B", bound=Body)

FALSE_FRIENDS = {
    "logprobs": "is true or false in chat, and a number of alternatives in completions",
    "functions": "is OpenAI's older name; use tools",
    "function_call": "is OpenAI's older name; use tool_choice",
}


def parsed(kind: type[B], value: Any) -> B:
    """A request's body. Raises HTTPError naming the field that can't be taken."""
    if not isinstance(value, dict):
        raise HTTPError("the body has to be a JSON object")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"] if not _is_alternative(part))
        top = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            message = (
                f"{name[:100]}: this field is not supported, and would be passed over; leave it out"
            )
        else:
            message = f"{name[:100]}: {first['msg'].removeprefix('Value error, ')}"
        if top in FALSE_FRIENDS:
            message += f" ({top} {FALSE_FRIENDS[top]})"
        raise HTTPError(message, param=top and top[:100]) from None


def _is_alternative(part: int | str) -> bool:
    """Whether a part of a place names a type among several, and no field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)
