"""Backbones say what they are made of, and nothing else in the package guesses it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from llmctl.formats.filling import fill
from llmctl.formats.huggingface.tensors import export_model, import_model
from llmctl.models import ARCHITECTURES
from llmctl.models.decoder import Decoder, DecoderConfig
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.gpt_bert import MaskedNextTokenLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.regress import Regressor
from llmctl.models.heads.replaced_tokens import ReplacedTokenDetector
from llmctl.models.heads.tag import Tagger
from llmctl.models.spec import Backbone, ModelConfig, backbones, layers_of, roles_of
from llmctl.tasks import tasks_of

PACKAGE = Path(__file__).parents[2] / "llmctl"
NAMES = {
    *ARCHITECTURES,
    *(spec.class_prefix for spec in ARCHITECTURES.values()),
}
CLASSES = {
    kind.__name__
    for spec in ARCHITECTURES.values()
    for kind in (*spec.config.__mro__, *spec.build.__mro__)
    if kind.__module__.startswith("llmctl.models") and kind is not Backbone
}
FILES = {spec.config.__module__ for spec in ARCHITECTURES.values()}


def small(arch: str) -> Backbone:
    spec = ARCHITECTURES[arch]
    shape = {"num_layers": 3, "hidden_size": 64, "num_heads": 4, "vocab_size": 11}
    return spec.build(spec.config.model_validate(shape))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_has_a_role_and_every_matrix_is_in_a_layer(arch: str):
    body = small(arch)
    roles = roles_of(body)
    assert roles.keys() == dict(body.named_parameters()).keys()
    inside = {parameter for layer in body.layers() for parameter in layer.parameters()}
    for name, parameter in body.named_parameters():
        role = roles[name]
        assert (role.kind == "matrix") == (parameter.dim() == 2 and parameter in inside), name
        assert not role.fused or sum(role.fused) == len(parameter)
        assert ("norm" in name) == (role.kind == "norm") == (role.part == "norms"), name
    tokens = [name for name, role in roles.items() if role.kind == "token-embedding"]
    assert tokens == ["token_embedding.weight"]
    assert body.get_parameter(tokens[0]) is body.embedding().weight
    assert layers_of(body) == list(body.layers())
    stacks = 2 if body.kind == "encoder-decoder" else 1
    assert len(body.layers()) == 3 * stacks


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_lowest_part_has_the_embeddings_and_so_many_layers(arch: str):
    body = small(arch)
    lowest = body.lowest(2)
    assert lowest[-2:] == list(body.layers()[:2])
    assert body.embedding() in lowest
    upper = {parameter for layer in body.layers()[2:] for parameter in layer.parameters()}
    assert not upper & {parameter for part in lowest for parameter in part.parameters()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_smaller_one_starts_as_evenly_chosen_layers(arch: str):
    torch.manual_seed(0)
    large, body = small(arch), small(arch)
    for parameter in large.parameters():
        torch.nn.init.normal_(parameter)
    small_one = type(large)(body.config.replace(num_layers=2))
    small_one.start_as(large)
    for name, value in small_one.state_dict().items():
        theirs = re.sub(r"\bblocks\.1\.", "blocks.2.", name)
        assert torch.equal(value, large.state_dict()[theirs]), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_entry_is_whole(arch: str):
    spec = ARCHITECTURES[arch]
    assert spec.task in tasks_of("pretrain")
    assert "mini" in spec.presets
    assert "nano" in spec.presets
    assert issubclass(spec.config, ModelConfig)
    assert (spec.kind == "decoder") == issubclass(spec.config, DecoderConfig)
    assert (spec.kind == "decoder") == issubclass(spec.build, Decoder)
    assert backbones(small(arch)).keys() == {""}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_stands_on_a_backbone_leads_back(arch: str):
    """Of each task that it has names for, with an output layer of its own."""
    spec = ARCHITECTURES[arch]
    config = small(arch).config
    if "tie_embeddings" in type(config).model_fields:
        config = config.replace(tie_embeddings=False)
    makers: dict[str, Callable[[], nn.Module]] = {
        "classify": lambda: Classifier(spec.build(config), 3),
        "regress": lambda: Regressor(spec.build(config)),
        "masked_lm": lambda: MaskedLM(spec.build(config), next_sentence=spec.judges_pairs),
        "causal_lm": lambda: CausalLM(spec.build(config)),
        "electra": lambda: ReplacedTokenDetector(spec.build(config)),
        "tag": lambda: Tagger(spec.build(config), 3),
        "seq2seq": lambda: EncoderDecoderLM(spec.build(config)),  # type: ignore[arg-type]
        "gpt_bert": lambda: MaskedNextTokenLM(spec.build(config)),
    }
    models = {kind: makers[kind] for kind in spec.weights["huggingface"].heads}
    assert spec.usual_head in models
    assert ("classify" in models) == (spec.class_layer is not None)
    for task, make in models.items():
        model, again = make(), make()
        tensors = export_model(model.state_dict(), task, spec, config)
        beside = tensors.keys() - spec.export_tensors(model.body.state_dict(), config).keys()  # type: ignore[operator]
        assert beside == spec.head_names(task).keys()
        fill(again.state_dict(), import_model(tensors, task, spec, config))
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


@cache
def outside() -> list[tuple[str, ast.AST]]:
    """Each node of the code outside of the networks, with its place."""
    return list(_outside())


def _outside() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "models":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{path}:{getattr(node, 'lineno', 0)}", node


def decided_by(node: ast.AST) -> set[str]:
    """The texts that a comparison, a question to a text, or a table by name decides by."""
    asked: list[ast.AST] = []
    if isinstance(node, ast.Compare | ast.MatchValue):
        asked = [node]
    elif isinstance(node, ast.Dict):
        asked = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        questions = ("startswith", "endswith", "partition", "rpartition", "split", "removeprefix")
        asked = list(node.args) if node.func.attr in questions else []
    return {
        child.value
        for part in asked
        for child in ast.walk(part)
        if isinstance(child, ast.Constant) and isinstance(child.value, str)
    }


def test_no_code_finds_layers_by_their_name():
    called = {id(node.func) for _, node in outside() if isinstance(node, ast.Call)}
    for where, node in outside():
        if isinstance(node, ast.Attribute) and id(node) not in called:
            assert node.attr not in ("blocks", "token_embedding"), where
        parts = ("blocks.", "_embedding", "feed_forward", "attention.", "lm_head")
        found = [text for text in decided_by(node) if any(part in text for part in parts)]
        assert not found, (where, found)


def test_no_code_decides_by_the_name_of_an_architecture():
    # What others call who speaks, and their tokenizers.
    others = ("data/tables/turns.py", "llmctl/tokenizers/")
    for where, node in outside():
        if not any(other in where for other in others):
            assert not decided_by(node) & NAMES, where


def test_no_code_knows_an_architecture_s_classes():
    for where, node in outside():
        if isinstance(node, ast.ImportFrom):
            assert node.module not in FILES, where
        names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
        if isinstance(node, ast.Call | ast.Compare) and {"isinstance", "type"} & names:
            assert not names & CLASSES, where
