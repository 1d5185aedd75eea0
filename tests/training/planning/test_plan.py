"""Plans against published counts and sums by hand, and precision against its measurement."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from llmctl.errors import UsageError
from llmctl.models import ARCHITECTURES
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.flops import multiplied_weights
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.reporting.plan import render_plan
from llmctl.tasks.masked_lm.task import MaskedPretraining
from llmctl.tasks.pretraining import resolve
from llmctl.tokenizers import learn
from llmctl.training import precision
from llmctl.training.config import TrainingConfig
from llmctl.training.planning.plan import Extent, TrainingPlan, parameters_by_part
from llmctl.training.planning.rehearsal import Memory, StepTimings

BERT_BASE = BertConfig(vocab_size=30522, num_layers=12, hidden_size=768)


def test_parameters_of_bert_base_by_part():
    """110 M in all (Devlin et al. 2018); each part by its shapes."""
    with torch.device("meta"):
        model = MaskedLM(Bert(BERT_BASE))
    V, D, F, L = 30522, 768, 3072, 12
    parts = parameters_by_part(model)
    assert parts == {
        "embeddings": (V + 512 + 2) * D,
        "attention": L * (4 * D * D + 4 * D),
        "feed-forward": L * (2 * D * F + F + D),
        "norms": (1 + 2 * L + 1) * 2 * D,
        "heads": (D * D + D) + V + (D * D + D) + (2 * D + 2),
    }
    assert sum(parts.values()) == pytest.approx(110e6, rel=0.01)


@pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])
def test_parameters_by_part_are_all_there_are(arch: str):
    architecture = ARCHITECTURES[arch]
    shape: dict[str, Any] = {"num_layers": 3, "hidden_size": 64, "num_heads": 4}
    more = {"qk_norm": True} if arch == "llama" else {}
    config = architecture.config(vocab_size=300, max_positions=32, **shape, **more)
    model = CausalLM(architecture.build(config))
    parts = parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert (parts["heads"] == 0) == (arch == "gpt")  # tied: the token embedding
    assert parts["attention"] >= 3 * 4 * 64 * 64
    assert (parts["norms"] == 0) == (arch == "nanochat")  # without gains
    # Attention's four matrices, the feed-forward's two of 256, or three of 192, and the output.
    inner = 3 * 192 if arch == "llama" else 2 * 256
    assert multiplied_weights(model.body) == 3 * (4 * 64 * 64 + inner * 64) + 300 * 64


def test_operations_of_bert_base(tmp_path: Path):
    """Its blocks cost six operations for each of their 85 M weights and token (Kaplan et al. 2020,
    eq. 2.2), attention's products aside."""
    tokenizer = learn("wordpiece", ["a few words"], 30, exact=False)
    tokenizer.save(tmp_path / "tokenizer")
    shape = {"model": {"num_layers": 12, "hidden_size": 768}, "data": {"sequence_length": 128}}
    shards: Any = SimpleNamespace(folder=tmp_path)
    pretraining = MaskedPretraining(shards, resolve("bert", None, shape))
    blocks = 6 * 12 * 12 * 768**2
    attention = 12 * 12 * 128 * 768
    head = 6 * 0.15 * (768 * tokenizer.vocab_size + 768**2)
    assert pretraining.flops_per_token() == pytest.approx(blocks + attention + head)


def make_plan(total_steps: int | None, *, looks: bool = True, **training: Any) -> TrainingPlan:
    """A step takes 0.1 s and 1,000 tokens, a validation 2 s, a checkpoint 1 s, the export 3 s, the
    first step 5 s more; 4 s to the trainer and 1 s for it."""
    return TrainingPlan(
        parameters={"embeddings": 100, "heads": 20},
        flops_per_token=6e6,
        rehearsal=StepTimings(
            build_seconds=1.0,
            first_seconds=5.1,
            step_seconds=[0.1, 0.1, 0.4],
            step_tokens=[1000.0] * 3,
            validation_seconds=2.0,
            checkpoint_seconds=1.0,
            export_seconds=3.0,
            memory=Memory(100, 10, 10, 20, 50, 10),
        ),
        training=TrainingConfig(**training),
        extent=Extent(total_steps, 250, looks),
        start_seconds=4.0,
        matrix_flops=1.2e11,
        mapped_bytes=1_000_000,
    )


