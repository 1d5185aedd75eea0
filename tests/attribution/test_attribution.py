"""Weights of words against autograd through transformers' networks, and their faithfulness."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.explained import ExplainedText, words_of_tokens
from llmctl.attribution.faithfulness import Curves
from llmctl.cli.app import app
from llmctl.data.tables.labelled import Example
from llmctl.reporting.explanation import incomplete, render_explanation
from llmctl.stages.explain.words import open_explainer
from llmctl.tasks.explanation import ExplainedAnswer
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model

TEXT = "the ship sails over the wide sea"
EXAMPLE = Example(TEXT, None, None, "text 1")


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def explained(folder: Path, **asked: Any) -> ExplainedText:
    explainer = open_explainer(
        Workspace(folder.parent), str(folder), ExplainedAnswer(**asked), device="cpu"
    )
    return explainer.explained(EXAMPLE)


def integral(text: ExplainedText, theirs: Any, number: Any) -> tuple[np.ndarray, float]:
    """The weights of 300 midpoints between the embeddings, through ``inputs_embeds``, and the
    difference that they are to sum up to."""
    embed = theirs.get_input_embeddings()
    hidden = torch.from_numpy(text.word_T >= 0)
    x = embed(text.ids_T)[None].detach()
    base = embed(text.ids_T.masked_fill(hidden, text.blank))[None].detach()
    total = torch.zeros_like(x)
    for alpha in (np.arange(300) + 0.5) / 300:
        point = (base + float(alpha) * (x - base)).requires_grad_(True)
        total += torch.autograd.grad(number(theirs(inputs_embeds=point)), point)[0] / 300
    weights_T = (total * (x - base)).sum(-1)[0].numpy()
    words = [weights_T[text.word_T == word].sum() for word in range(len(text.words))]
    whole = number(theirs(inputs_embeds=x)) - number(theirs(inputs_embeds=base))
    return np.array(words), whole.item()


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "like"),
    [
        ("BertForSequenceClassification", "bert"),
        ("ModernBertForSequenceClassification", "bert"),
        ("LlamaForSequenceClassification", "llama"),
    ],
)
def test_integrated_gradients_are_those_of_transformers(tmp_path: Path, kind: str, like: str):
    folder = tmp_path / "model"
    theirs = save_model(folder, kind, like=like, num_labels=3, pad_token_id=0).float()
    text = explained(folder, answer="LABEL_2")
    expected, whole = integral(text, theirs, lambda output: output.logits[0, 2])
    method = ATTRIBUTION_METHODS["integrated-gradients"]()
    found = method.weights(text)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * abs(expected).max())
    assert found.sum() == pytest.approx(whole, rel=0.01)
    assert method.facts()["missed"] <= 0.01
    assert ATTRIBUTION_METHODS["shapley"]().weights(text).sum() == pytest.approx(whole, abs=1e-4)


@pytest.mark.reference
def test_a_next_word_against_another(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "GPT2LMHeadModel", like="gpt2").float()
    text = explained(folder, answer="the", against="a")
    explainer = open_explainer(Workspace(tmp_path), str(folder), ExplainedAnswer(), device="cpu")
    first, other = (explainer.piece(word, "") for word in ("the", "a"))

    def number(output: Any) -> torch.Tensor:
        return output.logits[0, -1, first] - output.logits[0, -1, other]

    x = theirs.get_input_embeddings()(text.ids_T)[None].detach().requires_grad_(True)
    gradient = torch.autograd.grad(number(theirs(inputs_embeds=x)), x)[0]
    weights_T = (gradient * x).sum(-1)[0].detach().numpy()
    expected = [weights_T[text.word_T == word].sum() for word in range(len(text.words))]
    np.testing.assert_allclose(
        ATTRIBUTION_METHODS["gradient-input"]().weights(text), expected, atol=1e-5
    )
    last = len(text.words) - 1
    without = text.ids_T.masked_fill(torch.from_numpy(text.word_T == last), text.blank)[None]
    with torch.no_grad():
        lost = float(number(theirs(text.ids_T[None])) - number(theirs(without)))
    assert ATTRIBUTION_METHODS["occlusion"]().weights(text)[last] == pytest.approx(lost, abs=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "like"), [("T5ForConditionalGeneration", "t5"), ("BertForTokenClassification", "bert")]
)
def test_translators_and_taggers_are_explained(tmp_path: Path, kind: str, like: str):
    folder = tmp_path / "model"
    theirs = save_model(folder, kind, like=like)
    tagger = like == "bert"
    text = explained(folder, **({"word": 2} if tagger else {"answer": "the farmer"}))
    if tagger:
        place = int(np.flatnonzero(text.word_T == 1)[0])

        def number(ids: torch.Tensor) -> float:
            logits = theirs(ids).logits[0, place]
            return float(logits[int(theirs(text.ids_T[None]).logits[0, place].argmax())])

    else:
        explainer = open_explainer(
            Workspace(tmp_path), str(folder), ExplainedAnswer(), device="cpu"
        )
        target = torch.tensor([explainer._ids("the farmer")])  # type: ignore[attr-defined]

        def number(ids: torch.Tensor) -> float:
            return -float(theirs(input_ids=ids, labels=target).loss) * target.shape[1]

    with torch.no_grad():
        whole = number(text.ids_T[None])
        nothing = number(text.rows(np.zeros((1, len(text.words)), dtype=bool)))
    found = ATTRIBUTION_METHODS["integrated-gradients"]().weights(text)
    assert found.sum() == pytest.approx(whole - nothing, rel=0.02, abs=1e-3)
    lost = ATTRIBUTION_METHODS["occlusion"]().weights(text)[-1]
    kept = np.array([[True] * (len(text.words) - 1) + [False]])
    with torch.no_grad():
        assert lost == pytest.approx(whole - number(text.rows(kept)), abs=1e-3)


@pytest.mark.reference
def test_rollout_is_the_product_of_transformers_attentions(tmp_path: Path):
    folder = tmp_path / "model"
    theirs = save_model(folder, "BertForSequenceClassification", like="bert", num_labels=2)
    theirs.set_attn_implementation("eager")
    text = explained(folder)
    with torch.no_grad():
        layers = theirs(text.ids_T[None], output_attentions=True).attentions
    rolled = np.eye(len(text.ids_T))
    for attention in layers:
        mixed = attention[0].mean(0).double().numpy() / 2 + np.eye(len(rolled)) / 2
        rolled = mixed @ rolled
    expected = [rolled[0, text.word_T == word].sum() for word in range(len(text.words))]
    np.testing.assert_allclose(
        ATTRIBUTION_METHODS["attention-rollout"]().weights(text), expected, atol=1e-5
    )


class Sum(torch.nn.Module):
    """A number that is the sum of what each token is worth."""

    def __init__(self, worth: list[float]) -> None:
        super().__init__()
        self.worth = torch.tensor(worth, dtype=torch.float64)

    def forward(self, ids_RT: torch.Tensor) -> torch.Tensor:
        return self.worth[ids_RT].sum(-1)


def of_sum(worth: list[float]) -> ExplainedText:
    network, count = Sum([0.0, *worth]), len(worth)
    return ExplainedText(
        "x" * count, tuple((n, n + 1) for n in range(count)), "", torch.arange(1, count + 1),
        np.arange(count), 0, network, torch.nn.Embedding(count + 1, 1), network,
    )  # fmt: skip


def test_curves_of_a_sum_have_their_closed_form():
    text = of_sum([4.0, 3.0, 2.0, 1.0])
    best = Curves(text).of(np.array([4.0, 3.0, 2.0, 1.0]))
    worst = Curves(text).of(np.array([1.0, 2.0, 3.0, 4.0]))
    # By trapezia over 10, 6, 3, 1, 0 of 10.
    assert best.deletion == pytest.approx((1.0 / 2 + 0.6 + 0.3 + 0.1) / 4)
    assert best.insertion == pytest.approx(1 - best.deletion)
    assert worst.deletion == pytest.approx(best.insertion)
    assert best.better > 0 > worst.better
    assert best.better + worst.better == pytest.approx(1 - 2 * 0.5 - best.random_insertion
                                                       + best.random_deletion)  # fmt: skip
    np.testing.assert_allclose(ATTRIBUTION_METHODS["occlusion"]().weights(text), [4, 3, 2, 1])
    np.testing.assert_allclose(ATTRIBUTION_METHODS["shapley"]().weights(text), [4, 3, 2, 1])


def test_each_token_belongs_to_the_word_whose_characters_it_holds():
    # "in Oslo, 不行": pieces "in", " Os", "lo,", " ", "不行"
    words = ((0, 2), (3, 7), (7, 8), (9, 10), (10, 11))
    found = words_of_tokens(words, [0, 2, 5, 8, 9], [2, 5, 8, 9, 11])
    assert found.tolist() == [0, 1, 2, -1, 4]


def test_the_command_explains_each_kind_of_model(own_workspace: Path, tmp_path: Path):
    where = ("-w", own_workspace)
    page = tmp_path / "page.html"
    told = run_cli("explain", "subjects", "The <b>cows</b> at dawn", "--html", page, *where)
    assert "random order" in told.stdout
    assert "&lt;" in page.read_text()
    assert "<b>" not in page.read_text()
    (line,) = run_cli("explain", "subjects", TEXT, "--json", *where).stdout.splitlines()
    record = json.loads(line)
    assert [word["text"] for word in record["words"]] == TEXT.split()
    assert set(record["methods"]) == set(ATTRIBUTION_METHODS)
    assert record["best_method"] == max(
        record["methods"], key=lambda name: record["methods"][name]["faithfulness"]
    )
    masked = json.loads(run_cli("explain", "tiny", "the [MASK] sails far", "--json", *where).stdout)
    assert [word["text"] for word in masked["words"]] == ["the", "sails", "far"]
    file = tmp_path / "texts.txt"
    file.write_text("the ship sails\nhens lay eggs\nthe tram stops\n")
    asked = ("explain", "--from", "subjects", "--data", file, "--method", "occlusion", *where)
    assert "over 3 texts" in run_cli(*asked, "--method", "gradient-input").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["subjects"], "give texts or --data FILE"),
        (["subjects", "a text", "--method", "lime"], "there is no such method"),
        (["subjects", "a text", "--answer", "forest"], "no such label"),
        (["subjects", "a text", "--word", "1"], "--word is not for a classifier"),
        (["subjects", "a text", "--text-pair", "another"], "was trained on single texts"),
        (["tiny", "no mask here"], "has no [MASK]"),
        (["subjects", "the sea " * 40], "shorten it"),
        (["subjects", " "], "no word that could be explained"),
    ],
)
def test_what_can_not_be_explained_is_told(tiny_workspace: Path, words: list[str], said: str):
    result = CliRunner().invoke(app, ["explain", *words, "-w", str(tiny_workspace)])
    assert result.exit_code in (2, 3), result.output
    assert said in " ".join(result.output.split())


@pytest.mark.reference
@pytest.mark.parametrize("against", [None, "hens lay"])
def test_a_word_of_several_tokens_is_explained(tmp_path: Path, against: str | None):
    folder = tmp_path / "model"
    theirs = save_model(folder, "GPT2LMHeadModel", like="gpt2").float()
    text = explained(folder, answer="captain watches", against=against)
    explainer = open_explainer(Workspace(tmp_path), str(folder), ExplainedAnswer(), device="cpu")

    def log_prob(ids_T: torch.Tensor, words: str) -> float:
        behind = explainer.tokenizer.encode(f" {words}")
        with torch.no_grad():
            logits = theirs(torch.tensor([[*ids_T.tolist(), *behind]])).logits[0]
        rows = logits.log_softmax(-1)[len(ids_T) - 1 : -1]
        return float(rows[range(len(behind)), behind].sum())

    def number(ids_T: torch.Tensor) -> float:
        own = log_prob(ids_T, "captain watches")
        return own if against is None else own - log_prob(ids_T, against)

    whole = number(text.ids_T)
    assert text.score(text.ids_T[None]).item() == pytest.approx(whole, abs=1e-4)
    nothing = number(text.rows(np.zeros((1, len(text.words)), dtype=bool))[0])
    weights = ATTRIBUTION_METHODS["integrated-gradients"]().weights(text)
    assert weights.sum() == pytest.approx(whole - nothing, rel=0.01, abs=1e-3)


def test_weights_that_do_not_add_up_say_so():
    found = list(incomplete({"shapley": {}, "integrated-gradients": {"missed": 0.2, "steps": 512}}))
    assert len(found) == 1
    assert "20.0%" in found[0]
    assert not list(incomplete({"integrated-gradients": {"missed": 0.009, "steps": 32}}))


def test_an_explanation_is_read_without_colour_in_a_narrow_terminal():
    figures = dict.fromkeys(
        ("faithfulness", "deletion", "insertion", "random_deletion", "random_insertion"), 0.125
    )
    words = [
        {"text": word, "start": begin, "end": begin + len(word),
         "weights": dict.fromkeys(ATTRIBUTION_METHODS, weight)}
        for word, begin, weight in (
            ("good", 0, 1.25), ("不", 5, -1.0), ("extraordinarily", 7, 0.25),
        )
    ]  # fmt: skip
    record = {
        "text": "good 不 extraordinarily", "answer": "a class", "best_method": "shapley",
        "words": words, "methods": dict.fromkeys(ATTRIBUTION_METHODS, figures),
    }  # fmt: skip
    console = Console(width=60, no_color=True, force_terminal=True, record=True, file=io.StringIO())
    console.print(render_explanation(record))
    shown = console.export_text()
    assert "good++ 不-- extraordinarily+" in shown
    assert shown.count("+1.250") == len(ATTRIBUTION_METHODS)
    assert max(map(len, shown.splitlines())) <= 60
