"""A LoRA adapter beside its base, beside PEFT's own sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import EngineRequest
from llmctl.serving.config import ServeConfig
from llmctl.serving.server import open_serving
from llmctl.workspace.artefacts import Workspace


def test_an_adapter_answers_under_its_bases_name(decoder_workspace: Path, tmp_path: Path):
    """fp32 products in another order: 1e-4."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    path = decoder_workspace / "runs" / "tiny-llama" / "model"
    base = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    adapters = [f"mine={tmp_path / 'adapter'}"]
    serving = open_serving(
        Workspace(decoder_workspace), [f"base={path}"], ServeConfig(), adapters=adapters
    )
    assert list(serving.models) == ["base", "base:mine"]
    ids = [5, 6, 7, 8, 9]
    found = {}
    for name, served in serving.models.items():
        engine = served.writer
        rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=1), served.tokenizer)
        engine.submit(EngineRequest(prompt=ids, rules=rules, prompt_top=0))
        (token,) = engine.step()
        found[name] = [one.log_prob for one in token.prompt[1:]]
    with torch.no_grad():
        adapted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        with model.disable_adapter():
            plain = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for name, table in (("base", plain), ("base:mine", adapted)):
        expected = [float(table[place - 1, ids[place]]) for place in range(1, len(ids))]
        assert found[name] == pytest.approx(expected, abs=1e-4)
    assert found["base"] != pytest.approx(found["base:mine"], abs=1e-2)
