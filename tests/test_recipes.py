"""The recipes run as written."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import Config, build
from llmctl.data.text.python_corpora import python_code
from llmctl.inference.templates import read_template
from llmctl.stages.chat import ChatConfig
from llmctl.stages.tokenize.stage import TokenizeConfig
from llmctl.tasks.evaluation import EvaluateConfig
from llmctl.tasks.finetuning import resolve as resolve_finetune
from llmctl.tasks.generation import GenerateConfig
from llmctl.tasks.pretraining import resolve
from tests import small_library
from tests.conftest import SUBJECTS, make_sentences
from tests.fork_server import AVAILABLE, READ_AT_LOAD
from tests.run import fork_server, llmctl

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_is_understood(path: Path):
    tables = tomllib.loads(path.read_text())
    if "pretrain" in tables:
        pretrain = dict(tables.pop("pretrain"))
        arch, preset = pretrain.pop("arch", "bert"), pretrain.pop("preset", None)
        task = pretrain.pop("task", None)
        assert isinstance(resolve(arch, preset, pretrain, task=task), Config)
    if "finetune" in tables:
        finetune = dict(tables.pop("finetune"))
        assert isinstance(resolve_finetune(finetune.get("task"), finetune), Config)
    others = {
        "tokenize": TokenizeConfig,
        "generate": GenerateConfig,
        "chat": ChatConfig,
        "eval": EvaluateConfig,
    }
    for stage, table in tables.items():
        build(others[stage], table)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_has_the_tables_that_its_script_asks_for(path: Path):
    script = path.with_suffix(".sh").read_text().replace("\\\n", " ")
    commands = set(re.findall(r'^ *llmctl (\w+)[^\n]*--recipe "\$recipe"', script, re.MULTILINE))
    assert commands <= set(tomllib.loads(path.read_text()))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "prompts").glob("*.toml")), ids=lambda p: p.name
)
def test_every_template_is_understood(path: Path):
    assert read_template(path).tells_label


TINY_RECIPE = """
[tokenize]
vocab_size = 800
[pretrain]
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
[pretrain.training]
max_steps = 8
batch_size = 4
[pretrain.data]
eval_batches = 2
[finetune.training]
max_steps = 8
learning_rate = 1e-3
"""


TINY_GPT_RECIPE = """
[tokenize]
tokenizer = "bpe"
vocab_size = 800
[pretrain]
arch = "nanochat"
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
[pretrain.training]
max_steps = 8
batch_size = 4
[pretrain.data]
eval_batches = 2
[generate]
max_new_tokens = 8
stop = "\\n\\n\\n"
[finetune.training]
max_steps = 8
learning_rate = 1e-3
[chat]
max_new_tokens = 8
"""


def run_recipe(
    folder: Path, recipe: str, *words: Any, environment: Mapping[str, str] | None = None
) -> str:
    """Run a script, with other words of the recipe's and a tenth of the library; what it prints."""
    path = folder / "tiny.toml"
    path.write_text(recipe)
    environment = {
        **(environment or {}),
        **{name: value for name, value in os.environ.items() if name.startswith(READ_AT_LOAD)},
        "LLMCTL_PYTHON": str(fork_server().python) if AVAILABLE else sys.executable,
        "LLMCTL_WORKSPACE": str(folder / "w"),
        **small_library.write(folder / f"library-{words[0].stem}"),
        "PATH": "/usr/bin:/bin",
        "COLUMNS": "160",
    }
    result = subprocess.run(
        ["bash", *map(str, words), str(path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    out = run_recipe(tmp_path, TINY_RECIPE, ROOT / "recipes" / "quickstart.sh")
    for row in ("stdlib", "stdlib-scratch", "majority class", "TF-IDF + logistic regression"):
        assert row in out
    report = json.loads((tmp_path / "w/reports/stdlib-stdlib-test/report.json").read_text())
    assert report["results"].keys() >= {"model", "stdlib-scratch"}
    assert report["examples"] >= 200


def test_agnews_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    words = [subject.split() for subject in SUBJECTS.values()]
    rows = [
        f'"{n % 3 + 1}","title {n} {words[n % 3][n % 9]}","{" ".join(words[n % 3][n % 7 :])} {n}"'
        for n in range(800)
    ]
    (tmp_path / "news.csv").write_text("\n".join(rows) + "\n")
    recipe = TINY_RECIPE.replace("vocab_size = 800", "vocab_size = 150")
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "agnews.sh", tmp_path)
    assert "news-scratch" in out


def test_dpo_runs_as_written(tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    rows = (
        {"prompt": f"Say {n} of {kind}.", "chosen": words, "rejected": f"No {n}, not that."}
        for n in range(20)
        for kind, words in SUBJECTS.items()
    )
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = TINY_GPT_RECIPE.replace("800", "300").partition("[generate]")[0] + (
        "[finetune.training]\nmax_steps = 4\n[eval]\nmax_new_tokens = 8\n"
    )
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "dpo.sh", pairs)
    for row in ("pairs-dpo", "pairs-ipo", "pairs-kto", "untuned"):
        assert row in out


def test_grpo_runs_as_written(tmp_path: Path):
    recipe = (ROOT / "recipes" / "grpo.toml").read_text()
    recipe = recipe.replace("max_steps = 1000", "max_steps = 8").replace("128", "32")
    recipe = recipe.replace("[finetune]", "[finetune.training]\nmax_steps = 3")
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "grpo.sh")
    assert "reward over untuned" in out


def test_electra_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    table = tmp_path / "subjects.csv"
    rows = [f"{n % 3},{list(SUBJECTS.values())[n % 3]} {n}" for n in range(700)]
    table.write_text("label,text\n" + "".join(f"{row}\n" for row in rows))
    recipe = TINY_RECIPE.replace("vocab_size = 800", "vocab_size = 150")
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "electra.sh", table, "text", "label")
    for row in ("every token original", "subjects-of-masked", "subjects-of-nothing"):
        assert row in out
    report = json.loads(
        (tmp_path / "w/reports/subjects-electra-validation/report.json").read_text()
    )
    assert report["task"] == "detection"


