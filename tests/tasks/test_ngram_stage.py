"""Pretraining an n-gram model as a stage: found again, whole or not there, measured as a neural
model is."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl import tokenizers
from llmctl.data.shards.files import ShardReader
from llmctl.data.shards.windows import TokenStream, WindowBatches
from llmctl.errors import BusyError, ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.models.ngram.counts import TokenBlock
from llmctl.reporting.reporter import Reporter
from llmctl.stages.plan import plan
from llmctl.stages.status import detail, overview
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain as train_ngram
from llmctl.tasks import pretraining
from llmctl.tasks.causal_lm.batches import collate
from llmctl.tasks.ngram.task import Documents, score
from llmctl.tasks.requests import PretrainRequest
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.locks import writer_lock

resolve = partial(pretraining.resolve, "ngram", None)


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[float] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, task: str, done: float, total: float | None, detail: str = "") -> None:
        self.done.append(done)


def make_shards(root: Path, source: Path, name: str, **fields: Any) -> None:
    options = {"vocab_size": 350, "document": "line", "validation": 0.1, "workers": 1, **fields}
    tokenize(Workspace(root), [str(source)], TokenizeConfig.model_validate(options), name=name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """A workspace with shards ``bpe`` of byte-level BPE, and ``wordpiece``."""
    root = tmp_path_factory.mktemp("ngram")
    make_shards(root, corpus_file, "wordpiece", tokenizer="wordpiece", vocab_size=120)
    make_shards(root, corpus_file, "bpe", tokenizer="bpe")
    return root


@pytest.fixture
def workspace(shards: Path, tmp_path: Path) -> Workspace:
    """The shards, with no runs yet."""
    for kind in ("shards", "tokenizers"):
        (tmp_path / kind).symlink_to(shards / kind)
    return Workspace(tmp_path)


def test_a_run_is_made_once(workspace: Workspace):
    reporter = Notes()
    run, there = train_ngram(
        workspace, resolve({"model": {"order": 3}}), shards_name="bpe", reporter=reporter
    )
    assert not there
    assert reporter.done == [1, 2, 3]
    manifest = run.manifest
    assert (manifest.name, manifest.kind, manifest.stage) == ("ngram-bpe", "run", "pretrain")
    assert manifest.config["arch"] == "ngram"
    assert [record.name for record in manifest.inputs] == ["shards/bpe"]
    assert run.finished
    run.verify()
    files = {"model/config.json", "model/ngram.safetensors", "model/tokenizer.json"}
    assert files <= manifest.files.keys()
    assert all(name.startswith("model/") for name in manifest.files)
    again, there = train_ngram(workspace, resolve({"model": {"order": 3}}), shards_name="bpe")
    assert there
    assert again.manifest == manifest
    forced, there = train_ngram(
        workspace, resolve({"model": {"order": 3}}), shards_name="bpe", force=True
    )
    assert not there
    assert forced.manifest.name == "ngram-bpe"
    assert forced.manifest.digest == manifest.digest
    other, there = train_ngram(workspace, resolve({"model": {"order": 2}}), shards_name="bpe")
    assert (other.manifest.name, there) == ("ngram-bpe-2", False)


def test_status_knows_it(workspace: Workspace):
    train_ngram(workspace, resolve(), shards_name="bpe", name="five")
    (line,) = overview(workspace)["runs"]
    assert (line["name"], line["state"], line["progress"]) == ("five", "finished", 1.0)
    assert (line["step"], line["total_steps"]) == (5, 5)
    assert line["tokens_per_second"] > 0
    document = detail(workspace, "five")
    assert line["validation_loss"] == document["summary"]["validation"]["loss"]
    assert document["resume"] is None
    assert {entry["name"] for entry in document["lineage"]} >= {"shards/bpe"}


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_the_figures_are_those_of_the_model_that_is_kept(workspace: Workspace, name: str):
    run, _ = train_ngram(workspace, resolve(), shards_name=name)
    folder = open_folder(run.folder / "model")
    tokenizer = folder.tokenizer
    start, end = (
        tokenizer.special[role] for role in (("bos", "eos") if name == "bpe" else ("cls", "sep"))
    )
    nats, tokens, size = 0.0, 0, 0
    reader = ShardReader(workspace.path("shards", name), "validation")
    assert len(reader) > 5
    for document in range(len(reader)):
        ids = reader.tokens(document).astype(np.int64)
        row = np.concatenate(([start], ids, [end]))
        nats -= folder.ngram().log_probabilities(TokenBlock(row, np.array([0]))).sum()
        tokens += len(ids) + 1
        size += int(tokenizer.token_bytes[ids].sum())
        if name == "bpe":  # which loses nothing of the text
            assert len(tokenizer.decode(ids.tolist()).encode()) == tokenizer.token_bytes[ids].sum()
    summary = run.manifest.summary
    assert summary["validation"] == pytest.approx(
        {
            "loss": nats / tokens,
            "perplexity": math.exp(nats / tokens),
            "bits_per_byte": nats / math.log(2) / size,
        },
        rel=1e-9,
    )
    # One of the vocabulary for each token would be log 120 or log 350.
    assert summary["validation"]["loss"] < 3.5
    assert summary["parameters"] == folder.ngram().parameters
    trained = ShardReader(workspace.path("shards", name), "train").document_lengths
    assert summary["tokens"] == trained.sum() + len(trained)


@pytest.mark.parametrize("same", [True, False])
def test_a_neural_model_is_scored_on_the_same_tokens_and_bytes(workspace: Workspace, same: bool):
    """Whether a document's end is also the start of the next, or a token of its own."""
    documents = Documents(workspace.get("shards", "bpe"))
    special = documents.tokenizer.special
    if special["bos"] == special["eos"]:
        documents.end = documents.end if same else special["pad"]
    else:
        documents.end = documents.start if same else documents.end
    run, _ = train_ngram(workspace, resolve(), shards_name="bpe")
    model = open_folder(run.folder / "model").ngram()
    tally = score(model, documents.blocks("validation"), documents.tokenizer)
    reader = ShardReader(workspace.path("shards", "bpe"), "validation")
    windows = WindowBatches(
        TokenStream(reader, documents.start, documents.end),
        sequence_length=16,
        batch_size=4,
        seed=0,
        repeat=False,
    )
    tokens = size = 0
    for number in range(windows.batches_per_epoch):
        batch = collate(
            windows.batch(number),
            start=documents.start,
            end=documents.end,
            token_bytes=documents.tokenizer.token_bytes,
            document_mask=False,
        )
        tokens, size = tokens + batch.scored, size + batch.scored_bytes
    assert (tally.tokens, tally.bytes) == (tokens, size)
    assert tally.documents == len(reader)


