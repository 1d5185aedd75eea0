"""A run to a smaller one: the table, what is refused, and that nothing is left of what lost too
much."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llmctl.compression import COMPRESSION_METHODS
from llmctl.compression.config import CompressConfig
from llmctl.errors import InputError, LossError, UsageError
from llmctl.formats import filling
from llmctl.formats.open import open_model
from llmctl.reporting.compression import render_sizes
from llmctl.stages.compress.sizes import sizes
from llmctl.stages.compress.stage import Compression, read_table
from llmctl.workspace.artefacts import Artefact, Workspace
from tests.foreign_models import save_model
from tests.language_models import measure


@pytest.fixture
def place(models: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the small models."""
    shutil.copytree(models.root, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")


def smaller(
    place: Workspace,
    start: str,
    method: str,
    *,
    data: str | None = None,
    held_out: Path | None = None,
    **keys: Any,
) -> tuple[Artefact, bool]:
    reads = {"windows": 8} if COMPRESSION_METHODS[method].reads else {}
    config = CompressConfig(method=method, **{"max_tokens": 600, **reads, **keys})
    return Compression(place, start, config, data=data, held_out=held_out).run("small")


def test_a_run_in_four_bits(place: Workspace):
    run, up_to_date = smaller(place, "gpt", "gptq")
    assert not up_to_date
    assert smaller(place, "gpt", "gptq")[1]
    table = read_table(run)
    small, rounded, start = table["rows"]
    assert [row["name"] for row in table["rows"]] == ["small", "round", "gpt"]
    assert [row["dtype"] for row in table["rows"]] == ["int4", "int4", "fp32"]
    assert small["bytes_on_disk"] < start["bytes_on_disk"]
    # Four bits and, for each 32, four bytes; an output layer that is the embedding besides.
    body, embedding = weights_of(place, "gpt")
    matrices = body + embedding
    assert small["bytes_in_memory"] == start["bytes_in_memory"] - 4 * body + matrices * 5 // 8
    for row in (small, start):
        report = measure(place, row["name"], max_tokens=600, baselines=False)
        assert report["results"]["model"]["bits_per_byte"] == pytest.approx(row["quality"])
    assert table["loss"] == pytest.approx(small["quality"] - start["quality"])
    assert small["lost"] == pytest.approx(table["loss"])
    assert rounded["lost"] != small["lost"]
    assert 0 < small["latency_1"] < small["latency_32"] * 32
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"manifest.json", "compression.json", "model"}


def weights_of(place: Workspace, name: str) -> tuple[int, int]:
    """Weights of the blocks' matrices, and of the embedding."""
    body = open_model(place, name)[0].causal_lm().body
    matrices = (p for block in body.layers() for p in block.parameters() if p.dim() == 2)
    return sum(p.numel() for p in matrices), body.embedding().weight.numel()


