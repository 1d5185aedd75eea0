"""``llmctl chat``: from a pipe, and on a terminal with Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.models.layers.sequences import KV_BLOCK

GREEDY = ["--temperature", "0", "--device", "cpu"]


def chat(root: Path, said: str | bytes, *words: str, code: int = 0) -> Result:
    words = ("chat", "-w", str(root), "--from", "talker", *GREEDY, *words)
    before = signal.getsignal(signal.SIGINT)
    try:
        result = CliRunner().invoke(app, list(words), input=said)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == code, result.output
    return result


def test_each_line_of_a_pipe_is_a_turn(decoder_workspace: Path):
    asked = ["Where does the ship sail? (3)", "What does the farmer feed?"]
    said = "\n\n".join(asked) + "\n"
    assert chat(decoder_workspace, said).stdout == "Over the wide sea.\nThe cows at dawn.\n"
    lines = chat(decoder_workspace, said, "--json").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["user"] for answer in answers] == asked
    assert [answer["answer"] for answer in answers] == ["Over the wide sea.", "The cows at dawn."]
    assert [answer["finish"] for answer in answers] == ["eos", "eos"]
    first, second = (answer["prompt_tokens"] for answer in answers)
    assert first == answers[0]["read_tokens"]
    # What was read before is kept in whole blocks.
    assert 0 < answers[1]["read_tokens"] <= second - first // KV_BLOCK * KV_BLOCK < second


def test_what_a_folder_says_of_sampling_counts_unless_options_do(
    decoder_workspace: Path, tmp_path: Path
):
    folder = tmp_path / "talker"
    shutil.copytree(decoder_workspace / "runs" / "talker" / "model", folder)
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text())

    def answer(said: dict[str, Any], *words: str, code: int = 0) -> Result:
        path.write_text(json.dumps({**ends, **said}))
        place = ("--from", str(folder), "--temperature", "50")
        return chat(decoder_workspace, "What does the farmer feed?", *place, *words, code=code)

    likeliest = {"do_sample": True, "temperature": 0.6, "top_k": 1, "top_p": 1.0, "num_beams": 1}
    found = answer(likeliest)
    assert found.stdout == "The cows at dawn.\n"
    assert "generation_config.json has top_k 1; options go before it" in found.stderr
    assert answer(likeliest, "--set", "top_k=50").stdout != found.stdout
    # What is not drawn from is not narrowed.
    assert answer({**likeliest, "do_sample": False}).stdout != found.stdout
    found = answer({**likeliest, "suppress_tokens": [5], "guidance_scale": 2.0})
    assert "also has guidance_scale, suppress_tokens, which a chat does not" in found.stderr
    found = answer({**likeliest, "top_k": "one"}, code=3)
    assert "generation_config.json: top_k is 'one', not a number" in found.stderr


def test_commands_of_a_pipe(decoder_workspace: Path):
    said = "What does the farmer feed? (1)\n"
    script = f"{said}/system Answer. (2)\n{said}/reset\n/system\n{said}/exit\n{said}"
    result = chat(decoder_workspace, script, "--json")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 3
    alone, longer, anew = (answer["prompt_tokens"] for answer in answers)
    assert longer > 2 * alone
    assert anew == alone
    assert answers[0]["answer"] == answers[2]["answer"]
    assert "a new conversation" in result.stderr
    assert "a new conversation" not in chat(decoder_workspace, script, "--quiet").stderr


def test_what_a_pipe_can_not_say(decoder_workspace: Path):
    result = chat(decoder_workspace, b"caf\xe9\n", code=3)
    assert "standard input: byte 0xe9 at offset 3 is not UTF-8" in result.stderr
    result = chat(decoder_workspace, "ship " * 300 + "\n", code=3)
    assert "say less" in result.stderr
    assert result.stdout == ""


class Terminal:
    """``llmctl chat`` on a terminal of its own."""

    def __init__(self, root: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "LLMCTL_WORKSPACE": str(root), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmctl", "chat", "--from", "talker", "--device", "cpu", *words],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str) -> None:
        """Read until a pattern has come since the last one."""
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self.master], [], [], max(left, 0.0))
            assert readable, f"{pattern!r} did not come: {self.seen!r}"
            self.seen += os.read(self.master, 1000).decode(errors="replace")
        self.seen = self.seen[match.end() :]

    def say(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, once the prompt that was seen is waited at."""
        time.sleep(0.5)
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_and_its_interrupts(decoder_workspace: Path):
    terminal = Terminal(decoder_workspace, "--temperature", "0")
    try:
        terminal.until("/exit ends")
        terminal.until("> ")
        terminal.interrupt()
        terminal.until("once more ends the chat")
        terminal.say("Where does the ship sail? (3)\n")  # a line in between: no second one
        terminal.until("Over the wide sea")
        terminal.until("> ")
        terminal.say("/reset\n")
        terminal.until("a new conversation")
        terminal.interrupt()
        terminal.until("once more ends the chat")
        terminal.interrupt()
        assert terminal.process.wait(timeout=60) == 130
    finally:
        terminal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_the_end_of_the_input_ends_a_terminals_chat(decoder_workspace: Path):
    terminal = Terminal(decoder_workspace)
    try:
        terminal.until("> ")
        terminal.say("\x04")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.close()


def test_an_interrupt_stops_the_answer_and_not_the_chat(
    decoder_workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    from llmctl.cli import chat as module

    told: list[str] = []
    write = module._write

    def tell(piece: str) -> None:
        told.append(piece)
        if len(told) == 2:
            signal.raise_signal(signal.SIGINT)
        write(piece)

    monkeypatch.setattr(module, "_write", tell)
    said = "Where does the ship sail? (3)\n"
    whole = "Over the wide sea."
    first, second = chat(decoder_workspace, said + said).stdout.splitlines()
    assert whole.startswith(first)
    assert first != whole
    assert second


def test_what_looks_like_a_command_is_not_said_to_the_model(decoder_workspace: Path):
    result = chat(decoder_workspace, "/help\n/reset\n")
    assert result.stdout == ""
    assert "/system TEXT" in result.stderr
    refused = chat(decoder_workspace, "/retry\nhello\n", code=3)
    assert refused.stdout == ""
    assert "/retry is no command of the chat" in refused.stderr
    lines = chat(decoder_workspace, "//retry\n/usr/bin\n/3\n", "--json").stdout.splitlines()
    assert [json.loads(line)["user"] for line in lines] == ["/retry", "/usr/bin", "/3"]


@pytest.mark.parametrize("value", ["0", "-1"])
def test_an_answer_of_no_tokens_is_refused(decoder_workspace: Path, value: str):
    result = chat(decoder_workspace, "hello\n", "--max-new-tokens", value, code=2)
    assert "max_new_tokens" in result.stderr