def test_blocks_hold_every_document_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    documents = Documents(workspace.get("shards", "bpe"))
    (whole,) = documents.blocks("train")
    longest = int(ShardReader(workspace.path("shards", "bpe"), "train").document_lengths.max())
    for size in (1, longest, 500):
        parts = list(documents.blocks("train", size))
        assert len(parts) > 5
        assert (np.concatenate([part.tokens for part in parts]) == whole.tokens).all()
        done = np.cumsum([0, *(len(part.tokens) for part in parts)])
        starts = [part.starts + before for part, before in zip(parts, done, strict=False)]
        assert (np.concatenate(starts) == whole.starts).all()
        assert all(len(part.tokens) <= size or len(part.starts) == 1 for part in parts)
    assert (whole.tokens[whole.starts] == documents.start).all()
    assert (whole.tokens[np.append(whole.starts[1:], len(whole.tokens)) - 1] == documents.end).all()
    run, _ = train_ngram(workspace, resolve(), shards_name="bpe", name="one")
    monkeypatch.setattr(Documents.blocks, "__defaults__", (500,))
    other, _ = train_ngram(workspace, resolve(), shards_name="bpe", name="one", force=True)
    assert other.manifest.digest == run.manifest.digest


def test_a_failure_leaves_what_was_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    config = resolve({"model": {"order": 2}})
    monkeypatch.setattr("llmctl.tasks.ngram.task.score", fail)
    with pytest.raises(KeyboardInterrupt):
        train_ngram(workspace, config, shards_name="bpe")
    assert list((workspace.root / "runs").iterdir()) == []
    monkeypatch.undo()
    run, _ = train_ngram(workspace, config, shards_name="bpe")
    monkeypatch.setattr("llmctl.tasks.ngram.task.score", fail)
    with pytest.raises(KeyboardInterrupt):
        train_ngram(workspace, config, shards_name="bpe", force=True)
    assert [path.name for path in (workspace.root / "runs").iterdir()] == ["ngram-bpe"]
    workspace.get("run", "ngram-bpe").verify()
    assert workspace.get("run", "ngram-bpe").manifest == run.manifest


