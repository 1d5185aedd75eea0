"""Plans against published counts, and precision against its measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmctl.errors import UsageError
from llmctl.models import ARCHITECTURES
from llmctl.models.bert import Bert, BertConfig
from llmctl.objectives.masked_lm import MaskedLM, MaskedLMConfig
from llmctl.objectives.masked_pretraining import MaskedPretraining
from llmctl.objectives.pretraining import DataConfig
from llmctl.tokenizers import learn
from llmctl.training import precision
from llmctl.training.plan import make_plan


def test_parameters_and_operations_of_bert_base():
    """BERT-base has 110 M parameters; its blocks cost six operations for each of their 85 M
    weights and token (Kaplan et al. 2020, eq. 2.2), attention's products aside."""
    config = BertConfig(vocab_size=30522, num_layers=12, hidden_size=768)
    with torch.device("meta"):
        model = MaskedLM(Bert(config))
    pretraining = MaskedPretraining(
        Path("shards"), learn("wordpiece", ["a few words"], 30, exact=False),
        ARCHITECTURES["bert"], config, MaskedLMConfig(), DataConfig(sequence_length=128), 256,
    )  # fmt: skip
    plan = make_plan(
        model, flops_per_token=pretraining.flops_per_token(), tokens_per_step=128 * 256,
        num_layers=12, hidden_size=768, total_steps=10, device=torch.device("cpu"),
        precision="fp32",
    )  # fmt: skip
    assert plan.parameters == pytest.approx(110e6, rel=0.01)
    blocks = 6 * 12 * 12 * 768**2
    attention = 12 * 12 * 128 * 768
    head = 6 * 0.15 * (768 * 30522 + 768**2)
    assert plan.flops_per_token == pytest.approx(blocks + attention + head)
    assert plan.tokens_per_step == 128 * 256
    assert plan.memory_bytes > 16 * plan.parameters


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_bf16_is_taken_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, expected: str
):
    rates = {torch.float32: 1.0, torch.bfloat16: gain}
    monkeypatch.setattr(precision, "matrix_rate", lambda device, dtype: rates[dtype])
    assert precision.choose_precision("auto", torch.device("cpu")) == expected
    assert precision.choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"training\.device cuda"):
            precision.choose_device("cuda")
    assert precision.choose_device("cpu").type == "cpu"
