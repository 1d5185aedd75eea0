"""Options of commands: which become fields of a configuration, and what lies over what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmctl.cli import options
from llmctl.config import Config
from llmctl.errors import ConfigError


class Things(Config):
    """A configuration with a field of each kind."""

    size: int = 1
    words: tuple[str, ...] = ()
    wanted: bool = True
    unnamed: int = 0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text("[things]\nsize = 2\nunnamed = 5\n")
    return path


def test_set_lies_over_options_and_options_over_the_recipe(recipe: Path):
    given = {"recipe": recipe, "size": None, "words": [], "wanted": None, "set_": []}
    assert options.configured(Things, "things", given) == Things(size=2, unnamed=5)
    assert options.configured(Things, "things", {**given, "size": 3}).size == 3
    assert options.configured(Things, "things", {**given, "size": 3, "set_": ["size=4"]}).size == 4


def test_an_option_that_says_no_is_given():
    assert not options.configured(Things, "things", {"wanted": False}).wanted
    assert options.configured(Things, "things", {"size": 0}).size == 0


def test_what_is_no_field_is_left_alone():
    assert options.configured(Things, "things", {"json": True, "name": "x"}) == Things()


def test_a_bad_value_is_an_error_of_the_configuration(recipe: Path):
    with pytest.raises(ConfigError, match="size"):
        options.configured(Things, "things", {"recipe": recipe, "size": "big"})


def test_options_flags_and_arguments_are_parsed_by_their_names():
    app = typer.Typer()

    @app.command()
    def command(
        what: list[str] = options.argument("What.", default=...),
        size: int | None = options.option("How large.", show_default="by what"),
        start: str | None = options.option("From where.", "--from"),
        quiet: bool = options.flag("No notes.", "--quiet", "-q"),
    ) -> None:
        typer.echo(f"{what} {size} {start} {quiet}")

    def said(*words: str) -> str:
        return CliRunner().invoke(app, words).output.strip()

    assert said("a", "b") == "['a', 'b'] None None False"
    assert said("a", "--size", "3", "--from", "x", "-q") == "['a'] 3 x True"
    assert "by what" in said("--help")
    assert CliRunner().invoke(app, []).exit_code == 2


LOADING = """
import gc
import llmctl.parsing
from llmctl.cli.options import load_pytorch
looked = []
gc.callbacks.append(lambda phase, info: looked.append(phase))
load_pytorch()
import torch
print(len(looked), gc.isenabled(), gc.get_freeze_count() > 100_000)
load_pytorch()
print(gc.isenabled())
"""


def test_pytorch_is_loaded_without_looking_for_garbage():
    result = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, check=True
    )
    first, again = result.stdout.splitlines()
    assert first == "0 True True"
    assert again == "True"
