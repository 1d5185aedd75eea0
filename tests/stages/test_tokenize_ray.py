"""Tokenize on Ray: the same shards, errors as sentences, a rerun goes on. Needs llmctl[scale]."""

from __future__ import annotations

import io
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.text import python_corpora
from llmctl.errors import InputError, UsageError
from llmctl.stages.tokenize import ray_data as stage
from llmctl.stages.tokenize import stage as tokenizing
from llmctl.stages.tokenize.parts import parse_part, tokenize_part
from llmctl.stages.tokenize.ray_data import make_part, tokenize_on_ray
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.parts import PartsFolder
from tests import small_library
from tests.run import llmctl, one_sentence
from tests.stages.test_tokenize_parts import (
    assert_no_leftovers,
    config_of,
    contents,
    corpus_of,
    whole,
)

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """On this machine, with a tenth of the library for ``python:docs``, here and in its workers."""
    read = (python_corpora._source_files, python_corpora.python_docs)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small_library.write(tmp_path_factory.mktemp("library")).items():
            patch.setenv(name, value)
        patch.setattr(sysconfig, "get_path", sysconfig.get_path)  # and put back afterwards
        small_library.use()
        for cached in read:
            cached.cache_clear()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
    for cached in read:
        cached.cache_clear()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MIN_PART_BYTES", 2000)


def on_ray(root: Path, sources: list[str], *, name: str | None = "docs", **more: Any) -> Any:
    config = config_of(more.pop("kind", "wordpiece"), **more.pop("fields", {}))
    return tokenize_on_ray(Workspace(root), sources, config, "auto", name=name, **more)


@pytest.mark.parametrize(
    ("kind", "fields"), [("wordpiece", {}), ("bpe", {}), ("characters", {"split": "tail"})]
)
def test_ray_makes_what_one_process_makes(kind: str, fields: dict[str, Any], tmp_path: Path):
    sources = corpus_of(tmp_path / "c", "jsonl")
    _, there = on_ray(tmp_path / "w", sources, kind=kind, fields=fields)
    assert not there
    assert contents(tmp_path / "w") == whole(tmp_path / "v", sources, config_of(kind, **fields))
    assert_no_leftovers(tmp_path / "w")
    assert on_ray(tmp_path / "w", sources, kind=kind, fields=fields)[1]


def test_several_tasks_and_a_name_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    corpus_of(tmp_path / "c", "txt")
    shared, run = [], stage._run
    monkeypatch.setattr(stage, "_run", lambda *a: shared.append(a[2]) or run(*a))
    artefact, _ = on_ray(tmp_path / "w", ["c"], name=None)
    assert shared == [[1, 2, 3, 4]]
    assert artefact.manifest.name == "c"
    assert contents(tmp_path / "w", "c")["inputs"][0][1] == "c"
    assert on_ray(tmp_path / "w", ["c"], name=None)[1]
    docs, _ = on_ray(tmp_path / "w", ["python:docs"], name=None, kind="characters")
    assert docs.manifest.name == "python-docs"


def test_it_goes_on_with_parts_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources = corpus_of(tmp_path / "c", "jsonl")
    shared, run = [], stage._run
    monkeypatch.setattr(stage, "_run", lambda *a: shared.append(a[2]) or run(*a))
    tokenize_part(Workspace(tmp_path / "w"), sources, config_of(), parse_part("2/3"), name="docs")
    on_ray(tmp_path / "w", sources)
    assert shared == [[1, 3]]
    assert contents(tmp_path / "w") == whole(tmp_path / "v", sources, config_of())


def test_a_bad_file_is_one_sentence_and_the_other_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The corpus's beginning is looked at before there are parts: not up to the bad byte.
    monkeypatch.setattr(tokenizing, "MARKS_SAMPLE", 100)
    sources, root = corpus_of(tmp_path / "c", "txt"), tmp_path / "w"
    on_ray(tmp_path / "t", sources)
    bad = Path(sources[-1])
    bad.write_bytes(bad.read_bytes() + b"\xff")
    tokenizer = str(tmp_path / "t" / "tokenizers" / "docs")
    with pytest.raises(InputError, match=r"2\.txt: byte 0xff .* is not UTF-8") as caught:
        on_ray(root, sources, kind=tokenizer)
    assert caught.value.exit_code == 3
    folder = PartsFolder(Workspace(root), "docs")
    plan = folder.plan()
    assert plan is not None
    assert 0 < len(folder.missing(plan)) < plan.parts


def test_a_machine_without_the_workspace_says_so(tmp_path: Path):
    task = {"workspace": str(tmp_path), "name": "docs", "plan": "today", "part": 1}
    outcome = make_part({**task, "sources": [], "config": "{}"})
    assert outcome["kind"] == "InputError"
    assert f"does not see the workspace {tmp_path}" in outcome["error"]


def test_standard_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The ship sails.\n")))
    with pytest.raises(UsageError, match="standard input"):
        on_ray(tmp_path, ["-"])


def test_the_command_line(tmp_path: Path):
    sources = corpus_of(tmp_path / "c", "jsonl")
    words = ["tokenize", "--name", "docs", "--vocab-size", "90", "--validation", "0.2"]
    made = llmctl(tmp_path / "w", *words, "--json", "--ray", "local", *sources)
    assert json.loads(made.stdout)["name"] == "docs"
    found = contents(tmp_path / "w")
    assert found["files"] == whole(tmp_path / "v", sources, config_of())["files"]
    error = llmctl(tmp_path / "x", *words, "--ray", "localhost:1", *sources, code=2)
    assert "--ray localhost:1: no cluster" in one_sentence(error)