def test_a_model_that_threads_read(place: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filling, "THREADED_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run, _ = smaller(place, "gpt", "round")
    assert read_table(run)["rows"][0]["latency_1"] > 0


def test_embeddings_that_are_the_output_layer_too(place: Workspace):
    run, _ = smaller(place, "gpt", "round", embeddings=True)
    small, start = read_table(run)["rows"]
    body, embedding = weights_of(place, "gpt")
    # The kernel's four bits with four bytes for each 32; and for reading rows four bits once more,
    # with three bytes: a scale in halves and a zero.
    kept = (body + embedding) * 5 // 8 + embedding // 2 + 3 * embedding // 32
    assert small["bytes_in_memory"] == start["bytes_in_memory"] - 4 * (body + embedding) + kept
    without, _ = Compression(place, "gpt", CompressConfig(method="round", max_tokens=600)).run("b")
    gone = read_table(without)["rows"][0]["bytes_on_disk"] - small["bytes_on_disk"]
    assert gone == pytest.approx(4 * embedding - embedding // 2 - 4.125 * embedding // 32, abs=999)
    in_int4 = measure(place, "small", max_tokens=600, baselines=False, dtype="int4")
    figures = in_int4["results"]["model"]["bits_per_byte"], small["quality"]
    assert figures[0] == pytest.approx(figures[1], abs=0.02)


def test_what_loses_too_much_leaves_nothing(place: Workspace):
    before = sorted(path.name for path in (place.root / "runs").iterdir())
    with pytest.raises(LossError, match=r"--max-loss 0\.01: magnitude loses"):
        smaller(place, "gpt", "magnitude", sparsity=0.9, max_loss=0.01)
    assert LossError.exit_code == 6
    assert sorted(path.name for path in (place.root / "runs").iterdir()) == before
    smaller(place, "gpt", "magnitude", sparsity=0.9)
    # What stands already is held to it, too.
    with pytest.raises(LossError, match="magnitude loses"):
        smaller(place, "gpt", "magnitude", sparsity=0.9, max_loss=0.01)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_half_of_the_weights_are_zero(place: Workspace, method: str):
    smaller(place, "gpt", method, pattern="2:4")
    body = open_model(place, "small")[0].causal_lm().body
    for block in body.layers():
        weight = block.attention.query_key_value.weight
        assert ((weight.unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all()


def test_fewer_channels_make_an_ordinary_model(place: Workspace):
    smaller(place, "llama", "channels", keep=0.5)
    model, start = open_model(place, "small")[0], open_model(place, "llama")[0]
    assert model.config.intermediate_size == 96
    assert start.config.intermediate_size == 172
    assert model.config.replace(intermediate_size=172) == start.config
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model.path).eval()
    network, ids = model.causal_lm().eval(), torch.arange(3, 15)[None]
    with torch.no_grad():
        ours = network.logits(network.body(ids))
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_fewer_layers(place: Workspace):
    run, _ = smaller(place, "gpt", "layers", keep=0.5)
    assert open_model(place, "small")[0].config.num_layers == 1
    assert run.manifest.summary["parameters"] < 1e5


def test_a_classifier_in_int8(place: Workspace, labelled_file: Path):
    run, _ = smaller(place, "subjects", "round", bits=8, held_out=labelled_file)
    table = read_table(run)
    assert table["quality"] == "accuracy"
    assert [row["dtype"] for row in table["rows"]] == ["int8", "fp32"]
    assert abs(table["loss"]) < 0.05
    assert open_model(place, "small")[0].labels == open_model(place, "subjects")[0].labels


@pytest.mark.parametrize(
    ("kind", "fields", "labels", "quality"),
    [
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"},
         ("LABEL_0|LABEL_2", "LABEL_1"), "micro F1"),
        ("BertForSequenceClassification", {"llmctl_ordinal": True}, ("LABEL_0", "LABEL_2"),
         "accuracy"),
        ("BertForSequenceClassification", {"problem_type": "regression", "num_labels": 1},
         ("0.5", "2"), "Spearman"),
        ("ElectraForPreTraining", {}, ("a", "b"), None),
    ],
)  # fmt: skip
def test_each_kind_is_measured_or_refused(
    place: Workspace, tmp_path: Path, kind: str, fields: dict[str, Any],
    labels: tuple[str, str], quality: str | None,
):  # fmt: skip
    save_model(tmp_path / "model", kind, like="bert", hidden_size=32, num_attention_heads=2,
               intermediate_size=64, **{"num_labels": 3, **fields})  # fmt: skip
    data = tmp_path / "data.csv"
    texts = ("the ship sails", "the cows eat", "the wide sea", "people hurry to work")
    rows = [f"{labels[n % 2]},{text}\n" for n, text in enumerate(texts)]
    data.write_text(f"label,text\n{''.join(rows)}")
    start = str(tmp_path / "model")
    if quality is None:
        with pytest.raises(InputError, match="compress a model of labels, numbers, tags"):
            smaller(place, start, "round", held_out=data)
        return
    table = read_table(smaller(place, start, "round", held_out=data)[0])
    assert table["quality"] == quality
    assert table["rows"][0]["lost"] == pytest.approx(table["loss"])


@pytest.mark.parametrize(
    ("start", "method", "keys", "error", "message"),
    [
        ("grams", "round", {}, InputError, "no weights, heads or layers to compress"),
        ("gpt", "heads", {}, InputError, "says how wide a head is"),
        ("gpt", "round", {"group": 64}, UsageError, "--group 64 does not divide the 32 inputs"),
        ("subjects", "round", {}, UsageError, "give a file of them, --eval FILE"),
        ("gpt", "round", {"data": "shards"}, UsageError, "reads no text; leave out --data"),
        ("gpt", "round", {"held_out": Path("gone")}, InputError, "--eval gone: no such file"),
        ("gpt", "round", {"held_out": Path()}, InputError, r"--eval \. is a folder"),
    ],
)
def test_what_can_not_be(
    models: Workspace, start: str, method: str, keys: dict[str, Any], error: Any, message: str
):
    names = models.names("run")
    with pytest.raises(error, match=message):
        smaller(models, start, method, **keys)
    assert models.names("run") == names


def test_a_text_shorter_than_a_window(models: Workspace, tmp_path: Path):
    (tmp_path / "a.txt").write_text("the sea")
    with pytest.raises(InputError, match=r"a\.txt has \d+ tokens, and a row .* takes 48"):
        smaller(models, "gpt", "gptq", data=str(tmp_path / "a.txt"))


def test_options_that_go_with_other_methods():
    with pytest.raises(ValueError, match="keep goes with the methods channels, heads, layers"):
        CompressConfig(method="gptq", keep=0.25)
    with pytest.raises(ValueError, match="leave out sparsity"):
        CompressConfig(method="wanda", sparsity=0.4, pattern="2:4")


def test_rows_that_nothing_reads(place: Workspace):
    for method, row in (("round", {"windows": 3}), ("magnitude", {"window": 16})):
        (name,) = row
        with pytest.raises(UsageError, match=f"--{name} .* {method} it reads no text; leave it"):
            smaller(place, "gpt", method, **row)


def test_size_against_quality(place: Workspace):
    for name, method in (("thin", "layers"), ("small", "round")):
        reads = {"windows": 4} if COMPRESSION_METHODS[method].reads else {}
        config = CompressConfig(method=method, max_tokens=600, **reads)
        Compression(place, "gpt", config).run(name)
    document = sizes(place, ["small", "thin"])
    assert {run["name"] for run in document["runs"]} == {"small", "thin", "gpt"}
    assert [run["bytes_on_disk"] for run in document["runs"]] == sorted(
        run["bytes_on_disk"] for run in document["runs"]
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_sizes(document, 80))
    text = console.export_text()
    assert all(f"{mark} " in text for mark in "●▲■")
    assert "bits per byte" in text
    with pytest.raises(UsageError, match="llama is in no table of these"):
        sizes(place, ["small", "llama"])
