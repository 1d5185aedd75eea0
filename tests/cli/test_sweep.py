"""Sweeps through the command line: nano models, stopped, repeated, halved, refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl, start
from tests.stages.test_resume import json_step, wait_for_step

RECIPE = """
[pretrain]
preset = "nano"
[pretrain.model]
hidden_size = 32
num_heads = 2
[pretrain.data]
sequence_length = 32
eval_batches = 2
[pretrain.training]
max_steps = 8
batch_size = 8
precision = "fp32"
compile = "off"
"""
FINETUNE = """
[finetune]
from = "tiny"
data = "{data}"
[finetune.training]
max_steps = 12
precision = "fp32"
eval_every = 4
"""
RATES = "training.lr=1e-4,1e-3,3e-3,1e-2"


@pytest.fixture
def root(tiny_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_workspace, tmp_path / "workspace"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(RECIPE)
    return path


def sweep(root: Path, recipe: Path, *words: object, code: int = 0) -> Any:
    """What ``llmctl sweep … --json`` says; what it wrote to stderr under ``stderr``."""
    words = ("sweep", recipe, "-w", root, "--json", *words)
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout) if result.stdout else {}
    return {**document, "stderr": result.stderr}


def refused(root: Path, recipe: Path, *words: object, code: int = 2) -> str:
    before = set((root / "runs").iterdir())
    stderr = sweep(root, recipe, *words, code=code)["stderr"]
    (message,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in stderr
    assert set((root / "runs").iterdir()) == before
    return message


def loss_of(root: Path, name: str) -> float:
    return Workspace(root).get("run", name).manifest.summary["validation"]["loss"]


def weights(root: Path, name: str) -> bytes:
    return (root / "runs" / name / "model" / "model.safetensors").read_bytes()


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise AssertionError("nothing was to be trained")

    monkeypatch.setattr(Trainer, "_step", fail)


def test_a_grid_is_so_many_ordinary_runs(root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    grid = ["--grid", "training.lr=1e-4,1e-2", "--grid", "training.batch_size=4,8"]
    document = sweep(root, recipe, *grid)
    names = {
        f"rates-pretrain-lr-{rate}-batch_size-{size}"
        for rate in ("1e-4", "0.01")
        for size in (4, 8)
    }
    assert {point["name"] for point in document["points"]} == names
    assert "stage: pretrain" in document["stderr"]
    scores = [point["score"] for point in document["points"]]
    assert scores == sorted(scores)
    for point in document["points"]:
        manifest = Workspace(root).get("run", point["name"]).manifest
        training = manifest.config["training"]
        assert training["learning_rate"] == point["values"]["training.learning_rate"]
        assert training["batch_size"] == point["values"]["training.batch_size"]
        assert point["score"] == loss_of(root, point["name"])
    assert document["best"] == document["points"][0]["name"]
    # Its own command makes the same run, and so does a plain one.
    command = Workspace(root).get("run", document["best"]).manifest.command
    again = CliRunner().invoke(app, command[1:])
    assert f"run {document['best']}: up to date" in again.stderr, again.output
    plain = ["pretrain", "--recipe", recipe, "-w", root, "--name", "plain"]
    for field, value in document["points"][0]["values"].items():
        plain += ["--set", f"{field}={value}"]
    assert CliRunner().invoke(app, list(map(str, plain))).exit_code == 0
    assert weights(root, "plain") == weights(root, document["best"])
    # The same sweep finds all of it, and a larger one what it has.
    no_training(monkeypatch)
    same = sweep(root, recipe, *grid)
    assert same["stderr"].count("up to date") == 4
    assert [p["name"] for p in same["points"]] == [p["name"] for p in document["points"]]


def test_the_table_has_the_best_first(root: Path, recipe: Path):
    words = ["sweep", recipe, "-w", root, "--grid", "training.lr=1e-4,1e-2", "--quiet"]
    result = CliRunner().invoke(app, list(map(str, words)))
    rows = [line.split() for line in result.stdout.splitlines() if "rates-pretrain-lr" in line]
    assert [row[0] for row in rows[:2]] == ["0.01", "1e-4"]
    assert [row[1] for row in rows[:2]] == [
        f"{loss_of(root, f'rates-pretrain-lr-{rate}'):.4f}" for rate in ("0.01", "1e-4")
    ]
    assert "best: rates-pretrain-lr-0.01 (lr=0.01)" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_goes_on_in_the_middle(
    root: Path, recipe: Path, number: signal.Signals, code: int
):
    words = ["sweep", recipe, "--grid", "training.lr=1e-4,1e-3,3e-3", "--name", "s",
             "--set", "training.max_steps=60"]  # fmt: skip
    process = start(root, *words)
    wait_for_step(root, "s-lr-1e-3", 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not out
    (message,) = [line for line in err.splitlines() if "stopped by" in line]
    assert "sweep s: stopped by " + number.name in message
    assert message.startswith("error: ") == (number == signal.SIGTERM)  # Ctrl-C is none
    command = message.partition("go on with: ")[2]
    assert command.startswith("llmctl sweep")
    assert "--shards stories" in command
    stopped = json_step(root, "s-lr-1e-3")
    assert 0 < stopped < 60
    checkpoint = root / "runs" / "s-lr-1e-3" / "checkpoints" / f"step-{stopped:08d}"
    assert checkpoint.is_dir()
    assert not (root / "runs" / "s-lr-3e-3").exists()
    shown = json.loads(llmctl(root, "status", "s-lr-1e-3", "--json").stdout)
    assert shown["run"]["state"] == "interrupted"
    assert shown["resume"].startswith("llmctl pretrain")
    assert "--name s-lr-1e-3" in shown["resume"]
    again = llmctl(root, *words)
    assert "run s-lr-1e-4: up to date" in again.stderr
    assert f"going on with s-lr-1e-3 from step {stopped}" in again.stderr
    llmctl(root, "pretrain", "--recipe", recipe, "--set", "training.max_steps=60",
           "--set", "training.lr=1e-3", "--name", "whole")  # fmt: skip
    assert weights(root, "s-lr-1e-3") == weights(root, "whole")


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [(KeyboardInterrupt(), 130, "SIGINT"), (SystemExit(143), 143, "SIGTERM")],
)
def test_a_signal_between_two_trainings(
    root: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    name: str,
):
    def interrupt() -> None:
        raise error

    monkeypatch.setattr("llmctl.stages.sweep.stage.gc.collect", interrupt)
    stderr = sweep(root, recipe, "--grid", RATES, code=code)["stderr"]
    assert f"sweep rates-pretrain: stopped by {name}" in stderr
    assert "go on with: llmctl" in stderr


def test_what_diverges_is_recorded_and_the_rest_goes_on(
    root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    grid = ["--grid", "training.lr=1000000,1e-3"]
    document = sweep(root, recipe, *grid)
    assert [point["state"] for point in document["points"]] == ["finished", "diverged"]
    assert document["points"][1]["score"] is None
    assert document["best"] == "rates-pretrain-lr-1e-3"
    words = ["status", "rates-pretrain-lr-1000000", "-w", str(root), "--json"]
    status = json.loads(CliRunner().invoke(app, words).stdout)
    assert status["run"]["state"] == "failed"
    steps = []
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, *a: steps.append(1) or step(self, *a))
    again = sweep(root, recipe, *grid)
    assert "diverged before" in again["stderr"]
    assert not steps
    sweep(root, recipe, *grid, "--force")
    assert 0 < len(steps) <= 8
    assert "all 1 configuration diverged" in refused(
        root, recipe, "--grid", "training.lr=1e6", code=6
    )
    halving = ["--grid", "training.lr=9e5,1e6", "--halving", "--factor", "2"]
    stderr = sweep(root, recipe, *halving, code=6)["stderr"]
    assert "all 2 configurations diverged" in stderr
    assert "rung 2" not in stderr


def test_other_errors_stop_it(root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Trainer, *args: Any) -> Any:
        raise OSError(28, "No space left on device", "/w/x")

    monkeypatch.setattr(Trainer, "_step", full)
    stderr = sweep(root, recipe, "--grid", RATES, code=5)["stderr"]
    assert "disk is full" in stderr
    assert not (root / "runs" / "rates-pretrain-lr-1e-3").exists()


def test_halving_keeps_the_best_of_each_rung(
    root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--grid", RATES, "--halving", "--factor", "2"]
    document = sweep(root, recipe, *words)
    name, entered, budget = "rates-pretrain-lr-", ["1e-4", "1e-3", "3e-3", "0.01"], 2
    for number, rung in enumerate(document["rungs"]):
        suffix = f"-max_steps-{budget}" if budget < 8 else ""
        assert rung["budget"] == {"max_steps": budget}
        assert rung["points"] == len(entered) == 4 // 2**number
        runs = Workspace(root).names("run")
        of_rung = {f"{name}{rate}{suffix}" for rate in ("1e-4", "1e-3", "3e-3", "0.01")}
        assert of_rung & set(runs) == {f"{name}{rate}{suffix}" for rate in entered}
        losses = {rate: loss_of(root, f"{name}{rate}{suffix}") for rate in entered}
        for rate in entered:
            config = Workspace(root).get("run", f"{name}{rate}{suffix}").manifest.config
            assert config["training"]["max_steps"] == budget
        kept = sorted(entered, key=losses.__getitem__)[: max(1, len(entered) // 2)]
        assert rung["kept"] == [name + rate for rate in kept]
        assert f"rung {number + 1}: kept {len(kept)} of {len(entered)}" in document["stderr"]
        entered, budget = [rate for rate in entered if rate in kept], 2 * budget
    assert document["best"] == name + kept[0]
    assert [point["rung"] for point in document["points"]] == [3, 2, 1, 1]
    # The last rung's run is that of the whole grid.
    plain = sweep(root, recipe, "--grid", f"training.lr={kept[0]}")
    assert plain["stderr"].count("up to date") == 1
    no_training(monkeypatch)
    again = sweep(root, recipe, *words)
    assert again["stderr"].count("up to date") == 4 + 2 + 1
    assert again["rungs"] == document["rungs"]
    assert [p["score"] for p in again["points"]] == [p["score"] for p in document["points"]]


def test_halving_goes_on_in_the_middle_of_a_rung(
    root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--grid", RATES, "--halving", "--factor", "2", "--set", "training.checkpoint_every=1"]
    whole = sweep(root, recipe, *words, "--name", "whole")
    step, taken = Trainer._step, []

    def break_off(self: Trainer, *args: Any) -> Any:
        taken.append(1)
        if len(taken) == 4 * 2 + 3:  # in the second rung's first run
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", break_off)
        assert "SIGINT" in sweep(root, recipe, *words, "--name", "broken", code=130)["stderr"]
    again = sweep(root, recipe, *words, "--name", "broken")
    assert again["stderr"].count("up to date") == 4
    assert "going on with broken-" in again["stderr"]
    assert [p["values"] for p in again["points"]] == [p["values"] for p in whole["points"]]
    assert [p["score"] for p in again["points"]] == [p["score"] for p in whole["points"]]


def test_halving_divides_time_too(root: Path, recipe: Path):
    time = ["--set", "training.max_steps=none", "--set", "training.time_limit=1.5"]
    document = sweep(root, recipe, "--grid", "training.lr=1e-4,1e-3,1e-2", "--halving", *time)
    assert [rung["budget"] for rung in document["rungs"]] == [
        {"time_limit": 0.5}, {"time_limit": 1.5},
    ]  # fmt: skip
    for rate in ("1e-4", "1e-3", "0.01"):
        run = Workspace(root).get("run", f"rates-pretrain-lr-{rate}-time_limit-0.5")
        assert run.manifest.summary["seconds"] >= 0.5
        records = (run.folder / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(r) for r in records if '"train"' in r][-1]
        # Decayed to its end: linear from the peak, so what is left is the share of the last step.
        # On the way to 1.5 s it would be two thirds.
        assert last["learning_rate"] < 0.5 * float(rate)
    assert Workspace(root).get("run", document["best"]).manifest.summary["seconds"] >= 1.5


def test_a_survivor_that_diverges_leaves_the_next_best(
    root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--grid", RATES, "--halving", "--factor", "2"]
    step = Trainer._step

    def diverge(self: Trainer, *args: Any) -> Any:
        parts, norm, taken = step(self, *args)
        at_the_end = self.total_steps == 8
        return parts, float("nan") if at_the_end else norm, taken and not at_the_end

    monkeypatch.setattr(Trainer, "_step", diverge)
    document = sweep(root, recipe, *words)
    assert document["rungs"][2]["kept"] == []
    assert document["points"][-1]["state"] == "diverged"
    assert document["best"].endswith("-max_steps-4")
    assert document["points"][0]["state"] == "dropped in rung 2"


def test_seeds_are_averaged(root: Path, recipe: Path):
    document = sweep(root, recipe, "--grid", "training.lr=1e-4,1e-2", "--seeds", "2")
    for point in document["points"]:
        names = [f"{point['name']}-seed-{seed}" for seed in (0, 1)]
        assert [run["name"] for run in point["runs"]] == names
        low, high = sorted(loss_of(root, name) for name in names)
        assert point["score"] == pytest.approx((low + high) / 2)
        assert low != high
        assert point["deviation"] == pytest.approx((high - low) / 2**0.5)
    first = document["points"][0]
    assert document["best"] == min(first["runs"], key=lambda run: run["score"])["name"]


def test_finetunings_are_judged_by_their_criterion(root: Path, tmp_path: Path, labelled_file: Path):
    recipe = tmp_path / "tune.toml"
    recipe.write_text(RECIPE + FINETUNE.format(data=labelled_file))
    assert "--stage pretrain or --stage finetune" in refused(root, recipe, "--grid", RATES)
    words = ["--stage", "finetune", "--grid", "training.lr=1e-5,3e-3", "--grid", "method=full,lora"]
    document = sweep(root, recipe, *words)
    assert document["judged_by"] == "criterion"
    criteria = []
    for point in document["points"]:
        run = Workspace(root).get("run", point["name"])
        look = run.manifest.summary["validation"]
        criteria.append(1 - look["accuracy"] + look["loss"] / 1000)
        assert point["score"] == pytest.approx(criteria[-1])
        assert point["validation"]["accuracy"] == look["accuracy"]
        again = CliRunner().invoke(app, run.manifest.command[1:])
        assert f"run {point['name']}: up to date" in again.stderr, again.output
    assert criteria == sorted(criteria)
    assert sweep(root, recipe, *words)["stderr"].count("up to date") == 4
    halved = sweep(root, recipe, *words, "--halving", "--factor", "4",
                   "--set", "data.label_column=label", "--name", "halved")  # fmt: skip
    assert [rung["points"] for rung in halved["rungs"]] == [4, 1]


@pytest.mark.parametrize(
    ("grid", "code", "says"),
    [
        ("freeze_layers=0,9", 2, "--grid, at freeze_layers=9: --freeze-layers 9: the model has"),
        ("from=tiny,nope", 3, "--grid, at from=nope: "),
        ("data=DATA,nope.csv", 3, "nope.csv"),
        ("training.device=cpu,cuda", 2, "training.device cuda"),
    ],
)
def test_what_could_not_begin_is_refused_before_anything_trains(
    root: Path, tmp_path: Path, labelled_file: Path, grid: str, code: int, says: str
):
    if "cuda" in grid and torch.cuda.is_available():
        pytest.skip("it could")
    recipe = tmp_path / "refused.toml"
    recipe.write_text(FINETUNE.format(data=labelled_file))
    words = ["--grid", grid.replace("DATA", str(labelled_file)), "--dry-run"]
    assert says in refused(root, recipe, *words, code=code)


def test_a_recipe_of_a_sweep_trains_alone_too(root: Path, tmp_path: Path, labelled_file: Path):
    recipe = tmp_path / "both.toml"
    text = RECIPE.replace("[pretrain]", "[pretrain]\nshards = 'stories'", 1)
    recipe.write_text(text + FINETUNE.format(data=labelled_file))
    plans = {}
    for stage in ("pretrain", "finetune"):
        words = [stage, "--recipe", str(recipe), "-w", str(root), "--dry-run"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        plans[stage] = json.loads(result.stdout)["plan"]
    assert plans["pretrain"]["shards"] == "stories"
    assert plans["finetune"]["from"] == "tiny"
    assert plans["finetune"]["data"] == str(labelled_file)
    result = CliRunner().invoke(app, ["finetune", "--data", "x.csv", "-w", str(root)])
    assert result.exit_code == 2
    assert "--from is missing: give it, or from in the recipe's table" in result.stderr


def test_the_same_name_with_another_recipe(root: Path, recipe: Path):
    words = ["--grid", "training.lr=1e-4,1e-3"]
    sweep(root, recipe, *words)
    kept = weights(root, "rates-pretrain-lr-1e-3")
    recipe.write_text(RECIPE.replace("max_steps = 8", "max_steps = 6"))
    message = refused(root, recipe, *words)
    assert "rates-pretrain-lr-1e-4 was made with other options" in message
    # Before any point is trained, the new one too.
    assert "made with other options" in refused(root, recipe, "--grid", "training.lr=7e-4,1e-3")
    sweep(root, recipe, *words, "--force")
    assert weights(root, "rates-pretrain-lr-1e-3") != kept
    again = sweep(root, recipe, *words, "--force")
    assert again["stderr"].count("up to date") == 2


def test_a_dry_run_trains_nothing(root: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    no_training(monkeypatch)
    document = sweep(root, recipe, "--grid", RATES, "--halving", "--factor", "2", "--dry-run")
    assert document["runs"] == 7
    assert [rung["points"] for rung in document["rungs"]] == [4, 2, 1]
    assert document["points"][0]["config"]["training"]["learning_rate"] == 1e-4
    assert set(document["points"][0]["states"].values()) == {"new"}
    assert not [path for path in (root / "runs").iterdir() if path.name.startswith("rates")]


def test_architectures_n_grams_among_them(root: Path, recipe: Path, tmp_path: Path):
    bare = tmp_path / "bare.toml"
    bare.write_text("[pretrain]\narch = 'ngram'\n")
    document = sweep(root, bare, "--grid", "model.order=2,3")
    assert {point["name"] for point in document["points"]} == {
        "bare-pretrain-order-2", "bare-pretrain-order-3",
    }  # fmt: skip
    for words in (["--halving", "--factor", "2"], ["--seeds", "2"]):
        assert "ngram" in refused(root, bare, "--grid", "model.order=2,3", "--name", "n", *words)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, ["--grid is missing"]),
        (["--grid", "training.lr="], 2, ["a value is empty"]),
        (["--grid", "training.lr=1e-3", "--grid", "training.learning_rate=1"], 2, ["twice"]),
        (["--grid", "training.lr=1e-3,fast"], 2,
         ["--grid, at lr=fast: training.learning_rate", "'fast' was given"]),
        (["--grid", "training.lr=1e-3,-1"], 2, ["lr=-1", "greater than or equal to 0"]),
        (["--grid", "training.lrr=1e-3"], 2, ["'training.lrr'", "did you mean 'training.lr'"]),
        (["--grid", "trainin.lr=1e-3"], 2, ["did you mean 'training'"]),
        (["--grid", "arch=bert,grt"], 2, ["'grt'"]),
        (["--grid", "training.lr=1e-3", "--set", "training.lr=1"], 2, ["given besides"]),
        (["--grid", "shards=stories", "--shards", "stories"], 2, ["shards", "given besides"]),
        (["--grid", "shards=storie"], 3, ["did you mean 'stories'"]),
        (["--grid", RATES, "--set", "training.max_step=1"], 2, ["mean 'training.max_steps'"]),
        (["--grid", RATES, "--stage", "tokenize"], 2, ["--stage 'tokenize'"]),
        (["--grid", RATES, "--stage", "finetune"], 3, ["no table [finetune]"]),
        (["--grid", RATES, "--from", "tiny"], 2, ["--from goes with --stage finetune"]),
        (["--grid", RATES, "--name", "a b"], 2, ["--name 'a b'"]),
        (["--grid", RATES, "--factor", "3"], 2, ["--factor 3 goes with --halving"]),
        (["--grid", RATES, "--halving", "--factor", "1"], 2, ["--factor 1", "2 or more"]),
        (["--grid", RATES, "--halving", "--factor", "5"], 2, ["nothing to drop among 4"]),
        (["--grid", "training.max_steps=8,16,32", "--halving"], 2,
         ["--grid training.max_steps", "--halving"]),
        (["--grid", RATES, "--halving", "--factor", "2", "--set", "training.max_steps=3"], 2,
         ["training.max_steps 3", "less than one step"]),
        (["--grid", "seed=0,1", "--seeds", "2"], 2, ["--grid seed and --seeds"]),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence_and_trains_nothing(
    root: Path, recipe: Path, words: list[str], code: int, says: list[str]
):
    message = refused(root, recipe, *words, code=code)
    for part in says:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("[tokenize]\n", 2, "no table [pretrain] or [finetune]"),
        ("[pretrain]\nshards = 5\n", 2, "shards: write a name, and 5 was given"),
        ("[pretrain\n", 3, "is not TOML"),
        ("[pretrain.training]\nmax_step = 5\n", 2, "did you mean 'training.max_steps'"),
        ("[finetune]\n", 2, "--from and --data are missing"),
        ("[finetune]\nfrom = 'tiny'\n", 2, "--data is missing"),
        ("[finetune]\nfrom = 'scratch'\ndata = 'x.csv'\n", 2, "--like"),
        ("[finetune]\nfrom = 'tiny'\ndata = ['x.csv']\n", 2, "data"),
    ],
)
def test_a_bad_recipe_is_one_sentence(root: Path, tmp_path: Path, text: str, code: int, says: str):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert says in refused(root, path, "--grid", "training.lr=1e-3,1e-4", code=code)


def test_nothing_held_out_leaves_nothing_to_choose_by(
    root: Path, recipe: Path, tmp_path: Path, corpus_file: Path
):
    llmctl(root, "tokenize", corpus_file, "--document", "line", "--tokenizer", "stories",
           "--validation", "0", "--name", "all")  # fmt: skip
    words = ["--grid", RATES, "--shards", "all"]
    document = sweep(root, recipe, *words)
    assert document["best"] is None
    stderr = sweep(root, recipe, *words, "--halving", "--factor", "2", code=3)["stderr"]
    assert "has no validation loss, by which --halving chooses" in stderr
