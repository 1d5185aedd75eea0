"""``llmctl embed`` and ``llmctl search`` as a user gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.formats.test_sentence_transformers import save
from tests.run import llmctl

LINES = [f"the {a} {b}" for a in ("ship", "farmer", "tram") for b in ("sails", "stops", "feeds")]


@pytest.fixture
def model(tiny_workspace: Path, tmp_path: Path) -> Path:
    return save(tiny_workspace / "runs" / "tiny" / "model", tmp_path / "embedder")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


@pytest.mark.parametrize("suffix", ["arrow", "npy"])
def test_a_text_is_nearest_to_itself(tmp_path: Path, model: Path, texts: Path, suffix: str):
    index = tmp_path / f"v.{suffix}"
    made = json.loads(
        llmctl(tmp_path, "embed", "--from", model, "--data", texts, "--out", index, "--json").stdout
    )
    assert made == {"out": str(index), "texts": 9, "width": 32, "model": str(model)}
    found = llmctl(tmp_path, "search", index, LINES[4], LINES[7], "--top", 3, "--json").stdout
    for row, line in zip((4, 7), found.splitlines(), strict=True):
        hits = json.loads(line)["hits"]
        assert len(hits) == 3
        assert hits[0]["row"] == row
        assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)
        assert (hits[0].get("text") == LINES[row]) == (suffix == "arrow")
    shown = llmctl(tmp_path, "search", index, stdin=f"{LINES[2]}\n").stdout.splitlines()
    assert shown[0].split("\t")[:2] == ["1.0000", "2"]


def test_again_it_is_up_to_date(tmp_path: Path, model: Path, texts: Path):
    words = ("embed", "--from", model, "--data", texts, "--out", tmp_path / "v.arrow")
    assert "up to date" not in llmctl(tmp_path, *words).stdout
    before = (tmp_path / "v.arrow").stat().st_mtime_ns
    assert "up to date" in llmctl(tmp_path, *words).stdout
    assert (tmp_path / "v.arrow").stat().st_mtime_ns == before
    assert "of 8 numbers" in llmctl(tmp_path, *words, "--width", 8).stdout
    assert "9 vectors of 32" in llmctl(tmp_path, *words).stdout
    with texts.open("a") as stream:
        stream.write("one more\n")
    assert "10 vectors" in llmctl(tmp_path, *words).stdout


def test_vectors_of_the_command_line_are_those_of_the_file(
    tmp_path: Path, model: Path, texts: Path
):
    llmctl(tmp_path, "embed", "--from", model, "--data", texts, "--out", tmp_path / "v.npy")
    printed = llmctl(tmp_path, "embed", "--from", model, *LINES[:2]).stdout.splitlines()
    of_stdin = llmctl(tmp_path, "embed", "--from", model, "--data", "-", stdin=f"{LINES[0]}\n")
    kept = np.load(tmp_path / "v.npy")
    for row, line in enumerate([*printed, of_stdin.stdout]):
        record = json.loads(line)
        assert record["text"] == LINES[row % 2]
        np.testing.assert_allclose(record["vector"], kept[row % 2], atol=1e-6)


def test_an_index_of_another_model_is_refused(tmp_path: Path, model: Path, texts: Path):
    index = tmp_path / "v.arrow"
    llmctl(tmp_path, "embed", "--from", model, "--data", texts, "--out", index)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    pooling = other / "1_Pooling" / "config.json"
    modes = json.loads(pooling.read_text())
    modes |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pooling.write_text(json.dumps(modes))
    refused = llmctl(tmp_path, "search", index, "a", "--from", other, code=3).stderr
    assert "was made by another model" in refused
    assert "llmctl embed" in refused
    # The same model elsewhere is the same.
    moved = shutil.move(model, tmp_path / "moved")
    gone = llmctl(tmp_path, "search", index, "a", code=3).stderr
    assert "give the model with --from" in gone
    assert llmctl(tmp_path, "search", index, "a", "--from", moved).stdout


def test_bad_input_has_its_sentence(tiny_workspace: Path, tmp_path: Path, model: Path, texts: Path):
    def refused(*words: object, code: int, command: str = "embed") -> str:
        return llmctl(tiny_workspace, command, *words, code=code).stderr

    texts.write_text("a line\n\nanother\n")
    out = ("--out", tmp_path / "v.arrow")
    assert "texts.txt:2 is empty" in refused("--from", model, "--data", texts, *out, code=3)
    assert not (tmp_path / "v.arrow").exists()
    assert "makes no vectors of texts" in refused("--from", "tiny", "a", code=3)
    assert "name it .arrow" in refused(
        "--from", model, "--data", texts, "--out", tmp_path / "v.txt", code=2
    )
    assert "32 wide; give 1 to 32" in refused("--from", model, "a", "--width", 33, code=2)
    assert "not both" in refused("--from", model, "a", "--data", texts, code=2)
    table = tmp_path / "t.csv"
    table.write_text("question,answer\na,b\n")
    assert "choose the one with --text-column" in refused(
        "--from", model, "--data", table, *out, code=2
    )
    assert "no such file" in refused(tmp_path / "none.arrow", "a", code=3, command="search")
