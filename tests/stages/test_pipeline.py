"""The way from text to a measured classifier, through the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmctl.data.shards.files import ShardReader
from tests.conftest import TINY
from tests.run import llmctl


def manifest(root: Path, kind: str, name: str) -> dict:
    return json.loads((root / kind / name / "manifest.json").read_text())


def test_shards_are_the_same_for_any_number_of_workers(tmp_path: Path, corpus_file: Path):
    digests = []
    for workers in (1, 2, 3):
        root = tmp_path / f"w{workers}"
        llmctl(root, "tokenize", corpus_file, "--document", "line", "--vocab-size", "120",
               "--workers", workers)  # fmt: skip
        files = manifest(root, "shards", "stories")["files"]
        digests.append({name: record["sha256"] for name, record in files.items()})
    assert digests[0] == digests[1] == digests[2]


def test_duplicates_are_dropped_and_the_split_ignores_order(tmp_path: Path, corpus_file: Path):
    lines = corpus_file.read_text().splitlines()
    twice = tmp_path / "twice.txt"
    twice.write_text("\n".join([*reversed(lines), *lines[:50]]))
    options = ["--document", "line", "--validation", "0.2", "--json"]
    learned = tmp_path / "a" / "tokenizers" / "stories"
    once = json.loads(
        llmctl(tmp_path / "a", "tokenize", corpus_file, "--vocab-size", "120", *options).stdout
    )
    again = json.loads(
        llmctl(tmp_path / "b", "tokenize", twice, "--tokenizer", learned, *options).stdout
    )
    unique = len(set(lines))
    assert once["documents"] == again["documents"] == unique
    assert again["duplicates"] - once["duplicates"] == 50
    assert once["validation_documents"] == again["validation_documents"]
    held_out = []
    for root, name in (("a", "stories"), ("b", "twice")):
        reader = ShardReader(tmp_path / root / "shards" / name, "validation")
        held_out.append({tuple(reader.tokens(i).tolist()) for i in range(len(reader))})
    assert held_out[0] == held_out[1]


def test_a_small_corpus_still_has_a_validation_document(tmp_path: Path):
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f"{name} is the text of this file. " * 20)
    result = llmctl(tmp_path / "w", "tokenize", *tmp_path.glob("*.txt"), "--json")
    assert json.loads(result.stdout)["validation_documents"] == 1


def test_an_existing_tokenizer_is_taken_as_it_is(
    tiny_workspace: Path, tmp_path: Path, corpus_file: Path
):
    root = Path(shutil.copytree(tiny_workspace, tmp_path / "w"))
    folder = root / "tokenizers" / "stories"
    ids = []
    for number, tokenizer in enumerate(
        ("stories", folder / "tokenizer.json", folder / "vocab.txt")
    ):
        name = f"again-{number}"
        llmctl(root, "tokenize", corpus_file, "--document", "line", "--tokenizer", tokenizer,
               "--name", name)  # fmt: skip
        reader = ShardReader(root / "shards" / name, "train")
        ids.append(np.concatenate([reader.tokens(i) for i in range(len(reader))]))
    assert np.array_equal(ids[0], ids[1])
    assert np.array_equal(ids[0], ids[2])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_bert_trains_on_other_tokenizers(tmp_path: Path, corpus_file: Path, kind: str):
    llmctl(tmp_path, "tokenize", corpus_file, "--document", "line", "--tokenizer", kind,
           "--vocab-size", "300" if kind == "bpe" else "320", "--validation", "0.1")  # fmt: skip
    result = llmctl(tmp_path, "pretrain", *TINY, "--set", "training.max_steps=2", "--json")
    assert math.isfinite(json.loads(result.stdout)["validation"]["loss"])


def test_tokenizing_again_is_up_to_date(tiny_workspace: Path, corpus_file: Path):
    result = llmctl(tiny_workspace, "tokenize", corpus_file, "--document", "line",
                    "--vocab-size", "120", "--validation", "0.1")  # fmt: skip
    assert "up to date" in result.stderr


def test_pretraining_learns_and_logs_what_it_promises(tiny_workspace: Path):
    lines = (tiny_workspace / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    train = [record for record in records if record["kind"] == "train"]
    assert train[-1]["loss"] < train[0]["loss"]
    promised = {"loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "gradient_norm",
                "learning_rate", "tokens_per_second", "padding"}  # fmt: skip
    assert promised <= train[-1].keys()
    validation = next(record for record in records if record["kind"] == "validation")
    assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_accuracy"} <= validation.keys()
    assert train[-1]["loss"] == pytest.approx(
        train[-1]["mlm_loss"] + train[-1]["nsp_loss"], rel=0.05
    )


def test_a_recipe_is_read_and_options_win_over_it(tiny_workspace: Path, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[pretrain]\npreset = 'nano'\n[pretrain.training]\nmax_steps = 7\nbatch_size = 3\n"
    )
    plan = json.loads(
        llmctl(tiny_workspace, "pretrain", "--recipe", recipe, "--set", "training.max_steps=9",
               "--dry-run").stdout
    )  # fmt: skip
    assert plan["config"]["training"]["max_steps"] == 9
    assert plan["config"]["training"]["batch_size"] == 3
    assert plan["config"]["model"]["hidden_size"] == 128
    assert plan["plan"]["total_steps"] == 9
    assert plan["plan"]["parameters"] > 400_000


def test_a_time_limit_ends_the_run_with_a_decayed_learning_rate(
    tiny_workspace: Path, tmp_path: Path
):
    root = Path(shutil.copytree(tiny_workspace, tmp_path / "w"))
    result = llmctl(
        root,
        "pretrain",
        *TINY,
        "--set",
        "training.time_limit=1.5s",
        "--set",
        "training.log_every=1",
        "--name",
        "timed",
        "--json",
    )
    assert json.loads(result.stdout)["seconds"] >= 1.5
    last = (root / "runs" / "timed" / "metrics.jsonl").read_text().splitlines()
    rates = [r["learning_rate"] for r in map(json.loads, last) if r["kind"] == "train"]
    # Linear from the peak, so what is left is the share of the last step.
    assert rates[-1] < 0.2 * max(rates)


def test_frozen_layers_stay_bit_for_bit(tiny_workspace: Path, tmp_path: Path, labelled_file: Path):
    from safetensors.numpy import load_file

    root = Path(shutil.copytree(tiny_workspace, tmp_path / "w"))
    llmctl(root, "finetune", "--from", "tiny", "--data", labelled_file, "--freeze-layers", "1",
           "--name", "frozen", "--set", "training.epochs=1")  # fmt: skip
    before, after = (
        load_file(root / "runs" / name / "model" / "model.safetensors")
        for name in ("tiny", "frozen")
    )
    for name, tensor in before.items():
        if name.startswith(("bert.embeddings", "bert.encoder.layer.0")):
            assert np.array_equal(tensor, after[name]), name
        elif name.startswith("bert.encoder.layer.1") and name.endswith("weight"):
            assert not np.array_equal(tensor, after[name]), name


def test_from_scratch_is_the_same_network_with_other_weights(
    tiny_workspace: Path, tmp_path: Path, labelled_file: Path
):
    root = Path(shutil.copytree(tiny_workspace, tmp_path / "w"))
    llmctl(root, "finetune", "--from", "scratch", "--data", labelled_file, "--name", "scratch",
           "--set", "training.epochs=1")  # fmt: skip
    models = [
        json.loads((root / "runs" / name / "model" / "config.json").read_text())
        for name in ("subjects", "scratch")
    ]
    assert models[0] == models[1]


def test_the_classifier_learns_a_plain_task(
    tiny_workspace: Path, labelled_file: Path, tmp_path: Path
):
    root = Path(shutil.copytree(tiny_workspace, tmp_path / "w"))
    llmctl(root, "finetune", "--from", "tiny", "--data", labelled_file, "--name", "learned",
           "--set", "training.epochs=40", "--set", "training.learning_rate=3e-3",
           "--set", "patience=0")  # fmt: skip
    report = json.loads(
        llmctl(root, "eval", "--from", "learned", "--compare", "subjects", "--data", labelled_file,
               "--no-baselines", "--json").stdout
    )  # fmt: skip
    model = report["results"]["model"]
    assert model["accuracy"] > 0.9
    low, high = model["intervals"]["accuracy"]
    assert low <= model["accuracy"] <= high
    assert np.sum(model["confusion_matrix"]) == report["examples"] == 120
    assert report["results"]["subjects"]["accuracy"] <= model["accuracy"]
    assert report["differences"]["subjects"]["difference"] == pytest.approx(
        model["accuracy"] - report["results"]["subjects"]["accuracy"]
    )
    assert (root / "reports" / "learned-subjects" / "report.json").is_file()


@pytest.mark.reference
def test_evaluation_prints_the_baselines_beside_the_model(
    tiny_workspace: Path, labelled_file: Path
):
    pytest.importorskip("sklearn")
    result = llmctl(tiny_workspace, "eval", "--from", "subjects", "--data", labelled_file)
    for heading in ("majority class", "TF-IDF + logistic regression", "macro F1", "MCC", "ECE"):
        assert heading in result.stdout


def test_predict_takes_arguments_files_and_standard_input_alike(
    tiny_workspace: Path, tmp_path: Path
):
    texts = ["the ship sails over the sea", "the farmer feeds the cows", "hens lay eggs"]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["predict", "--from", "subjects", "--json"]
    outputs = [
        llmctl(tiny_workspace, *command, *texts).stdout,
        llmctl(tiny_workspace, *command, "--data", file).stdout,
        llmctl(tiny_workspace, *command, "--data", table).stdout,
        llmctl(tiny_workspace, *command, stdin=file.read_text()).stdout,
    ]
    assert len(set(outputs)) == 1
    answers = [json.loads(line) for line in outputs[0].splitlines()]
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        probabilities = answer["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1.0)
        assert answer["label"] == max(probabilities, key=probabilities.get)


def test_predict_reads_the_column_of_the_training_and_looks_at_no_label(
    tiny_workspace: Path, tmp_path: Path
):
    table = tmp_path / "pairs.csv"
    table.write_text("text,text_pair,label\nthe ship,sails,\nhens,lay eggs,farm\n")
    answers = llmctl(tiny_workspace, "predict", "--from", "subjects", "--json", "--data", table)
    lines = [json.loads(line) for line in answers.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["the ship", "hens"]
    assert not any("text_pair" in line for line in lines)
    assert "text from text, as in training" in answers.stderr


@pytest.mark.parametrize(
    ("run", "answer", "texts"),
    [("subjects", "label", ["hens", "", "cows"]), ("tiny", "masks", ["[MASK]", "", "a [MASK]"])],
)
def test_every_line_gets_an_answer_in_order(
    tiny_workspace: Path, run: str, answer: str, texts: list[str]
):
    lines = "".join(f"{text}\n" for text in texts)
    out = llmctl(tiny_workspace, "predict", "--from", run, "--json", stdin=lines).stdout
    answers = [json.loads(line) for line in out.splitlines()]
    assert [entry["text"] for entry in answers] == texts
    assert all(answer in entry for entry in answers)


def test_bytes_that_are_not_utf_8_may_be_replaced(tiny_workspace: Path, tmp_path: Path):
    data = tmp_path / "latin.csv"
    data.write_bytes(b"label,text\n" + b"sea,the caf\xe9 at sea\nfarm,the cows\n" * 9)
    for words in (
        ["predict", "--from", "subjects", "--data", data],
        ["finetune", "--from", "tiny", "--data", data, "--dry-run"],
        ["eval", "--from", "subjects", "--data", data, "--no-baselines"],
    ):
        llmctl(tiny_workspace, *words, code=3)
        assert llmctl(tiny_workspace, *words, "--encoding-errors", "replace").stdout


def test_a_dry_run_says_what_would_be_done(
    tiny_workspace: Path, tmp_path: Path, labelled_file: Path
):
    tuning = ["finetune", "--from", "tiny", "--data", labelled_file, "--dry-run",
              "--set", "training.precision=fp32", "--set"]  # fmt: skip
    same, other = (
        json.loads(llmctl(tiny_workspace, *tuning, f"training.epochs={n}").stdout)["plan"]
        for n in (3, 4)
    )
    assert (same["name"], same["up_to_date"]) == ("subjects", True)
    assert (other["name"], other["up_to_date"]) == ("subjects-tiny", False)
    assert other["train_examples"] + other["validation_examples"] == 120
    assert other["total_steps"] == 4 * -(-other["train_examples"] // 16)
    manifest_of_run = manifest(tiny_workspace, "runs", "subjects")
    assert same["parameters"] == manifest_of_run["summary"]["parameters"]
    recipe = tmp_path / "r.toml"
    recipe.write_text("[eval]\nresamples = 50\nseed = 3\n")
    measuring = ["eval", "--from", "subjects", "--data", labelled_file, "--recipe", recipe,
                 "--set", "seed=4", "--dry-run"]  # fmt: skip
    document = json.loads(llmctl(tiny_workspace, *measuring).stdout)
    assert (document["config"]["resamples"], document["config"]["seed"]) == (50, 4)
    assert document["plan"]["name"].startswith("subjects-subjects")
    assert document["plan"]["up_to_date"] is False


@pytest.mark.parametrize("name", ["café (1).csv", "评论.csv"])
def test_any_file_name_gives_a_default_name(
    tiny_workspace: Path, tmp_path: Path, labelled_file: Path, name: str
):
    data = tmp_path / name
    shutil.copy(labelled_file, data)
    plan = json.loads(
        llmctl(tiny_workspace, "finetune", "--from", "tiny", "--data", data, "--dry-run").stdout
    )
    assert plan["plan"]["name"] == {"c": "cafe-1-tiny"}.get(name[0], "评论-tiny")


def test_predictions_do_not_depend_on_their_neighbours(tiny_workspace: Path):
    command = ["predict", "--from", "subjects", "--json"]
    long = "the captain watches the stars and " * 4
    alone = json.loads(llmctl(tiny_workspace, *command, "hens lay eggs").stdout)
    together = llmctl(tiny_workspace, *command, long, "hens lay eggs").stdout.splitlines()
    assert json.loads(together[1])["probabilities"] == pytest.approx(
        alone["probabilities"], abs=1e-5
    )


def test_a_pretrained_model_fills_masks(tiny_workspace: Path):
    result = llmctl(
        tiny_workspace, "predict", "--from", "tiny", "the [MASK] is wide [MASK]", "--json"
    )
    answer = json.loads(result.stdout)
    assert len(answer["masks"]) == 2
    for candidates in answer["masks"]:
        shares = [candidate["probability"] for candidate in candidates]
        assert shares == sorted(shares, reverse=True)
        assert not any(candidate["token"].startswith("[") for candidate in candidates)


def test_evaluation_of_a_pretrained_model(tiny_workspace: Path):
    report = json.loads(
        llmctl(tiny_workspace, "eval", "--from", "tiny", "--max-tokens", "300", "--json").stdout
    )
    results = report["results"]
    assert report["mask_rate"] == 0.15
    assert report["pseudo_perplexity_tokens"] == 300
    # A tiny model that has learned little is near the size of its vocabulary, 120.
    assert 1 < results["pseudo_perplexity"] < 200
    assert 0 < results["mlm_loss"] < math.log(200)
    assert 0 <= results["nsp_accuracy"] <= 1


def test_status_lists_everything_with_a_schema(tiny_workspace: Path):
    document = json.loads(llmctl(tiny_workspace, "status", "--json").stdout)
    assert document["schema_version"] == 1
    run = next(run for run in document["runs"] if run["name"] == "tiny")
    assert run["state"] == "finished"
    assert run["step"] == run["total_steps"] == 30
    assert run["progress"] == 1.0
    assert run["eta_seconds"] is None
    assert run["losses"]
    text = llmctl(tiny_workspace, "status").stdout
    for name in ("stories", "tiny", "subjects", "finished"):
        assert name in text
    assert "\x1b" not in text


def test_status_of_one_run_has_its_lineage_and_configuration(
    tiny_workspace: Path, labelled_file: Path
):
    document = json.loads(llmctl(tiny_workspace, "status", "subjects", "--json").stdout)
    names = [entry["name"] for entry in document["lineage"]]
    assert names[:3] == ["run/tiny", "shards/stories", names[2]]
    assert "tokenizer/stories" in names
    assert str(labelled_file) in names
    assert document["config"]["task"] == "classify"
    assert document["resume"] is None
    assert document["command"].startswith("llmctl finetune --from tiny")
    text = llmctl(tiny_workspace, "status", "subjects").stdout
    assert "tokenizer: tokenizer/stories" in text


def test_json_is_the_only_thing_on_standard_output(
    tiny_workspace: Path, corpus_file: Path, tmp_path: Path
):
    result = llmctl(tmp_path, "tokenize", corpus_file, "--vocab-size", "120", "--json")
    assert json.loads(result.stdout)["tokens"] > 0
    quiet = llmctl(tmp_path, "tokenize", corpus_file, "--vocab-size", "120", "--quiet")
    assert quiet.stderr == ""


@pytest.mark.reference
def test_transformers_opens_what_was_trained(tiny_workspace: Path):
    """The same logits as ours, from the folder alone; fp32 sums in another order differ by 1e-6."""
    transformers = pytest.importorskip("transformers")
    import torch

    from llmctl.formats.open import open_folder

    path = tiny_workspace / "runs" / "tiny" / "model"
    theirs = transformers.BertForPreTraining.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    encoded = tokenizer("The ship sails", "hens lay eggs", return_tensors="pt")
    ours = open_folder(path).masked_lm().eval()
    with torch.no_grad():
        expected = theirs(**encoded)
        hidden = ours.body(encoded["input_ids"], encoded["token_type_ids"])
        torch.testing.assert_close(
            ours.token_logits(hidden), expected.prediction_logits, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            ours.next_logits(hidden[:, 0]), expected.seq_relationship_logits, atol=1e-5, rtol=1e-5
        )