def test_time_is_the_sum_of_what_is_done():
    document = make_plan(1000, max_steps=1000).document(price=2.5)
    by_part = document["seconds_by_part"]
    # 100 s of steps: a checkpoint after 60 s and at the end; a validation at 250, 500, 750, 1000.
    assert by_part["steps"] == pytest.approx(100.0)
    assert by_part["validations"] == 8.0
    assert by_part["checkpoints"] == 2.0
    assert by_part["export"] == 3.0
    assert by_part["warm-up"] == pytest.approx(5.0)
    assert by_part["start-up"] == pytest.approx(5.0, abs=1.0)
    assert document["expected_seconds"] == pytest.approx(sum(by_part.values()))
    assert document["cost"] == pytest.approx(document["expected_seconds"] / 3600 * 2.5)
    assert document["parameters"] == 120
    assert document["tokens"] == 1_000_000
    assert document["flops"] == 6e6 * 1e6
    assert document["flops_utilisation"] == pytest.approx(6e9 / 0.1 / 1.2e11)
    assert document["memory_bytes"] == 100 + 10 + 10 + 20 + 50 + 10 + 1_000_000


def beside(plan: TrainingPlan, others: float, own: float) -> TrainingPlan:
    """A plan of two threads that was timed while others used so many cores, and it so many."""
    found = replace(plan.rehearsal, others_cores=others, own_cores=own)
    return replace(plan, rehearsal=found, threads=2)


def test_what_a_quiet_machine_would_do():
    """A step of 0.1 s in which two threads had one core together takes 0.05 s with two."""
    plan = beside(make_plan(1000, max_steps=1000), others=1.0, own=1.0)
    document = plan.document()
    assert document["others_cores"] == 1.0
    # 100 s of steps and 8 s of validations were timed.
    assert document["quiet_seconds_at_least"] == pytest.approx(plan.seconds - 50 - 4)
    limited = beside(make_plan(None, time_limit=200), others=1.0, own=1.0)
    assert limited.quiet() == {"quiet_steps_at_most": 2 * limited.schedule().steps}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_plan({**document, "compiled": False, "device": "cpu", "precision": "fp32",
                               "stage": "pretrain", "shards": "docs"}))  # fmt: skip
    assert "others used meanwhile" in (page := console.export_text())
    assert "on a quiet machine, at the least" in page


@pytest.mark.parametrize(("others", "own"), [(0.2, 1.0), (1.0, 0.0)])
def test_of_a_quiet_machine_nothing_is_said_where_nothing_is_known(others: float, own: float):
    assert beside(make_plan(1000, max_steps=1000), others, own).quiet() == {}


def test_a_last_validation_that_is_not_due_comes_all_the_same():
    assert make_plan(1001, max_steps=1001).schedule().validations == 5
    assert make_plan(1000, looks=False, max_steps=1000).schedule().validations == 0
    assert make_plan(1000, max_steps=1000, checkpoint_every=300).schedule().checkpoints == 4


def test_shards_count_as_far_as_they_are_read():
    assert make_plan(10, max_steps=10).memory_by_kind()["shards"] == 2 * 10 * 1000


def test_memory_grows_by_its_fragments():
    plan = replace(make_plan(10, max_steps=10), fragments=0.05)
    assert plan.memory_by_kind()["fragments"] == 10  # of 200 at the rehearsal's peak
    assert plan.memory_bytes == 200 + 10 + 20_000


def test_a_time_limit_is_kept_and_what_follows_it_is_added():
    plan = make_plan(None, time_limit=200)
    done = plan.schedule()
    inside = 5.0 + done.steps * 0.1 + done.steps / 250 * 2.0 + 3 * 1.0
    assert inside == pytest.approx(200, rel=0.01)
    # Start-up 5 and a half, the last validation 2, checkpoint 1, export 3.
    assert plan.seconds == pytest.approx(200 + 11.5, abs=3.0)


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_bf16_is_taken_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, expected: str
):
    rates = {torch.float32: 1.0, torch.bfloat16: gain}
    monkeypatch.setattr(precision, "matrix_rate", lambda device, dtype, trials: rates[dtype])
    assert precision.choose_precision("auto", torch.device("cpu")) == expected
    assert precision.choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"training\.device cuda"):
            precision.choose_device("cuda")
    assert precision.choose_device("cpu").type == "cpu"
