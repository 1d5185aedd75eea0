"""``/v1/completions``: texts that go on from prompts, with log-probabilities where they are asked
for, the prompt's own too."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response

from llmctl.inference.engine.requests import Scored
from llmctl.serving import sampling
from llmctl.serving.errors import HTTPError
from llmctl.serving.generation import Generation, Job, Written, spelt
from llmctl.serving.models import ServedModel
from llmctl.serving.protocol import CompletionBody, TextsOrIds, parsed
from llmctl.serving.state import Serving, now, read_body
from llmctl.serving.streaming import data_line, streamed


async def completions(asked: Asked) -> Response:
    """Go on from prompts."""
    serving: Serving = asked.app.state.serving
    body = parsed(CompletionBody, await read_body(asked, serving.config))
    served = serving.kind_of(body.model, "engine", "doesn't write text")
    job = await asyncio.to_thread(_job, serving, served, body)
    generation = Generation(serving, job, asked)
    document = {
        "id": f"cmpl-{body.request_id or secrets.token_hex(12)}",
        "object": "text_completion",
        "created": now(),
        "model": served.name,
    }
    answer = _Answer(served, body, job)
    if body.stream:
        return await streamed(_events(generation, answer, document, body))
    texts = await generation.whole()
    choices = [answer.choice(text, text.text, text.scored, first=True) for text in texts]
    return JSONResponse({**document, "choices": choices, "usage": generation.usage.document()})


async def _events(
    generation: Generation, answer: _Answer, document: dict[str, Any], body: CompletionBody
) -> AsyncIterator[str]:
    options = body.stream_options
    async for text, token in generation.events():
        assert token.scored is not None
        choice = answer.choice(text, token.text, [token.scored], first=len(text.scored) == 1)
        chunk = {**document, "choices": [choice]}
        if options and options.continuous_usage_stats:
            chunk["usage"] = generation.usage.document()
        yield data_line(chunk)
    if options and options.include_usage:
        yield data_line({**document, "choices": [], "usage": generation.usage.document()})


class _Answer:
    """How texts are told."""

    def __init__(self, served: ServedModel, body: CompletionBody, job: Job) -> None:
        self._served, self._body, self._job = served, body, job
        self._offsets: dict[int, int] = {}

    def choice(
        self, text: Written, piece: str, scored: Sequence[Scored], *, first: bool
    ) -> dict[str, Any]:
        """A text, or a piece of one that is streamed. first: with its beginning."""
        body = self._body
        if body.echo and body.max_tokens == 0:  # one was written all the same, to read the prompt
            piece, scored = "", ()
        if first and body.echo:
            prompt = self._job.prompts[text.index // self._job.samples]
            piece = self._served.tokenizer.decode(prompt, skip_special=False) + piece
            scored = [*text.prompt, *scored]
        choice: dict[str, Any] = {
            "index": text.index,
            "text": piece,
            "logprobs": None if body.logprobs is None else self._log_probs(text.index, scored),
            "finish_reason": text.finish,
        }
        if first and body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = [self._ranked(one) for one in text.prompt]
        return choice

    def _log_probs(self, index: int, scored: Sequence[Scored]) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        names, offsets = [], []
        for one in scored:
            name, _ = spelt(self._served, one.token)
            names.append(name)
            offsets.append(offset)
            offset += len(name)
        self._offsets[index] = offset
        return {
            "tokens": names,
            "token_logprobs": [one.log_prob for one in scored],
            "top_logprobs": [
                None
                if one.log_prob is None
                else {
                    spelt(self._served, token)[0]: value
                    # The likeliest last: of two that are spelt alike its value stays.
                    for token, value in reversed([*one.ranked, (one.token, one.log_prob)])
                }
                for one in scored
            ],
            "text_offset": offsets,
        }

    def _ranked(self, one: Scored) -> dict[str, Any] | None:
        """A token with its alternatives, by their numbers, which is vLLM's way."""
        if one.log_prob is None:
            return None
        return {
            str(token): {"logprob": value, "decoded_token": spelt(self._served, token)[0]}
            for token, value in [*one.ranked, (one.token, one.log_prob)]
        }


def _job(serving: Serving, served: ServedModel, body: CompletionBody) -> Job:
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(body, name)
        if value is not None and not 0 <= value <= sampling.MOST_TOP:
            raise HTTPError(f"{name}: has to be from 0 to {sampling.MOST_TOP}", param=name)
    if body.best_of not in (None, 1 if body.n is None else body.n):
        raise HTTPError(
            "best_of: only as many texts as n are written; leave it out", param="best_of"
        )
    if body.suffix:
        raise HTTPError("suffix: this field is not supported; leave it out", param="suffix")
    prompts = prompts_of(serving, served, body.prompt, special=body.add_special_tokens is not False)
    cut = body.truncate_prompt_tokens
    if cut is not None and cut != -1:
        if cut < 1:
            raise HTTPError(
                "truncate_prompt_tokens: has to be 1 or more, or -1", param="truncate_prompt_tokens"
            )
        prompts = [prompt[-cut:] for prompt in prompts]
    most = body.max_tokens
    if most == 0 and body.echo:
        most = 1
    default = serving.config.default_max_tokens
    rooms = [sampling.room_for(served, prompt, most, default) for prompt in prompts]
    rules, copies = sampling.compiled(served, body, max_tokens=max(rooms))
    prompt_top = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_top = max(body.logprobs, prompt_top or 0)
    return Job(
        served=served,
        prompts=prompts,
        rules=rules,
        copies=copies,
        constraint=sampling.constraint_of(served, body),
        top=body.logprobs or 0,
        prompt_top=prompt_top,
        user=body.user,
        salt=body.cache_salt or "",
    )


def prompts_of(
    serving: Serving,
    served: ServedModel,
    prompt: TextsOrIds,
    *,
    special: bool,
    param: str = "prompt",
) -> list[list[int]]:
    """The prompts of a request as tokens. Raises HTTPError for none, and for too many."""
    given: Any = prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 1 <= len(given) <= serving.config.max_inputs:
        raise HTTPError(
            f"{param}: has to be from 1 to {serving.config.max_inputs} texts", param=param
        )
    found = []
    for one in given:
        if isinstance(one, str):
            before = served.tokenizer.layout.before if special else ()
            ids = [*before, *served.tokenizer.encode(sampling.checked_text(one, param))]
            if not ids and (around := served.tokenizer.boundaries) is not None:
                ids = [around[0]]
        else:
            ids = sampling.checked_ids(served, one, param)
        if not ids:
            raise HTTPError(f"{param}: is empty; there is nothing to go on from", param=param)
        found.append(ids)
    return found
