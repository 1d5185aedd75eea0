"""Embeddings and heads in whole numbers: one table where they are one, in files, in transformers
and in the forms that weights are used in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmctl.compression.config import CompressConfig
from llmctl.compression.quantising import Beside, quantise
from llmctl.compression.rounding import Grid, round_matrix
from llmctl.compression.smaller import make_smaller, write_smaller
from llmctl.compression.speed import bytes_in_memory
from llmctl.errors import InputError, UsageError
from llmctl.formats.open import open_folder
from llmctl.inference.weights import prepare, prepare_reader
from llmctl.models.layers.quantised_embedding import QuantisedEmbedding
from llmctl.workspace.tensors import tensor_heads
from tests.compression.test_quantising import as_transformers_has_it, by_the_paper
from tests.foreign_models import save_model
from tests.small_decoders import make_model

TABLE = "body.token_embedding.weight"
WINDOWS = torch.randint(5, 50, (8, 16), generator=torch.Generator().manual_seed(0))
LLAMA = {"intermediate_size": 64}
KINDS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "LlamaForCausalLM": ("ours", LLAMA, {TABLE, "output.weight"}),
    "Qwen3ForCausalLM": ("ours", {**LLAMA, "tie_word_embeddings": True}, {TABLE}),
    "Gemma3ForCausalLM": ("ours", {**LLAMA, "tie_word_embeddings": True}, {TABLE}),
    "BertForSequenceClassification": (
        "bert", LLAMA, {TABLE, "pooler.weight", "output.weight"},
    ),
    "BertForMaskedLM": ("bert", LLAMA, {TABLE, "transform.weight"}),
}  # fmt: skip
"""By the class in transformers: the tokenizer, fields, and what is quantised beside the blocks."""


def small_folder(folder: Path, kind: str, **options: Any) -> Any:
    """A model of transformers' whose table and head are quantised, opened again."""
    like, more, _ = KINDS[kind]
    save_model(folder / "theirs", kind, like=like, hidden_size=32, num_attention_heads=4, **more)
    start = open_folder(folder / "theirs")
    config = CompressConfig(method="gptq", embeddings=True, head=True, **options)
    smaller = make_smaller(start, config, WINDOWS, lambda done, total: None)
    write_smaller(smaller, start, config, folder / "small")
    return open_folder(folder / "small")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True)])
def test_a_folder_opens_again(tmp_path: Path, kind: str, bits: int, symmetric: bool):
    again = small_folder(tmp_path, kind, bits=bits, symmetric=symmetric)
    assert {name for name in again.quantised if "blocks." not in name} == KINDS[kind][2]
    start = open_folder(tmp_path / "theirs")
    # The table is rounded, whatever the method, and lies in the file once.
    rounded = round_matrix(start.tensors[TABLE], Grid(bits, 32, symmetric)).dequantised()
    assert torch.equal(again.tensors[TABLE], rounded)
    heads = tensor_heads(tmp_path / "small" / "model.safetensors")
    outputs = len(rounded)
    tables = [n for n, (_, shape) in heads.items() if n.endswith("packed") and len(shape) == 2
              and shape[0] == outputs]  # fmt: skip
    assert len(tables) == (2 if kind.startswith("Llama") else 1)
    assert not any(tuple(shape) == tuple(rounded.shape) for _, shape in heads.values())
    as_transformers_has_it(tmp_path / "small", kind, again)


def tensors_of(network: nn.Module, *others: nn.Module) -> int:
    """Bytes of everything that some modules hold, each tensor once, packed ones as what they
    hold."""
    seen: dict[int, int] = {}
    for module in [part for each in (network, *others) for part in each.modules()]:
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        held += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        for tensor in held:
            seen[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"])
@pytest.mark.parametrize("bits", [4, 8])
def test_writing_reads_the_very_numbers(tmp_path: Path, kind: str, bits: int):
    model = small_folder(tmp_path, kind, bits=bits)
    ids, network = torch.arange(5, 15)[None], model.causal_lm().eval()
    with torch.no_grad():
        embedded = network.body.token_embedding(ids)
        hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
        logits = hidden @ network.output_weight.T
        head = prepare(network, "int4" if bits == 4 else "int8", rows=1)
        table = network.body.token_embedding
        assert isinstance(table, QuantisedEmbedding)
        torch.testing.assert_close(table(ids), embedded, rtol=1e-6, atol=1e-7)
        assert torch.equal(table.weight, model.tensors[TABLE])
        assert head is not None
        tolerance = 0.02 if bits == 4 else 0.03  # bf16 rows; rows and weights in 8 bits
        error = (head(hidden) - logits).norm() / logits.norm()
        assert error < tolerance
        network.body(ids)
    if bits == 4:
        # What is in memory is what the table of a compression says.
        padding = 16 - len(logits[0]) % 16  # rows of the kernel's output
        said = bytes_in_memory(model, "int4") + padding * (16 + 4)
        tied = 0 if network.output is None else 4 * network.output.weight.numel()
        assert tensors_of(network, head) - tied - rotary_bytes(network) == said


def rotary_bytes(network: nn.Module) -> int:
    """Bytes of tables of angles, which are no weights."""
    weights = {"numbers_VD", "scale_VG", "zero_VG"}
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in network.named_buffers()
        if name.rpartition(".")[2] not in weights
    )


