"""``llmctl chat``."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from llmctl.cli import artefact_names, forms, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import flag, option
from llmctl.errors import InputError
from llmctl.reporting.visible import visible

if TYPE_CHECKING:
    from llmctl.inference.chat import ChatSession
    from llmctl.reporting.reporter import Reporter

EXAMPLE = "Example: llmctl chat --from alpaca-gpt-docs"

PROMPT = "> "
HELP = "/reset begins anew, /system TEXT says who answers, /exit ends; Ctrl-C stops an answer"
COMMAND = re.compile(r"/[a-z]+", re.IGNORECASE)
"""What looks like a command, and is none of the model's business: no path, and no /3."""


@guarded
def command(
    start: str = option(
        "A run of finetune --task instruct, or a model folder.",
        "--from",
        default=...,
        autocompletion=artefact_names.RUNS,
    ),
    system: str | None = option("What stands before the conversation, as /system says it."),
    max_new_tokens: int | None = option("Tokens of an answer at most.", show_default="256"),
    temperature: float | None = option(
        "Below 1 answers are safer, above 1 bolder; 0: always the likeliest token.",
        show_default="0.7",
    ),
    top_p: float | None = option(
        "Choose among the likeliest tokens that have this probability together.", show_default="0.9"
    ),
    schema: str | None = forms.SCHEMA,
    regex: str | None = forms.REGEX,
    choice: list[str] = forms.CHOICE,
    grammar: Path | None = forms.GRAMMAR,
    draft: str | None = options.DRAFT,
    prompt_lookup: int | None = options.PROMPT_LOOKUP,
    draft_tokens: int | None = options.DRAFT_TOKENS,
    seed: int | None = options.SEED,
    device: str | None = options.DEVICE,
    dtype: str | None = option(
        "Number format of the weights: fp32, bf16, int8 or int4, the smallest.",
        show_default="fp32",
    ),
    kernels: str | None = options.KERNELS,
    generation_config: str | None = options.GENERATION_CONFIG,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    json: bool = flag("Print one JSON object an answer.", "--json"),
    quiet: bool = options.QUIET,
) -> None:
    """Talk with a model that has learned to answer. From a pipe, each line is a turn."""
    asked = locals()
    options.load_pytorch(large_pages=True)
    from llmctl.cli.console import TerminalReporter
    from llmctl.stages.chat import ChatConfig, open_chat

    config = options.configured(ChatConfig, "chat", asked)
    place = options.open_workspace(workspace)
    reporter = TerminalReporter(quiet=quiet)
    form = forms.form(asked)
    session = open_chat(
        place, start, config, system=system, form=form, draft=draft, reporter=reporter
    )
    _Talk(session, reporter, json=json).run()


class _Talk:
    """The terminal's side of a conversation."""

    def __init__(self, session: ChatSession, reporter: Reporter, *, json: bool) -> None:
        self._session, self._reporter, self._json = session, reporter, json
        self._typed = sys.stdin.isatty()
        self._answering = False
        self._interrupts = 0
        """Since the last line was read."""

    def run(self) -> None:
        """Read lines and answer them until the end."""
        signal.signal(signal.SIGINT, self._interrupt)
        if self._typed:
            self._reporter.note(HELP)
        try:
            self._talk()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            raise SystemExit(128 + signal.SIGINT) from None

    def _talk(self) -> None:
        for line in self._lines():
            self._interrupts = 0
            word, _, rest = line.partition(" ")
            try:
                if line == "/exit":
                    return
                if line == "/reset":
                    self._session.reset()
                    self._reporter.note("a new conversation")
                elif word == "/system":
                    self._session.set_system(rest.strip() or None)
                elif line == "/help":
                    self._reporter.note(HELP)
                elif COMMAND.fullmatch(word):
                    raise InputError(
                        f"{visible(line[:40])} is no command of the chat; {HELP}. To say it to the "
                        "model, write two slashes"
                    )
                else:
                    self._answer(line.removeprefix("/") if line.startswith("//") else line)
            except InputError as error:
                if not self._typed:
                    raise
                self._reporter.note(str(error))

    def _answer(self, line: str) -> None:
        from llmctl.cli.console import print_json

        self._answering = True
        try:
            answer = self._session.answer(
                line,
                tell=(lambda piece: None) if self._json else _write,
                should_stop=lambda: self._interrupts > 0,
            )
        finally:
            self._answering = False
        if self._json:
            print_json(
                {
                    "user": line,
                    "answer": answer.text,
                    "finish": answer.finish,
                    "prompt_tokens": answer.prompt_tokens,
                    "read_tokens": answer.read_tokens,
                    "new_tokens": answer.new_tokens,
                    "turns_left_out": answer.left_out,
                    **(
                        {"drafted": answer.drafted, "accepted": answer.accepted}
                        if answer.drafted
                        else {}
                    ),
                }
            )
            sys.stdout.flush()
        else:
            _write("\n")
        if answer.left_out:
            self._reporter.note(
                f"the conversation no longer fits the model: its oldest {answer.left_out} turns "
                "were left out"
            )

    def _lines(self) -> Iterator[str]:
        """What is said, without blank lines."""
        lines = self._typed_lines() if self._typed else self._piped_lines()
        return (line for line in map(str.strip, lines) if line)

    def _typed_lines(self) -> Iterator[str]:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lets a line be edited, and earlier ones come back
        while True:
            try:
                if sys.stdout.isatty():
                    yield input(PROMPT)
                else:
                    sys.stderr.write(PROMPT)
                    sys.stderr.flush()
                    yield input()
            except EOFError:
                sys.stderr.write("\n")
                return
            except KeyboardInterrupt:
                if self._interrupts > 1:
                    raise
                self._reporter.note("\nCtrl-C once more ends the chat")

    def _piped_lines(self) -> Iterator[str]:
        from llmctl.data.text.decoding import text_lines
        from llmctl.data.text.files import STDIN

        return (line for line, _ in text_lines(STDIN))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1 or not self._answering:
            raise KeyboardInterrupt


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
