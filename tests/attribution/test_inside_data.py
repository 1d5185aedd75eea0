"""What is looked at beside a text: probes against scikit-learn, nearest documents against
transformers' states, the tuned lens against regression and against the plain lens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.attribution.inside.probe import control_labels
from llmctl.attribution.inside.softmax_regression import fit
from llmctl.attribution.inside.translators import RIDGE, ridge
from llmctl.cli.app import app
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import TEXTS, save_model

TEXT = "the ship sails over the wide sea"
TAGS = {"the": "DET", "a": "DET", "ship": "N", "sea": "N", "cows": "N", "hens": "N", "eggs": "N"}


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def told(*words: str | Path) -> dict[str, Any]:
    return json.loads(run_cli("explain", *words, "--json").stdout)


def write_tagged(folder: Path) -> Path:
    path = folder / "words.conll"
    sentences = [TEXTS[number % 8].split() for number in range(30)]
    path.write_text(
        "\n".join("".join(f"{w} {TAGS.get(w, 'O')}\n" for w in words) for words in sentences)
    )
    return path


@pytest.mark.reference
def test_a_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    x_ND = generator.normal(size=(300, 12)).astype(np.float32) * generator.uniform(0.1, 9, 12)
    y_N = (x_ND[:, :3] + generator.normal(size=(300, 3)) * 3).argmax(1)
    found = fit(torch.from_numpy(x_ND).float(), torch.from_numpy(y_N), 3)
    standard_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(standard_ND, y_N)
    weight_CD = found.weight_DC.T.numpy()
    np.testing.assert_allclose(weight_CD, theirs.coef_, atol=2e-3)
    assert (found.classes(torch.from_numpy(x_ND).float()).numpy()
            == theirs.predict(standard_ND)).mean() > 0.995  # fmt: skip


def test_a_control_label_is_of_a_word_type():
    types = [word for text in TEXTS * 40 for word in text.split()]
    labels_M = np.arange(len(types)) % 4 % 3
    found = control_labels(types, labels_M)
    of_type: dict[str, set[int]] = {}
    for word, label in zip(types, found.tolist(), strict=True):
        of_type.setdefault(word, set()).add(label)
    assert all(len(seen) == 1 for seen in of_type.values())
    assert len({label for seen in of_type.values() for label in seen}) == 3


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "like"), [("BertModel", "bert"), ("GPT2LMHeadModel", "gpt2"), ("T5", "t5")]
)
def test_probes_are_of_the_layers_of_transformers(tmp_path: Path, kind: str, like: str):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    folder = tmp_path / "model"
    kind = "T5ForConditionalGeneration" if kind == "T5" else kind
    theirs = save_model(folder, kind, like=like).float()
    record = told(folder, "--inside", "probe", "--data", write_tagged(tmp_path))
    from llmctl.formats.open import open_folder

    tokenizer = open_folder(folder).tokenizer
    before, after = tokenizer.layout.before, tokenizer.layout.after
    states: list[list[np.ndarray]] = [[], [], []]
    labels: list[str] = []
    held: list[bool] = []
    for number in range(30):
        text = TEXTS[number % 8]
        pieces, begins = tokenizer.encode_offsets(text)
        ids = torch.tensor([[*before, *pieces.tolist(), *(() if like == "gpt2" else after)]])
        with torch.no_grad():
            network = theirs.encoder if like == "t5" else theirs
            outputs = network(ids, output_hidden_states=True)
        at = 0
        for word in text.split():
            begin, end = text.index(word, at), text.index(word, at) + len(word)
            ends = [*begins[1:], len(text)]
            own = [n + len(before) for n, (b, e) in enumerate(zip(begins, ends, strict=True))
                   if max(b, begin - 1) < min(e, end) and e > begin]  # fmt: skip
            if own:
                for layer in range(2):  # theirs of the last is normalised already
                    mean = outputs.hidden_states[layer][0, own].mean(0)
                    states[layer].append(mean.numpy())
                labels.append(TAGS.get(word, "O"))
                held.append(number % 5 == 4)
            at = end
    assert record["measured_on"] == sum(held)
    assert record["trained_on"] == len(held) - sum(held)
    h = np.array(held)
    for layer in range(2):
        x = np.stack(states[layer])
        scaler = StandardScaler().fit(x[~h])
        model = LogisticRegression(C=1.0, tol=1e-7, max_iter=2000)
        model.fit(scaler.transform(x[~h]), np.array(labels)[~h])
        expected = (model.predict(scaler.transform(x[h])) == np.array(labels)[h]).mean()
        assert record["layers"][layer]["accuracy"] == pytest.approx(expected, abs=2.1 / sum(held))
        one = record["layers"][layer]
        assert one["selectivity"] == pytest.approx(one["accuracy"] - one["control"])
        assert one["low"] <= one["accuracy"] <= one["high"]


def test_whole_texts_are_probed(models: Workspace, labelled_file: Path):
    where = ("--workspace", str(models.root))
    record = told("gpt", "--inside", "probe", "--data", labelled_file, *where)
    assert record["unit"] == "texts"
    assert record["layers"][-1]["accuracy"] > record["majority"]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "like"), [("BertForMaskedLM", "bert"), ("LlamaForCausalLM", "llama")]
)
def test_the_nearest_are_those_of_transformers_states(tmp_path: Path, kind: str, like: str):
    from llmctl.formats.open import open_folder

    folder, file = tmp_path / "model", tmp_path / "texts.txt"
    theirs = save_model(folder, kind, like=like).float()
    file.write_text("\n".join(TEXTS[:8]))
    record = told(folder, TEXTS[3], "--inside", "nearest", "--data", file)
    layout, tokenizer = open_folder(folder).tokenizer.layout, open_folder(folder).tokenizer
    vectors = []
    for text in [TEXTS[3], *TEXTS[:8]]:
        own = tokenizer.encode(text)
        after = layout.after if like == "bert" else ()
        ids = torch.tensor([[*layout.before, *own, *after]])
        with torch.no_grad():
            states = theirs.base_model(ids).last_hidden_state[0]
        begin = len(layout.before)
        first = begin + (like == "llama" and not begin and len(own) > 1)
        vectors.append(states[first : begin + len(own)].mean(0).double().numpy())
    query, documents = vectors[0], np.stack(vectors[1:])
    mean = documents.mean(0)
    query, documents = query - mean, documents - mean
    cosines = documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)
    found = [(one["text"], one["cosine"]) for one in record["nearest"]]
    expected = sorted(zip(TEXTS[:8], cosines, strict=True), key=lambda one: -one[1])
    assert found[0] == (TEXTS[3], pytest.approx(1.0, abs=1e-4))
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_translators_start_as_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x_PD = torch.randn(200, 6, generator=generator) + 3
    y_PD = x_PD @ torch.randn(6, 6, generator=generator) + torch.randn(6, generator=generator)
    weight_DD, bias_D = ridge(x_PD, y_PD)
    x, y = x_PD.double().numpy(), y_PD.double().numpy()
    centred = x - x.mean(0)
    penalty = np.sqrt(RIDGE * (centred**2).sum(0).mean()) * np.eye(6)
    expected = np.linalg.lstsq(
        np.vstack([centred, penalty]), np.vstack([y - y.mean(0), np.zeros((6, 6))]), rcond=None
    )[0]
    np.testing.assert_allclose(weight_DD.numpy(), expected.T, atol=1e-5)
    np.testing.assert_allclose(bias_D.numpy(), y.mean(0) - expected.T @ x.mean(0), atol=1e-4)


@pytest.mark.parametrize("run", ["gpt", "tiny"])
def test_a_tuned_lens_is_nearer_than_the_plain_one(
    run: str, models: Workspace, own_workspace: Path, tmp_path: Path
):
    root, kept = models.root if run == "gpt" else own_workspace, tmp_path / "lens.safetensors"
    text = TEXT if run == "gpt" else "the ship [MASK] far"
    asked = (run, text, "--inside", "tuned-lens", "--lens", kept, "--workspace", root)
    record = told(*asked, "--steps", "30")
    layers = record["layers"]
    for one in layers[:-1]:
        assert one["held_out_tuned"] < one["held_out_lens"]
    assert layers[-1]["kl"] == pytest.approx(0, abs=1e-9)
    assert layers[-1]["rank"] == 1
    # It is kept, not tuned anew: so many steps would give another.
    again = told(*asked, "--steps", "1")
    assert again["layers"] == layers
    other = "llama" if run == "gpt" else "subjects"
    if run == "gpt":
        said = run_cli("explain", other, *asked[1:], code=3).output
        assert "was tuned on another model" in " ".join(said.split())


def test_importance_over_texts_is_the_mean_of_each(models: Workspace, tmp_path: Path):
    where, file = ("--workspace", str(models.root)), tmp_path / "texts.txt"
    file.write_text(f"{TEXTS[0]}\n{TEXTS[3]}\n")
    both = told("subjects", "--inside", "heads", "--data", file, *where)
    singly = [told("subjects", text, "--inside", "heads", *where) for text in (TEXTS[0], TEXTS[3])]
    found = [{(h["layer"], h["head"]): h for h in record["heads"]} for record in singly]
    for one in both["heads"]:
        same = [heads[one["layer"], one["head"]] for heads in found]
        for name in ("lost", "estimate"):
            assert one[name] == pytest.approx(np.mean([h[name] for h in same]), abs=1e-6)
        assert one["size"] == pytest.approx(np.mean([abs(h["lost"]) for h in same]), abs=1e-6)
    assert both["number"] == pytest.approx(np.mean([record["number"] for record in singly]))


def test_a_page_has_what_was_found(models: Workspace, tmp_path: Path):
    page = tmp_path / "page.html"
    where = ("--workspace", str(models.root))
    run_cli("explain", "gpt", TEXT, "--inside", "lens", "--html", page, *where)
    assert "logit lens" in page.read_text()
    assert "://" not in page.read_text()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["grams", TEXT, "--inside", "nearest"], 3, "it has no layers to look into"),
        (["gpt", "--inside", "probe"], 2, "reads what is labelled; give --data FILE"),
        (["gpt", TEXT, "--inside", "probe", "--data", "FILE"], 2, "looks at no text beside --data"),
        (["gpt", "--inside", "probe", "--data", "no.csv"], 3, "no such file"),
        (["gpt", "--inside", "probe", "--data", "FILE", "--label-column", "nothing"], 3, "nothing"),
        (["gpt", TEXT, "--inside", "lens", "--data", "FILE"], 2, "takes no --data"),
        (["gpt", TEXT, "--inside", "lens", "--steps", "3"], 2, "goes with --inside tuned-lens"),
        (["gpt", TEXT, "--lens", "x"], 2, "--lens goes with --inside"),
        (["gpt", TEXT, "--inside", "nearest", "--answer", "a"], 2, "--answer is not for"),
        (["gpt", " ", "--inside", "nearest"], 3, "no word that could be looked for"),
        (["gpt", "the sea " * 300, "--inside", "nearest"], 3, "shorten it"),
        (["subjects", TEXT, "--inside", "tuned-lens", "--data", "FILE"], 3, "no output layer"),
        (["gpt", TEXT, "--inside", "tuned-lens", "--data", "SHORT"], 3, "give a longer text"),
        (["gpt", TEXT, "--inside", "tuned-lens", "--lens", "none/x"], 3, "there is no folder none"),
        (["gpt", TEXT, "--inside", "tuned-lens", "--lens", ""], 3, "--lens . is a folder"),
        (["gpt", "--inside", "heads", "--data", "shards"], 2, "looks at texts one by one"),
    ],
)
def test_what_cannot_be_looked_at_is_told(
    models: Workspace, labelled_file: Path, tmp_path: Path, words: list[str], code: int, says: str
):
    short = tmp_path / "short.txt"
    short.write_text("the sea\n")
    files = {"FILE": str(labelled_file), "SHORT": str(short)}
    given = [files.get(word, word) for word in words]
    result = run_cli("explain", *given, "--workspace", str(models.root), code=code)
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_standard_input_is_read(models: Workspace):
    words = ["explain", "subjects", "-", "--method", "occlusion", "-w", str(models.root)]
    for given in (words, [*words[:2], *words[3:]]):
        result = CliRunner().invoke(app, given, input=f"{TEXT}\nhens lay eggs\n")
        assert result.exit_code == 0, result.output
        assert "over 2 texts" in result.stdout
    lens = ["explain", "gpt", "-", "--inside", "lens", "-w", str(models.root), "--json"]
    result = CliRunner().invoke(app, lens, input=f"{TEXT}\n")
    assert json.loads(result.stdout)["text"] == TEXT
