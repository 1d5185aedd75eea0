"""The two corpora that every Python carries."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from llmctl.data.text import python_corpora
from llmctl.data.text.documents import Corpus
from llmctl.data.text.python_corpora import labelled_docstrings, python_code, python_docs

SCRIPT = """
import hashlib, json, sys
from llmctl.data.text import python_corpora as corpora
before = set(sys.modules)
def digest(rows):
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
files = list(corpora.python_code())
corpora.python_code = lambda: files[::8]  # parsing them all takes seconds
found = [digest(files), digest(corpora.python_docs()), digest(corpora.labelled_docstrings())]
print(json.dumps([found, sorted(set(sys.modules) - before)]))
"""


def digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.fixture(scope="module")
def code() -> list[tuple[str, str]]:
    return list(python_code())


@pytest.fixture(scope="module")
def docs() -> list[tuple[str, str]]:
    return list(python_docs())


@pytest.fixture(scope="module")
def labelled() -> list[tuple[str, str, str]]:
    return list(labelled_docstrings())


def test_another_process_reads_the_same_in_the_same_order_and_imports_nothing(
    code: list[tuple[str, str]],
) -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    digests, imported = json.loads(told[0])
    assert json.loads(told[1])[0] == digests
    assert digests[0] == digest(code)
    # sysconfig, which is asked where the library lies, imports its own data.
    assert {name for name in imported if not name.startswith("_sysconfigdata")} <= {
        "pydoc_data",
        "pydoc_data.topics",
    }


def test_code_is_the_standard_library_without_tests_or_installed_packages(
    code: list[tuple[str, str]],
) -> None:
    names = [name for name, _ in code]
    assert {"json/decoder.py", "argparse.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(set(names))
    for name in names:
        folders = name.split("/")[:-1]
        assert not {"test", "tests", "idle_test", "site-packages"}.intersection(folders), name
    root = Path(sysconfig.get_path("stdlib"))
    source = dict(code)
    assert source["json/decoder.py"] == (root / "json/decoder.py").read_text(encoding="utf-8")


def test_docs_hold_the_docstrings_that_inspect_finds(docs: list[tuple[str, str]]) -> None:
    texts = dict(docs)
    lines = Path(textwrap.__file__).read_text(encoding="utf-8").splitlines()
    assert texts["textwrap.py"] == inspect.getdoc(textwrap)
    dedent = f"textwrap.py:{lines.index('def dedent(text):') + 1}"
    assert texts[dedent] == inspect.getdoc(textwrap.dedent)
    wrapper = texts[f"textwrap.py:{lines.index('class TextWrapper:') + 1}"]
    assert wrapper.startswith(str(inspect.getdoc(textwrap.TextWrapper)))
    assert str(inspect.getdoc(textwrap.TextWrapper.fill)) in wrapper


def test_docs_begin_with_the_language_reference(docs: list[tuple[str, str]]) -> None:
    pytest.importorskip("pydoc_data.topics", reason="this Python has no pydoc_data")
    topics = [name for name, _ in docs if name.startswith("topic ")]
    assert topics == sorted(topics)
    assert [name for name, _ in docs[: len(topics)]] == topics
    assert "topic for" in topics


def test_labels_are_top_level_modules(labelled: list[tuple[str, str, str]]) -> None:
    labels = {label for label, _, _ in labelled}
    assert labels <= sys.stdlib_module_names
    assert {"json", "asyncio", "argparse"} <= labels
    for label, qualified, text in labelled:
        assert qualified.split(".")[0] == label
        assert len(text) >= 40


def test_a_docstring_is_labelled_once(labelled: list[tuple[str, str, str]]) -> None:
    texts = [text for _, _, text in labelled]
    assert len(texts) == len(set(texts)) > 3000


def test_files_of_another_version_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [
        ("a.py", '"""' + "First module of the test, long enough." * 2 + '"""'),
        ("b.py", "print 'Python 2'"),
        ("c/__init__.py", "class K:\n    def f(self):\n        '''" + "Method text. " * 5 + "'''"),
    ]
    monkeypatch.setattr(python_corpora, "python_code", lambda: iter(modules))
    with pytest.raises(SyntaxError):
        ast.parse(modules[1][1])
    rows = list(labelled_docstrings())
    assert [(label, name) for label, name, _ in rows] == [("a", "a"), ("c", "c.K.f")]


def test_a_corpus_of_python_docs_has_the_same_documents(docs: list[tuple[str, str]]) -> None:
    corpus = Corpus(["python:docs"])
    documents = list(corpus)
    assert [d.text for d in documents] == [text.strip() for _, text in docs if text.strip()]
    positions = [d.position for d in documents]
    assert positions == sorted(positions)
    assert positions[-1] == corpus.total_bytes
    assert corpus.suggested_name == "python-docs"
    assert corpus.digest() == Corpus(["python:docs"]).digest() != Corpus(["python:code"]).digest()
