"""A model as lm-evaluation-harness asks it: likelihoods of continuations and of whole texts, and
texts that go on until a stop.

Texts are cut into context and continuation by the harness's own rule (its ``TemplateLM``), so that
figures equal those of its own backend on the same model:

    the context's tokens, encoded alone; then what the two encoded as one have behind so many

What differs is the work: continuations of one context lie behind it in one row, rows are sorted by
length, and models that find hidden tokens are asked too, by pseudo-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmctl.errors import InputError, UsageError
from llmctl.inference.decoder import DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.decoding import generate as write_texts
from llmctl.inference.decoding.config import SAMPLING
from llmctl.inference.engine import Engine, EngineConfig
from llmctl.inference.scoring import Query, QueryScores, Scorer, start_token
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate

MAX_NEW_TOKENS = 256
"""Tokens that are written at most where a task doesn't say, as in the harness."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the number of tokens at most, the first before the others."""
OTHERS = ("num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty")
TEXTS_AT_ONCE = 16
"""Texts that are written together."""
Progress = Callable[[str, int, int], None]


class HarnessModel:
    """What the harness asks of a model, in its words."""

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        tokenizer: Tokenizer,
        *,
        decoder: Callable[[], DecoderRunner] | None,
        masked: bool = False,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """name: for messages. decoder: makes what writes; None: the model writes nothing. masked:
        whether whole texts are scored by hiding each token."""
        self.name, self.scorer, self.tokenizer = name, scorer, tokenizer
        self._make_decoder = decoder
        self._decoder: DecoderRunner | None = None
        self._masked, self._progress = masked, progress
        self._templated = False
        before = tokenizer.layout.before
        self.prefix = before[0] if before else start_token(tokenizer)
        """The token before a text that nothing else stands before."""

    @property
    def writes(self) -> bool:
        """Whether the model writes texts."""
        return self._make_decoder is not None

    def encode(self, text: str, *, alone: bool = True) -> list[int]:
        """The tokens of a text. alone: with what the tokenizer puts before one."""
        ids = self.tokenizer.encode(text, allow_special=self._templated)
        before = [] if not alone else list(self.tokenizer.layout.before)
        # A chat template writes the start token itself.
        return ids if before and ids[: len(before)] == before else [*before, *ids]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and of what follows it, by the harness's rule.

        Raises InputError where nothing is left to score.
        """
        if context:
            spaces = len(context) - len(context.rstrip())
            cut = len(context) - spaces
            shown = self.encode(context[:cut])
            scored = self.encode(context + continuation)[len(shown) :]
        else:
            shown, scored = [self.prefix], self.encode(continuation, alone=False)
            if scored[:1] == shown:
                scored = scored[1:]
        if not scored:
            raise InputError(
                f"--harness: {continuation!r} behind {context[-30:]!r} has no tokens of its own to "
                "score; mend the task's choices or its target_delimiter"
            )
        return shown or [self.prefix], scored

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation behind its context, and whether greedy decoding
        would write it."""
        pairs = [self.pair(context, continuation) for context, continuation in requests]
        return self._scored(pairs, "likelihoods")

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, whatever its length: in windows, each token once."""
        windows = [list(self._windows(self.encode(text))) for text in texts]
        scores = iter(
            self._scored([pair for pairs in windows for pair in pairs], "texts in windows")
        )
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What is written behind each context, up to a stop text, by a model that writes.

        Raises UsageError for options that aren't known.
        """
        assert self._make_decoder is not None
        self._decoder = self._decoder or self._make_decoder()
        groups: dict[str, list[int]] = {}
        configs: dict[str, GenerationConfig] = {}
        for number, (_, options) in enumerate(requests):
            config = generation_config(options)
            key = config.model_dump_json()
            configs[key] = config
            groups.setdefault(key, []).append(number)
        written, done = [""] * len(requests), 0
        for key, numbers in groups.items():
            config = configs[key]
            prompts = [self._prompt(requests[number][0], config) for number in numbers]
            rules = CompiledSamplingParams(config, self.tokenizer)
            if Engine.writes(self._decoder, config):
                engine = Engine(self._decoder, EngineConfig(max_sequences=TEXTS_AT_ONCE))
                texts = engine.run(prompts, rules)
            else:
                texts = write_texts(self._decoder, prompts, rules, batch_size=TEXTS_AT_ONCE)
            for number, (completion, *_) in zip(numbers, texts, strict=True):
                written[number], done = completion.text, done + 1
                self._progress("texts written", done, len(requests))
        return written

    def apply_chat_template(
        self, history: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template writes it. Raises UsageError without one."""
        source = self.chat_template
        if source is None:
            raise UsageError(
                f"--apply-chat-template: {self.name} has no chat template; leave it out, or give a "
                "model that has learned to answer"
            )
        self._templated = True
        messages: Any = [dict(turn) for turn in history]
        text = ChatTemplate(source, self.tokenizer).render(
            messages, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        # The last turn is to be gone on with: what closes it is left out.
        last = messages[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    @property
    def chat_template(self) -> str | None:
        """The source of the tokenizer's template, if it has one."""
        return self.tokenizer.chat_template

    def _windows(self, ids: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """A text in windows: what is seen, and what is scored behind it, each token once.

        From left to right, the last window begins as early as it can. A masked model's stand side
        by side between its own start and end.
        """
        longest, stream = self.scorer.longest or len(ids), [self.prefix, *ids]
        if self._masked:
            stream = stream[1:] if list(ids[:1]) == [self.prefix] else stream
            longest -= 1 + len(self.tokenizer.layout.after)
        begin = 1
        while begin < len(stream):
            stop = min(begin + longest, len(stream))
            shown = stream[max(0, stop - longest - 1) : begin]
            yield ([self.prefix] if self._masked else shown), stream[begin:stop]
            begin = stop

    def _scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], what: str
    ) -> list[tuple[float, bool]]:
        """Scores of pairs in their order, those of one context together."""
        together: dict[tuple[int, ...], list[int]] = {}
        for number, (shown, scored) in enumerate(pairs):
            longest = self.scorer.longest
            fits = longest is None or len(shown) + len(scored) - 1 <= longest
            # What is cut to fit the longest of several would be cut for all.
            key = tuple(shown) if fits else (-number - 1,)
            together.setdefault(key, []).append(number)
        queries = [
            Query(
                np.array(pairs[numbers[0]][0], dtype=np.int64),
                [np.array(pairs[number][1], dtype=np.int64) for number in numbers],
                "--harness: a text",
            )
            for numbers in together.values()
        ]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        done = 0
        answers: Iterator[QueryScores] = self.scorer.score(iter(queries), greedy=True)
        for numbers, answer in zip(together.values(), answers, strict=True):
            for number, score in zip(numbers, answer.scores, strict=True):
                results[number] = (score.total, bool(score.greedy))
            done += len(numbers)
            self._progress(what, done, len(pairs))
        return results

    def _prompt(self, text: str, config: GenerationConfig) -> list[int]:
        """A context's tokens, with room for what is to be written behind the last of them.

        Raises UsageError where there is none.
        """
        assert self._decoder is not None
        ids, most = self.encode(text) or [self.prefix], self._decoder.max_positions
        if most is None:
            return ids
        room = most - config.max_new_tokens
        if room < 1:
            raise UsageError(
                f"--harness: a task has {config.max_new_tokens} tokens written, and {self.name} "
                f"reads {most} at once; set max_gen_toks in its generation_kwargs to less"
            )
        return ids[-room:]


