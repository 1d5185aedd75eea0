"""The README and the recipes say what is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmctl.cli.reference import insert, reference
from llmctl.config import Config, build
from llmctl.inference.prompts import read_template
from llmctl.stages.chat import ChatConfig
from llmctl.stages.finetune import resolve as resolve_finetune
from llmctl.stages.generate import GenerateConfig
from llmctl.stages.pretrain import resolve
from llmctl.stages.tokenize import TokenizeConfig
from tests.conftest import SUBJECTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_reference_is_that_of_the_app():
    assert insert(README) == README, "run: python -m llmctl.cli.reference README.md"


def test_the_reference_says_what_every_key_and_option_is():
    rows = re.findall(r"^\| `[^|]*\|.*$", reference(), flags=re.MULTILINE)
    assert len(rows) > 100
    assert not [row for row in rows if row.endswith("|  |")]


def test_every_file_that_the_readme_names_is_there():
    named = r"\b(?:llmctl|recipes|tests|data)/[\w./-]+\.(?:sh|py|md|svg|toml)"
    for path in re.findall(named, README):
        assert (ROOT / path).is_file(), path


def test_every_room_of_the_picture_is_there():
    rooms = re.findall(r"^  (\w+)/  ", README, flags=re.MULTILINE)
    assert set(rooms) == {
        p.name for p in (ROOT / "llmctl").iterdir() if (p / "__init__.py").exists()
    }


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_is_understood(path: Path):
    tables = tomllib.loads(path.read_text())
    pretrain = dict(tables.pop("pretrain"))
    arch, preset = pretrain.pop("arch", "bert"), pretrain.pop("preset", None)
    assert isinstance(resolve(arch, preset, pretrain), Config)
    if "finetune" in tables:
        finetune = dict(tables.pop("finetune"))
        assert isinstance(resolve_finetune(finetune.get("task"), finetune), Config)
    others = {"tokenize": TokenizeConfig, "generate": GenerateConfig, "chat": ChatConfig}
    for stage, table in tables.items():
        build(others[stage], table)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "prompts").glob("*.toml")), ids=lambda p: p.name
)
def test_every_template_is_understood(path: Path):
    assert read_template(path).tells_label


TINY_RECIPE = """
[tokenize]
vocab_size = 2000
[pretrain]
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
[pretrain.training]
max_steps = 8
batch_size = 4
[pretrain.data]
eval_batches = 2
[finetune.training]
max_steps = 8
learning_rate = 1e-3
"""


def run_recipe(folder: Path, recipe: str, *words: object) -> str:
    path = folder / "tiny.toml"
    path.write_text(recipe)
    environment = {
        "LLMCTL_PYTHON": sys.executable,
        "LLMCTL_WORKSPACE": str(folder / "w"),
        "PATH": "/usr/bin:/bin",
        "COLUMNS": "160",
    }
    result = subprocess.run(
        ["bash", *map(str, words), str(path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    out = run_recipe(tmp_path, TINY_RECIPE, ROOT / "recipes" / "quickstart.sh")
    for row in ("stdlib", "stdlib-scratch", "majority class", "TF-IDF + logistic regression"):
        assert row in out
    report = json.loads((tmp_path / "w/reports/stdlib-stdlib-test/report.json").read_text())
    assert report["results"].keys() >= {"model", "stdlib-scratch"}
    assert report["examples"] >= 500


def test_agnews_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    words = [subject.split() for subject in SUBJECTS.values()]
    rows = [
        f'"{n % 3 + 1}","title {n} {words[n % 3][n % 9]}","{" ".join(words[n % 3][n % 7 :])} {n}"'
        for n in range(800)
    ]
    (tmp_path / "news.csv").write_text("\n".join(rows) + "\n")
    recipe = TINY_RECIPE.replace("vocab_size = 2000", "vocab_size = 150")
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "agnews.sh", tmp_path)
    assert "news-scratch" in out


def test_agnews_says_what_it_needs(tmp_path: Path):
    result = subprocess.run(
        ["bash", str(ROOT / "recipes" / "agnews.sh"), str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 3
    assert "news.csv" in result.stderr