def test_one_writer(workspace: Workspace):
    with (
        writer_lock(workspace.path("run", "ngram-bpe")),
        pytest.raises(BusyError, match="being written by another process"),
    ):
        train_ngram(workspace, resolve(), shards_name="bpe")


def test_the_newest_shards_are_taken(workspace: Workspace):
    newest = workspace.list("shards")[-1].manifest.name
    reporter = Notes()
    run, _ = train_ngram(workspace, resolve({"model": {"order": 1}}), reporter=reporter)
    assert run.manifest.inputs[0].name == f"shards/{newest}"
    assert f"shards: {newest} (the newest)" in reporter.notes
    with pytest.raises(InputError, match="no shards that suit --arch ngram"):
        train_ngram(Workspace(workspace.root / "other"), resolve())


def test_a_tokenizer_that_knows_no_start_of_a_document(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenizers.base, "BOUNDARIES", (("bos", "no such role"),))
    with pytest.raises(InputError, match="no tokens for a document's start and end"):
        train_ngram(workspace, resolve(), shards_name="bpe")
    with pytest.raises(InputError, match="no shards that suit --arch ngram"):
        train_ngram(workspace, resolve())


def test_nothing_held_out(tmp_path: Path, corpus_file: Path):
    make_shards(tmp_path, corpus_file, "all", tokenizer="bpe", validation=0)
    reporter = Notes()
    run, _ = train_ngram(Workspace(tmp_path), resolve(), reporter=reporter)
    assert "validation" not in run.manifest.summary
    assert any("no validation documents" in note for note in reporter.notes)


def test_fixed_discounts_are_told(tmp_path: Path):
    """Where no token is rare."""
    path = tmp_path / "few.txt"
    path.write_text("\n".join("ab " * count for count in (20, 30, 40, 50)))
    make_shards(tmp_path / "w", path, "few", tokenizer="bpe", vocab_size=None, validation=0)
    reporter = Notes()
    train_ngram(Workspace(tmp_path / "w"), resolve({"model": {"order": 1}}), reporter=reporter)
    assert any(
        "order 1: too few are rare to tell kneser-ney's discounts from; using 0.5, 1, 1.5" in note
        for note in reporter.notes
    )


def test_the_plan(workspace: Workspace):
    document = plan(
        workspace, PretrainRequest(resolve({"model": {"order": 4}}), shards="bpe"), Reporter()
    )
    assert document["config"]["model"]["order"] == 4
    run, _ = train_ngram(workspace, resolve({"model": {"order": 4}}), shards_name="bpe")
    summary = run.manifest.summary
    assert document["plan"]["shards"] == "bpe"
    assert document["plan"]["tokens"] == summary["tokens"]
    assert document["plan"]["parameters_at_most"] >= summary["parameters"]
    assert document["plan"]["expected_seconds"] > 0
    json.dumps(document)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"model": {"ordr": 3}}, r"unknown key 'model\.ordr' \(did you mean 'model\.order'\?\)"),
        ({"model": {"order": 0}}, r"model\.order: .* greater than or equal to 1, and 0 was given"),
        ({"model": {"k": 0.1}}, r"model\.k is for model\.smoothing=add-k"),
        ({"arch": "gpt"}, "arch: "),
    ],
)
def test_a_configuration_that_makes_no_sense(layer: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        resolve(layer)
