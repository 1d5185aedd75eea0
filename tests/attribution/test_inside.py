"""What happens inside, against transformers' networks and against networks made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.attribution.inside import VIEWS
from llmctl.attribution.inside.base import Subject
from llmctl.attribution.inside.induction import repeated_tokens
from llmctl.attribution.inside.lens import lens_of
from llmctl.attribution.inside.patching import recovered
from llmctl.cli.app import app
from llmctl.data.tables.labelled import Example
from llmctl.stages.explain.words import open_explainer
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model

TEXT = "the ship sails over the wide sea"


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def subject(folder: Path, *texts: str, **asked: Any) -> Subject:
    explainer = open_explainer(
        Workspace(folder.parent), str(folder), ExplainedAnswer(**asked), device="cpu"
    )
    explained = [explainer.explained(Example(text, None, None, "text")) for text in texts]
    body: Any = explainer.network.body
    return Subject("model", explainer.network, body, explainer.tokenizer, explained)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "like", "text"),
    [
        ("GPT2LMHeadModel", "gpt2", TEXT),
        ("LlamaForCausalLM", "llama", TEXT),
        ("BertForMaskedLM", "bert", f"{TEXT} [MASK]"),
        ("ModernBertForMaskedLM", "bert", f"{TEXT} [MASK]"),
    ],
)
def test_the_lens_is_that_of_transformers(tmp_path: Path, kind: str, like: str, text: str):
    folder = tmp_path / "model"
    theirs = save_model(folder, kind, like=like).float()
    mine = subject(folder, text)
    found_LTV = lens_of(mine)
    ids = mine.texts[0].ids_T[None]
    with torch.no_grad():
        output = theirs(ids, output_hidden_states=True)
        states = [*output.hidden_states[:-1]]
        if kind == "GPT2LMHeadModel":
            heads = [theirs.lm_head(theirs.transformer.ln_f(state)) for state in states]
        elif kind == "LlamaForCausalLM":
            heads = [theirs.lm_head(theirs.model.norm(state)) for state in states]
        elif kind == "BertForMaskedLM":
            heads = [theirs.cls(state) for state in states]
        else:
            norm = theirs.model.final_norm
            heads = [theirs.decoder(theirs.head(norm(state))) for state in states]
    expected = torch.stack([*heads, output.logits])[:, 0].log_softmax(-1)
    torch.testing.assert_close(found_LTV, expected, rtol=1e-4, atol=1e-4)
    record = VIEWS["lens"]().look(mine).record
    assert record["layers"][-1]["rank"] == 1
    assert record["layers"][-1]["kl"] == pytest.approx(0, abs=1e-9)
    first = record["layers"][0]
    place = mine.texts[0].read_at[0]
    last, own = expected[-1, place].double(), expected[0, place].double()
    assert first["kl"] == pytest.approx(float((last.exp() * (last - own)).sum()), rel=1e-3)


@pytest.mark.reference
def test_attention_and_heads_are_those_of_transformers(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "GPT2LMHeadModel", like="gpt2", attn_implementation="eager").float()
    mine = subject(folder, TEXT)
    text = mine.texts[0]
    with torch.no_grad():
        output = theirs(text.ids_T[None], output_attentions=True)
    record = VIEWS["attention"]().look(mine).record
    for own, their in zip(record["weights"], output.attentions, strict=True):
        np.testing.assert_allclose(own, their[0].numpy(), atol=1e-5)
    weights = output.attentions[1][0, 1].double().numpy()
    one = next(h for h in record["heads"] if (h["layer"], h["head"]) == (1, 1))
    entropy = -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(1)
    assert one["entropy"] == pytest.approx(entropy.mean(), abs=1e-5)
    assert one["before"] == pytest.approx(np.diag(weights, -1).mean(), abs=1e-6)

    answer = int(output.logits[0, -1].argmax())

    def number(hooked: Any = theirs.lm_head, columns: slice = slice(0), by: float = 0.0) -> float:
        def scaled(module: Any, inputs: Any) -> Any:
            x = inputs[0].clone()
            x[..., columns] *= by
            return (x,)

        handle = hooked.register_forward_pre_hook(scaled)
        with torch.no_grad():
            logits = theirs(text.ids_T[None]).logits[0, -1]
        handle.remove()
        return float(logits.log_softmax(-1)[answer])

    record = VIEWS["heads"]().look(mine).record
    config = theirs.config
    width = config.n_embd // config.n_head
    for one in record["heads"]:
        projection = theirs.transformer.h[one["layer"]].attn.c_proj
        columns = slice(one["head"] * width, (one["head"] + 1) * width)
        assert one["lost"] == pytest.approx(number() - number(projection, columns), abs=1e-4)
    for one in record["neurons"]:
        projection = theirs.transformer.h[one["layer"]].mlp.c_proj
        columns = slice(one["neuron"], one["neuron"] + 1)
        assert one["lost"] == pytest.approx(number() - number(projection, columns), abs=1e-4)
        # Σ a ∂F/∂a is the slope of F where a is scaled.
        slope = (number(projection, columns, 1.02) - number(projection, columns, 0.98)) / 0.04
        assert one["estimate"] == pytest.approx(slope, rel=0.02, abs=2e-3)


@pytest.mark.reference
def test_patching_is_that_of_transformers(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "LlamaForCausalLM", like="llama").float()
    mine = subject(folder, "the ship sails", "the ship sailt")
    first, second = mine.texts
    found_LT, whole, other = recovered(mine.body, first, second)
    layer, place = 0, int((first.ids_T != second.ids_T).nonzero()[0])
    with torch.no_grad():
        output = theirs(first.ids_T[None], output_hidden_states=True)
        state, answer = output.hidden_states[layer + 1], int(output.logits[0, -1].argmax())

        def patched(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[0, place] = state[0, place]
            return output

        theirs.model.layers[layer].register_forward_hook(patched)
        logits = theirs(second.ids_T[None]).logits[0, -1]
    number = float(logits.log_softmax(-1)[answer])
    assert found_LT[layer, place] == pytest.approx((number - other) / (whole - other), abs=1e-3)
    # Behind the last layer only the last token is read, and it has all of the answer.
    torch.testing.assert_close(float(found_LT[-1, -1]), 1.0, rtol=1e-4, atol=1e-4)
    assert float(found_LT[-1, :-1].abs().max()) < 1e-4
    insight = VIEWS["patch"]().look(mine)
    np.testing.assert_allclose(insight.record["recovered"], found_LT.numpy())
    table: Any = insight.parts[0]
    assert table.headings[-1] == "most by another"
    assert len(table.rows) == len(found_LT)
    assert {len(row) for row in table.rows} == {len(table.headings) + 1}


def test_an_induction_head_has_a_score_of_its_attention(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "GPT2LMHeadModel", like="gpt2", attn_implementation="eager").float()
    mine = subject(folder)
    record = VIEWS["induction"]().look(mine).record
    half = record["tokens"]
    ids = repeated_tokens(mine, half)
    before = ids.shape[1] - 2 * half
    assert (ids[:, before : before + half] == ids[:, before + half :]).all()
    with torch.no_grad():
        output = theirs(ids, output_attentions=True)
    for one in record["heads"]:
        weights = output.attentions[one["layer"]][:, one["head"]].double().numpy()
        places = np.arange(before + half, before + 2 * half)
        expected = [weights[:, t, t - half + 1].mean() for t in places]
        assert one["induction"] == pytest.approx(np.mean(expected), abs=1e-5)
    logs = output.logits.double().log_softmax(-1)
    losses = [-float(logs[row, t, ids[row, t + 1]]) for row in range(len(ids))
              for t in range(before + half, before + 2 * half - 1)]  # fmt: skip
    assert record["loss_again"] == pytest.approx(np.mean(losses), abs=1e-4)


@pytest.mark.parametrize("way", ["attention", "lens", "heads"])
def test_the_command_shows_a_run_of_ours(models: Workspace, way: str):
    where = ("--workspace", str(models.root))
    shown = run_cli("explain", "gpt", TEXT, "--inside", way, *where).output
    assert "gpt" in shown
    told = json.loads(run_cli("explain", "gpt", TEXT, "--inside", way, "--json", *where).stdout)
    assert told["inside"] == way
    assert told["text"] == TEXT


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["gpt", TEXT, "--inside", "lenses"], 2, "did you mean 'lens'"),
        (["gpt", TEXT, "--inside", "patch"], 2, "looks at two texts, and 1 were given"),
        (["gpt", TEXT, "--inside", "induction"], 2, "looks at no text, and 1 were given"),
        (["gpt", TEXT, "--inside", "lens", "--method", "shapley"], 2, "takes no --method"),
        (["gpt", TEXT, "the sea", "--inside", "patch"], 3, "of equally many tokens"),
        (["subjects", TEXT, "--inside", "lens"], 3, "no output layer for tokens"),
        (["subjects", "--inside", "induction"], 3, "no language model"),
    ],
)
def test_what_cannot_be_seen_is_told(models: Workspace, words: list[str], code: int, says: str):
    result = run_cli("explain", *words, "--workspace", str(models.root), code=code)
    assert says in " ".join(result.output.split())