def test_modernbert_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    table = tmp_path / "subjects.csv"
    rows = [f"{n % 3},{list(SUBJECTS.values())[n % 3]} {n}" for n in range(700)]
    table.write_text("label,text\n" + "".join(f"{row}\n" for row in rows))
    recipe = TINY_RECIPE.replace("vocab_size = 800", "vocab_size = 150")
    script = ROOT / "recipes" / "modernbert.sh"
    out = run_recipe(tmp_path, recipe, script, table, "text", "label")
    assert "MLM loss (at 15%), nats" in out
    assert "accuracy over subjects-of-bert: " in out
    for arch, kind in (("bert", "Bert"), ("modernbert", "ModernBert")):
        fields = json.loads((tmp_path / f"w/runs/subjects-of-{arch}/model/config.json").read_text())
        assert fields["architectures"] == [f"{kind}ForSequenceClassification"]


def test_tag_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    words = [word for subject in SUBJECTS.values() for word in subject.split()]
    for name, count in (("train", 300), ("test", 60)):
        lines = [
            f"the O\n{words[n % 20]} B-X\nand O\n{words[n % 17]} O\n{n} O\n" for n in range(count)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    (tmp_path / "more.txt").write_text("\n".join(SUBJECTS.values()) * 20)
    recipe = TINY_RECIPE.replace("vocab_size = 800", "vocab_size = 120")
    files = [tmp_path / f"{name}.txt" for name in ("train", "test", "more")]
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "tag.sh", *files)
    for row in ("tags-pretrained", "tags-scratch", "most frequent", "linear on word", "by type"):
        assert row in out


def test_gpt_bert_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    table = tmp_path / "subjects.csv"
    rows = [f"{n % 3},{list(SUBJECTS.values())[n % 3]} {n}" for n in range(700)]
    table.write_text("label,text\n" + "".join(f"{row}\n" for row in rows))
    recipe = TINY_GPT_RECIPE.replace("vocab_size = 800", "vocab_size = 280")
    recipe = recipe.replace('arch = "nanochat"\n', "").replace(
        "num_heads = 2", "num_heads = 2\nnum_kv_heads = 1"
    )
    out = run_recipe(tmp_path, recipe, ROOT / "recipes" / "gpt_bert.sh", table, "text", "label")
    for row in ("bits per byte over subjects-causal", "subjects-of-causal", "subjects-of-nothing"):
        assert row in out