def test_a_classifier_reads_its_table_in_eight_bits(tmp_path: Path):
    model = small_folder(tmp_path, "BertForSequenceClassification", bits=8)
    network, ids = model.classifier().eval(), torch.arange(5, 15)[None]
    with torch.no_grad():
        before = network.body(ids)
        prepare_reader(network.body, "int8", rows=16)
        after = network.body(ids)
    assert isinstance(network.body.token_embedding, QuantisedEmbedding)
    assert (after - before).norm() < 0.05 * before.norm()
    # A table of bytes, and a scale and a zero for each 32 of them, in the place of floats.
    outputs = model.config.vocab_size
    gone = bytes_in_memory(small_start(tmp_path), "int8") - bytes_in_memory(model, "int8")
    assert gone == outputs * (4 * 32 - 32 - 2 - 1)


def small_start(folder: Path) -> Any:
    return open_folder(folder / "theirs")


def test_weights_that_were_changed_stay_as_they_are(tmp_path: Path):
    model = small_folder(tmp_path, "Qwen3ForCausalLM", bits=4)
    network = model.causal_lm().eval()
    with torch.no_grad():
        network.body.token_embedding.weight[7] += 1.0
    prepare(network, "int4", rows=1)
    assert type(network.body.token_embedding) is nn.Embedding


def test_an_output_layer_by_the_papers_formula():
    model = make_model("llama", intermediate_size=64)
    start, grid = model.output.weight.detach().clone(), Grid(4, 32)
    ids = torch.arange(64).view(8, 8) % 18
    found = quantise(model, "gptq", grid, ids, beside=Beside(head=True))
    assert TABLE not in found
    with torch.no_grad():
        x = model.body(ids).flatten(0, 1)
    expected = by_the_paper(start.numpy(), (x.T @ x).double().numpy(), grid)
    same = torch.isclose(model.output.weight.double(), torch.from_numpy(expected), atol=1e-5)
    assert same.double().mean() > 0.95
    rounded = round_matrix(start, grid).dequantised()

    def error(kept: torch.Tensor) -> float:
        return float(((kept.detach() - start) @ x.T).norm())

    assert error(model.output.weight) < 0.95 * error(rounded)


def test_scaling_before_an_output_layer_changes_nothing_but_its_rounding():
    models = [make_model("llama", intermediate_size=64) for _ in range(2)]
    ids, grid = torch.arange(64).view(8, 8) % 18, Grid(8, 32)
    with torch.no_grad():
        for model in models:
            model.body.norm.weight[3] = 40.0  # an input that matters
        before = models[0].logits(models[0].body(ids))
        for model, beside in zip(models, (Beside(), Beside(head=True)), strict=True):
            quantise(model, "awq", grid, ids, beside=beside)
        after = [model.logits(model.body(ids)) for model in models]
    assert models[1].body.norm.weight[3] < models[0].body.norm.weight[3]
    errors = [float((logits - before).norm() / before.norm()) for logits in after]
    assert errors[1] < 2 * errors[0] + 0.01


def test_what_there_is_not(tmp_path: Path):
    save_model(tmp_path / "mini", "BertModel", like="bert", hidden_size=32, num_attention_heads=4,
               intermediate_size=64)  # fmt: skip
    body = open_folder(tmp_path / "mini").backbone()
    embedder = nn.Module()
    embedder.body = body
    with pytest.raises(InputError, match="--head: nothing with weights stands on"):
        quantise(embedder, "round", Grid(4, 32), None, beside=Beside(head=True))
    with pytest.raises(UsageError, match="--group 64 does not divide the 32 inputs"):
        quantise(embedder, "round", Grid(4, 64), None, beside=Beside(embeddings=True))
    with pytest.raises(ValueError, match="embeddings goes with the methods round, gptq, awq"):
        CompressConfig(method="layers", embeddings=True)
