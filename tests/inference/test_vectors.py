"""Files of vectors: written, read again, searched like brute force, refused where damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError, UsageError
from llmctl.inference.vectors import MadeFrom, nearest, open_vectors, writing_vectors

MADE = MadeFrom(model="run/x", digest="d", width=6, data="/t.txt", data_digest="e")


def write(path: Path, vectors: np.ndarray, blocks: int = 3) -> Path:
    with writing_vectors(path, MADE) as writer:
        for rows in np.array_split(np.arange(len(vectors)), blocks):
            writer.add([f"text {row}" for row in rows], vectors[rows])
    return path


def some(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".arrow", ".npy"])
@pytest.mark.parametrize("top", [1, 5, 100])
def test_the_nearest_are_those_of_brute_force(tmp_path: Path, suffix: str, top: int):
    vectors, queries = some(), some(3, seed=1)
    file = open_vectors(write(tmp_path / f"v{suffix}", vectors))
    assert (file.rows, file.made) == (40, MADE)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    for hits, row in zip(nearest(file, queries, top), cosines, strict=True):
        order = np.argsort(-row)[:top]
        assert [hit.row for hit in hits] == order.tolist()
        np.testing.assert_allclose([hit.score for hit in hits], row[order], rtol=1e-5)
    found = file.texts([7, 0, 39])
    assert found == (["text 7", "text 0", "text 39"] if suffix == ".arrow" else None)


def test_numpy_and_pyarrow_read_them(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    vectors = some()
    np.testing.assert_array_equal(np.load(write(tmp_path / "v.npy", vectors)), vectors)
    table = pa.ipc.open_file(str(write(tmp_path / "v.arrow", vectors))).read_all()
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), vectors)
    assert table["text"][3].as_py() == "text 3"


def test_of_equals_the_first_is_first(tmp_path: Path):
    file = open_vectors(write(tmp_path / "v.arrow", np.ones((9, 6), dtype=np.float32)))
    assert [hit.row for hit in nearest(file, np.ones((1, 6), dtype=np.float32), 4)[0]] == [
        0,
        1,
        2,
        3,
    ]


def test_what_fails_leaves_nothing_behind(tmp_path: Path):
    path = write(tmp_path / "v.npy", some())
    before = path.read_bytes()

    def fail() -> None:
        with writing_vectors(path, MADE) as writer:
            writer.add(["a"], some(1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["v.npy", "v.npy.json"]


def test_files_of_others_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        open_vectors(tmp_path / "none.arrow")
    np.save(tmp_path / "theirs.npy", some())
    with pytest.raises(InputError, match=r"no theirs\.npy\.json beside it"):
        open_vectors(tmp_path / "theirs.npy")
    (tmp_path / "text.arrow").write_text("no vectors")
    with pytest.raises(InputError, match="no file of vectors that llmctl wrote"):
        open_vectors(tmp_path / "text.arrow")
    with pytest.raises(UsageError, match=r"name it \.arrow"), writing_vectors(tmp_path / "v", MADE):
        pass
    path = write(tmp_path / "v.npy", some())
    beside = tmp_path / "v.npy.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "rows": 41}))
    with pytest.raises(InputError, match=r"damaged \(it holds \(40, 6\)"):
        open_vectors(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path):
    vectors = some()
    vectors[11, 2] = np.nan
    file = open_vectors(write(tmp_path / "v.arrow", vectors))
    with pytest.raises(InputError, match="not finite"):
        nearest(file, some(1), 3)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_an_input_error(tmp_path_factory, place: int, noise: bytes):
    """Whatever is overwritten, it is read or refused: never a crash, never another exception."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.arrow"
    if not (folder / "whole.arrow").exists():
        write(folder / "whole.arrow", some())
    content = bytearray((folder / "whole.arrow").read_bytes())
    place %= len(content)
    content[place : place + len(noise)] = noise
    path.write_bytes(content)
    try:
        file = open_vectors(path)
        nearest(file, some(1), 3)
        file.texts([0])
    except InputError:
        pass