def generation_config(options: Mapping[str, Any]) -> GenerationConfig:
    """A task's generation_kwargs as ours. Raises UsageError for one that isn't known."""
    known = {"until", "do_sample", *LENGTHS, *SAMPLING, *OTHERS}
    if strange := sorted(options.keys() - known):
        raise UsageError(
            f"--harness: generation_kwargs has {', '.join(strange)}, which is not known here; use "
            f"{', '.join(sorted(known))}"
        )
    length = next((options[name] for name in LENGTHS if options.get(name) is not None), None)
    until = options.get("until") or ()
    values: dict[str, Any] = {
        "max_new_tokens": MAX_NEW_TOKENS if length is None else int(length),
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
    }
    values |= {name: options[name] for name in OTHERS if options.get(name) is not None}
    # As in the harness: without do_sample the likeliest token always, whatever else is said.
    if options.get("do_sample"):
        values |= {name: options[name] for name in SAMPLING if options.get(name) is not None}
        values.setdefault("temperature", 1.0)
    return GenerationConfig(**values)


def as_lm(model: HarnessModel) -> Any:
    """The model as an ``lm_eval.api.model.LM``, a class that is there with the harness only."""
    from lm_eval.api.model import LM

    class HarnessLM(LM):
        """What the harness calls."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return model.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return model.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return model.generate_until([request.args for request in requests])

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return model.apply_chat_template(
                chat_history, add_generation_prompt=add_generation_prompt
            )

        def chat_template(self, chat_template: Any = False) -> str | None:
            return model.chat_template if chat_template else None

        @property
        def tokenizer_name(self) -> str:
            return model.name.replace("/", "__")

    return HarnessLM()
