"""Models out of the workspace and into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import InputError, UsageError
from llmctl.formats.gguf.file import GgufFile
from llmctl.formats.open import open_folder, open_model
from llmctl.stages.export import ExportConfig, export
from llmctl.stages.import_model import import_model
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def logits_of(model: Any) -> torch.Tensor:
    network = model.causal_lm().eval()
    with torch.no_grad():
        return network.logits(network.body(torch.arange(3, 15)[None]))


def test_a_folder_is_imported_as_it_is(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "LlamaForCausalLM", like="llama")
    (tmp_path / "theirs" / "run_me.py").write_text("print('no')")
    run, up_to_date = import_model(place, str(tmp_path / "theirs"), name="mine")
    assert not up_to_date
    assert run.manifest.summary["arch"] == "llama"
    names = {path.name for path in (run.folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "run_me.py" not in names
    kept = (run.folder / "model" / "model.safetensors").read_bytes()
    assert kept == (tmp_path / "theirs" / "model.safetensors").read_bytes()
    again, up_to_date = import_model(place, str(tmp_path / "theirs"), name="mine")
    assert up_to_date
    assert again.manifest.digest == run.manifest.digest


def test_a_file_goes_out_and_in(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "LlamaForCausalLM", like="ours", vocab_size=290)
    config = ExportConfig(format="gguf", quantisation="f32")
    out = tmp_path / "a.gguf"
    assert not export(place, str(tmp_path / "theirs"), config, out=out).up_to_date
    assert export(place, str(tmp_path / "theirs"), config, out=out).up_to_date
    import_model(place, str(out), name="back")
    model, _ = open_model(place, "back")
    expected = logits_of(open_folder(tmp_path / "theirs"))
    torch.testing.assert_close(logits_of(model), expected)
    assert model.tokenizer.chat_template == open_folder(out).tokenizer.chat_template is not None
    with pytest.raises(UsageError, match=r"a\.gguf is there already, and isn't this export"):
        export(place, "back", config, out=out)
    assert not export(place, "back", config, out=out, force=True).up_to_date


def test_ollama_has_the_template_and_what_ends_an_answer(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "LlamaForCausalLM", like="ours")
    config = ExportConfig(format="ollama", quantisation="q8_0")
    out = export(place, str(tmp_path / "theirs"), config, out=tmp_path / "o").path
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n" in text
    assert "<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert open_folder(out).kind == "causal_lm"


def test_hf_opens_in_transformers(place: Workspace, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path / "theirs", "Qwen3ForCausalLM", like="ours")
    config = ExportConfig(format="gguf", quantisation="f32")
    export(place, str(tmp_path / "theirs"), config, out=tmp_path / "a.gguf")
    out = export(place, str(tmp_path / "a.gguf"), ExportConfig(format="hf"), out=tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out.path).eval()
    with torch.no_grad():
        expected = theirs(torch.arange(3, 15)[None]).logits
    ours = logits_of(open_folder(tmp_path / "theirs"))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_what_was_changed_since_is_not_up_to_date(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "Qwen3ForCausalLM", like="ours")
    config = ExportConfig(format="hf")
    out = export(place, str(tmp_path / "theirs"), config, out=tmp_path / "hf").path
    assert export(place, str(tmp_path / "theirs"), config, out=out).up_to_date
    (out / "config.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="isn't this export"):
        export(place, str(tmp_path / "theirs"), config, out=out)


def test_a_refused_export_leaves_nothing(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "NanoChatForCausalLM", like="ours")
    for format in ("gguf", "ollama"):
        with pytest.raises(InputError, match="can't hold a nanochat"):
            export(place, str(tmp_path / "theirs"), ExportConfig(format=format), out=tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "no such folder or file"), (".", "holds no model that is known here")],
)
def test_a_source_that_is_none(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        import_model(place, source)


def test_the_hub_is_not_asked_where_it_must_not_be(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="nobody/nothing on the Hugging Face Hub: it is not in"):
        import_model(place, "nobody/nothing")


def test_the_head_tells_what_a_file_was_made_from(place: Workspace, tmp_path: Path):
    save_model(tmp_path / "theirs", "LlamaForCausalLM", like="ours")
    out = tmp_path / "a.gguf"
    export(place, str(tmp_path / "theirs"), ExportConfig(format="gguf"), out=out)
    head = GgufFile(out).head
    assert head["general.name"] == "theirs"
    assert head["general.file_type"] == 1
    assert len(head["llmctl.made_from"]) == 64


def test_how_texts_are_chosen_goes_out_too(place: Workspace, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    theirs = tmp_path / "theirs"
    save_model(theirs, "LlamaForCausalLM", like="ours")
    path = theirs / "generation_config.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    said = {"do_sample": True, "temperature": 0.3, "top_k": 7, "repetition_penalty": 1.2}
    path.write_text(json.dumps({**before, **said}))
    out = export(place, str(theirs), ExportConfig(format="hf"), out=tmp_path / "hf").path
    read = transformers.GenerationConfig.from_pretrained(out)
    assert {name: getattr(read, name) for name in said} == said
    out = export(place, str(theirs), ExportConfig(format="ollama"), out=tmp_path / "o").path
    lines = (out / "Modelfile").read_text().splitlines()
    for line in ("temperature 0.3", "top_k 7", "repeat_penalty 1.2"):
        assert f"PARAMETER {line}" in lines