def test_agnews_says_what_it_needs(tmp_path: Path):
    result = subprocess.run(
        ["bash", str(ROOT / "recipes" / "agnews.sh"), str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 3
    assert "news.csv" in result.stderr


@pytest.fixture(scope="module")
def gpt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes of GPT work, one after the other: the second goes on from the first."""
    return tmp_path_factory.mktemp("gpt")


def test_gpt_runs_as_written(gpt_folder: Path):
    out = run_recipe(gpt_folder, TINY_GPT_RECIPE, ROOT / "recipes" / "gpt.sh")
    written = out[out.index("== 4.") : out.index("== 5.")]
    assert written.count("def read_lines(path):") == 3
    ways = "gpt-code, likeliest token", "gpt-code, nucleus of 0.9", "5-gram, likeliest token"
    for way in ways:
        assert re.search(rf"^{way} +\d+ of \d+ +\d+ of \d+$", out, flags=re.MULTILINE)
    sources = [text for _, text in python_code()]
    for asked in map(json.loads, (gpt_folder / "w/tasks/code/lines.jsonl").open()):
        place = rf"{re.escape(asked['prompt'])} *{re.escape(asked['line'])} *$"
        assert any(asked["prompt"] in s and re.search(place, s, re.MULTILINE) for s in sources)
    report = json.loads((gpt_folder / "w/reports/gpt-code-validation/report.json").read_text())
    results, difference = report["results"], report["differences"]["ngram-code"]["difference"]
    assert results["model"]["tokens"] == results["ngram-code"]["tokens"]
    assert f"{results['ngram-code']['bits_per_byte']:.4f}" in out
    assert f"bits per byte over ngram-code: {difference:+.4f}" in out


def test_chat_runs_as_written(gpt_folder: Path):
    out = run_recipe(gpt_folder, TINY_GPT_RECIPE, ROOT / "recipes" / "chat.sh")
    asked = re.findall(r"^> (What does .* do\?)$", out, flags=re.MULTILINE)
    assert len(asked) == 3
    learned = (gpt_folder / "w/tasks/chat.jsonl").read_text()
    assert not [question for question in asked if question in learned]
    losses = re.findall(r"^run (chat-\w+): .* validation loss (\d+\.\d+)", out, flags=re.MULTILINE)
    assert [name for name, _ in losses] == ["chat-full", "chat-lora"]


def test_chat_takes_a_model_and_conversations(
    tmp_path: Path, decoder_workspace: Path, sayings_file: Path
):
    words = ROOT / "recipes" / "chat.sh", decoder_workspace / "runs/tiny-llama/model", sayings_file
    out = run_recipe(tmp_path, TINY_GPT_RECIPE, *words)
    assert len(re.findall(r"^> (?:Where|What) does the .*$", out, flags=re.MULTILINE)) == 3
    lines = (tmp_path / "w/tasks/chat-sayings.jsonl").read_text().splitlines()
    assert len(lines) == 87


def complete_code(*words: object) -> str:
    script = ROOT / "recipes" / "complete_code.py"
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("text", "finish", "parses"),
    [
        ("    return 2 * x\n", "eos", True),
        ("    y = 2 * x\n    return y + (1", "length", True),  # the last line is not whole
        ("    y = 2 * x\n    return y + (1", "stop", False),
        ("    return 2 * x\n\n\nx = = 1\n", "length", True),  # behind the function
        ("return 2 * x\n", "eos", False),
        ("", "eos", False),
    ],
)
def test_functions_are_judged_as_promised(tmp_path: Path, text: str, finish: str, parses: bool):
    prompt = 'def double(x):\n    """Twice."""\n'
    answers = {
        "lines": ({"prompt": "a = 1\n", "line": "b = a + 1"}, "b = a + 1"),
        "functions": ({"prompt": prompt}, text),
    }
    for name, (asked, written) in answers.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(asked) + "\n")
        completion = {"text": written, "finish": finish}
        answer = {"prompt": asked["prompt"], "completions": [completion]}
        (tmp_path / f"{name}-tried.jsonl").write_text(json.dumps(answer) + "\n")
    out = complete_code("judge", tmp_path, "a model=tried")
    assert re.search(rf"^a model +1 of 1 +{int(parses)} of 1$", out, flags=re.MULTILINE)


TINY_PAIRS_RECIPE = """
[tokenize]
tokenizer = "bpe"
vocab_size = 300
document = "line"
[pretrain]
arch = "nanochat"
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
max_positions = 64
[pretrain.training]
max_steps = 4
batch_size = 4
[pretrain.data]
eval_batches = 2
sequence_length = 64
[finetune]
task = "seq2seq"
[finetune.data]
max_source = 32
max_target = 16
[finetune.training]
max_steps = 4
batch_size = 8
[eval]
num_beams = 2
max_new_tokens = 8
resamples = 20
"""


def test_translate_runs_as_written(tmp_path: Path, corpus_file: Path):
    pytest.importorskip("rouge_score")
    lines = corpus_file.read_text().splitlines()
    for part, begin, count in (("train", 0, 80), ("test_few", 80, 6)):
        for language in ("en", "de"):
            text = "".join(f"{line}\n" for line in lines[begin : begin + count])
            (tmp_path / f"{part}.{language}").write_text(text.upper() if language == "de" else text)
    words = ROOT / "recipes" / "translate.sh", "en", "de", tmp_path
    out = run_recipe(tmp_path, TINY_PAIRS_RECIPE, *words)
    assert len((tmp_path / "w/en-de-test.de").read_text().splitlines()) == 6
    report = json.loads((tmp_path / "w/reports/en-de-test_few/report.json").read_text())
    rows = ("model", "en-de-scratch", "en-de-bare", "copy of the source")
    assert set(rows) < set(report["results"])
    for row in rows[1:]:
        assert f"BLEU over {row}: " in out
    missing = subprocess.run(
        ["bash", *map(str, words[:1]), "en", "fr", str(tmp_path)], capture_output=True, text=True
    )
    assert missing.returncode == 3
    assert "train*.fr" in missing.stderr


TINY_T5_RECIPE = TINY_PAIRS_RECIPE.replace(
    'document = "line"', 'document = "line"\nsentinels = 20'
).replace('arch = "nanochat"', 'arch = "t5"')


def test_denoise_runs_as_written(tmp_path: Path, corpus_file: Path):
    pytest.importorskip("rouge_score")
    lines = corpus_file.read_text().splitlines()
    for part, begin, count in (("train", 0, 80), ("test_few", 80, 6)):
        for language in ("en", "de"):
            text = "".join(f"{line}\n" for line in lines[begin : begin + count])
            (tmp_path / f"{part}.{language}").write_text(text.upper() if language == "de" else text)
    words = ROOT / "recipes" / "denoise.sh", "en", "de", tmp_path
    out = run_recipe(tmp_path, TINY_T5_RECIPE, *words)
    assert re.search(r"t5-en-de on the validation part of .*: spans, 15% hidden", out)
    report = json.loads((tmp_path / "w/reports/t5-en-de-tuned-test_few/report.json").read_text())
    assert {"model", "t5-en-de-scratch", "copy of the source"} < set(report["results"])
    assert "BLEU over t5-en-de-scratch: " in out
    summary = json.loads((tmp_path / "w/runs/t5-en-de/manifest.json").read_text())["summary"]
    assert 0.1 < summary["noise"]["spans"]["share"] < 0.2


def test_summarise_and_dialogue_run_as_written(
    tmp_path: Path, corpus_file: Path, sayings_file: Path
):
    pytest.importorskip("rouge_score")
    lines = [line for line in corpus_file.read_text().splitlines() if len(line.split()) > 6]
    news = [f'"1","{" ".join(line.split()[:3])}","{line}"\n' for line in dict.fromkeys(lines)]
    (tmp_path / "news.csv").write_text("".join(news[:150]))
    for script, file, name in (
        ("summarise.sh", tmp_path / "news.csv", "news"),
        ("dialogue.sh", sayings_file, "dialogue-sayings"),
    ):
        out = run_recipe(tmp_path, TINY_PAIRS_RECIPE, ROOT / "recipes" / script, file)
        for row in (f"BLEU over {name}-prefix: ", "BLEU over copy of the source: ", "written "):
            assert row in out


TINY_EMBED_RECIPE = """
[tokenize]
vocab_size = 120
[pretrain]
arch = "bert"
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
[pretrain.training]
max_steps = 8
batch_size = 4
[pretrain.data]
eval_batches = 2
sequence_length = 32
[finetune.training]
max_steps = 4
batch_size = 16
"""


def sentences_by_number() -> Callable[[int], str]:
    """What makes a new sentence at each call, of one of three subjects by a number."""
    generator = random.Random(0)
    return lambda number: make_sentences(list(SUBJECTS)[number % 3], 1, generator)


def test_embed_runs_as_written(tmp_path: Path):
    pytest.importorskip("sklearn")
    sentence = sentences_by_number()
    for part in ("train", "dev", "test"):
        rows = [
            f'genre\tfile\t2012\t{n}\t{n % 6}\t{sentence(n)}\t{sentence(n + n % 2)} "\tmore'
            for n in range(90)
        ]
        (tmp_path / f"sts-{part}.csv").write_text("\n".join(rows) + "\n")
    labels = ("entailment", "neutral", "contradiction")
    premises = [sentence(n) for n in range(60)]
    pairs = [
        {"premise": premises[n // 3], "hypothesis": sentence(n), "label": labels[n % 3]}
        for n in range(180)
    ]
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    script = ROOT / "recipes" / "embed.sh"
    out = run_recipe(tmp_path, TINY_EMBED_RECIPE, script, tmp_path, tmp_path / "nli.jsonl")
    for row in ("scores", "pairs", "simcse", "encoder", "scores-scratch", "TF-IDF cosine"):
        assert row in out
    report = json.loads((tmp_path / "w/reports/sts/report.json").read_text())
    assert report["examples"] == 90
    last = out.strip().splitlines()[-4:-1]
    assert [len(line.split("\t")) for line in last] == [3, 3, 3]  # score, row, text


def test_small_runs_as_written(tmp_path: Path, own_workspace: Path, labelled_file: Path):
    sentence = sentences_by_number()
    for part in ("train", "dev", "test"):
        rows = [
            f"genre\tfile\t2012\t{n}\t{n % 6}\t{sentence(n)}\t{sentence(n + n % 2)}"
            for n in range(60)
        ]
        (tmp_path / f"sts-{part}.csv").write_text("\n".join(rows) + "\n")
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"sentence1": sentence(n), "sentence2": sentence(n)} for n in range(40)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    llmctl(own_workspace, "finetune", "--from", "tiny", "--task", "embed", "--data", pairs,
           "--name", "encoder", "--set", "training.max_steps=1")  # fmt: skip
    recipe = (
        "[finetune]\ntask = 'distil'\n[finetune.objective]\nhidden = 1.0\n"
        "[finetune.training]\nmax_steps = 2\n"
    )
    model = own_workspace / "runs/encoder/model"
    script = ROOT / "recipes" / "small.sh"
    environment = {"LLMCTL_LAYERS": "1", "LLMCTL_TRAIN": "90", "LLMCTL_EPOCHS": "1"}
    out = run_recipe(
        tmp_path, recipe, script, model, tmp_path, pairs, labelled_file, "text", "label",
        environment=environment,
    )  # fmt: skip
    for row in ("small-encoder-table", "small-news-table", "news-8bit", "Spearman", "accuracy"):
        assert row in out


def test_adapt_runs_as_written(tmp_path: Path, tiny_workspace: Path, labelled_file: Path):
    pytest.importorskip("matplotlib")
    recipe = "[finetune.training]\nmax_steps = 2\n"
    model = tiny_workspace / "runs/tiny/model"
    methods = "asked+prompt search+cloze, trained+all weights"
    words = "sea=hens,farm=cows,city=tram"
    options = ("--sizes", "0,6", "--seeds", "2", "--test", "30", "--plot", tmp_path / "a.svg",
               "--labels", words, "--methods", methods)  # fmt: skip
    script = ROOT / "recipes" / "adapt.sh"
    out = run_recipe(tmp_path, recipe, script, model, labelled_file, *options)
    for row in methods.split("+"):
        line = next(line for line in out.splitlines() if line.strip().startswith(row))
        assert line.count("%") == 1
    records = json.loads((tmp_path / "w/tasks/adapt-subjects/adapt.json").read_text())
    for record in records:
        assert len(record["by_seed"]) == (2 if record["labels"] else 1)
        low, high = record["interval"]
        assert low <= record["accuracy"] <= high
    trained = {record["method"]: record["trained"] for record in records}
    assert trained["asked"] == 0 < trained["all weights"]
    few = (tmp_path / "w/tasks/adapt-subjects/6-0.csv").read_text()
    assert [few.count(f"\n{name},") for name in SUBJECTS] == [2, 2, 2]
    assert "<svg" in (tmp_path / "a.svg").read_text()
