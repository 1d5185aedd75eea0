"""Runs beside one another, from logs written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.errors import InputError, UsageError
from llmctl.reporting.compare import render_compare
from llmctl.stages.compare import compare
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, new_manifest, now, write_manifest


def train(step: int, loss: float, tokens: int, speed: float = 100.0) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "tokens": tokens,
            "tokens_per_second": speed}  # fmt: skip


def look(step: int, loss: float, **more: float) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "loss": loss, **more}


def write_run(
    workspace: Workspace,
    name: str,
    log: list[dict[str, Any]],
    *,
    shards: str = "a",
    finished: bool = True,
    machine: str = "cpu",
    **config: Any,
) -> None:
    inputs = [InputRecord(role="shards", name=f"shards/{shards}", digest=shards * 64)]
    identity = Identity("pretrain", config, {}, inputs)
    manifest = new_manifest("run", name, stage="pretrain", config=config, identity=identity, seed=0)
    summary = {"device": machine, "parameters": 1000}
    changes = {"finished": now() if finished else None, "summary": summary}
    folder = workspace.path("run", name)
    folder.mkdir(parents=True)
    write_manifest(folder, manifest.model_copy(update=changes))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    write_json(folder / "progress.json", {"step": log[-1]["step"] if log else 0, "elapsed": 9.0})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two runs of one recipe at different rates, the second with a larger batch and unfinished."""
    place = Workspace(tmp_path)
    place.prepare()
    small = [train(10, 4.0, 1000), look(10, 3.8), train(20, 3.0, 2000, 50.0), look(20, 3.1),
             train(30, 2.5, 3000), look(30, 3.3, accuracy=0.4)]  # fmt: skip
    large = [train(10, 4.5, 2000), look(15, 3.6), train(20, 2.8, 4000), look(25, 2.9)]
    shape = {"arch": "gpt", "model": {"num_layers": 2}}
    rate = {"learning_rate": 1e-4, "batch_size": 8}
    write_run(place, "small", small, training=rate, **shape)
    write_run(place, "large", large, training={"learning_rate": 3e-4, "batch_size": 16},
              finished=False, **shape)  # fmt: skip
    return place


def test_only_what_differs_is_listed(workspace: Workspace):
    found = compare(workspace, ["small", "large"])["differences"]
    assert found == [
        {"field": "training.learning_rate", "values": {"small": 1e-4, "large": 3e-4}},
        {"field": "training.batch_size", "values": {"small": 8, "large": 16}},
    ]


def test_a_field_that_one_has_not_and_inputs_and_machine_differ_too(workspace: Workspace):
    write_run(workspace, "third", [], shards="b", machine="cuda", arch="gpt", extra=None)
    listed = compare(workspace, ["small", "third"])["differences"]
    found = {entry["field"]: entry["values"] for entry in listed}
    assert found["extra"] == {"third": None}
    assert found["model.num_layers"] == {"small": 2}
    assert found["machine.device"] == {"small": "cpu", "third": "cuda"}
    assert [text.split()[0] for text in found["input.shards"].values()] == ["shards/a", "shards/b"]
    assert "arch" not in found
    assert "seed" not in found


def test_figures_side_by_side(workspace: Workspace):
    small, large = compare(workspace, ["small", "large"])["runs"]
    assert small["state"] == "finished"
    assert large["state"] == "interrupted"
    assert (small["step"], small["tokens"], small["parameters"]) == (30, 3000, 1000)
    assert (large["step"], large["tokens"], large["seconds"]) == (25, 4000, 9.0)
    assert (small["best_validation_loss"], small["best_step"]) == (3.1, 20)
    assert small["validation_loss"] == 3.3
    assert small["validation"] == {"accuracy": 0.4}
    # Without the first record: 1,000 tokens in 20 s, 1,000 in 10 s.
    assert small["tokens_per_second"] == pytest.approx(2000 / 30)


def test_curves_have_tokens_where_all_tell_them(workspace: Workspace):
    document = compare(workspace, ["small", "large"])
    assert document["x"] == "tokens"
    small, large = document["curves"]
    assert small["train"] == [[1000, 4.0], [2000, 3.0], [3000, 2.5]]
    assert small["validation"] == [[1000, 3.8], [2000, 3.1], [3000, 3.3]]
    # Half-way between two records of the log, and behind its last.
    assert large["validation"] == [[3000, 3.6], [4000, 2.9]]
    assert document["caution"] is None


def test_else_steps(workspace: Workspace):
    log = [{"kind": "train", "step": 4, "loss": 2.0}, look(4, 2.5), look(5, float("nan"))]
    write_run(workspace, "old", log, arch="gpt")
    document = compare(workspace, ["old", "large"])
    assert document["x"] == "steps"
    assert document["curves"][0]["validation"] == [[4, 2.5]]
    assert document["curves"][1]["validation"] == [[15, 3.6], [25, 2.9]]


def test_what_can_not_be_compared_is_said(workspace: Workspace):
    write_run(workspace, "bert", [], arch="bert", objective={"mask_rate": 0.15})
    assert "masked tokens, next tokens" in compare(workspace, ["small", "bert"])["caution"]
    write_run(workspace, "other", [], shards="b", arch="gpt")
    assert "different texts" in compare(workspace, ["small", "other"])["caution"]


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        (["small"], UsageError, "two runs or more: llmctl status --compare small OTHER"),
        (["small", "small"], UsageError, "names small twice"),
        (["small", "larg"], InputError, "'larg'.*did you mean 'large'"),
        (["small", "../small"], InputError, "no run named"),
    ],
)
def test_what_can_not_be_shown_is_refused(
    workspace: Workspace, names: list[str], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        compare(workspace, names)


def test_tables_and_curves_are_drawn(workspace: Workspace):
    console = Console(width=90)
    with console.capture() as capture:
        console.print(render_compare(compare(workspace, ["small", "large"]), 90))
    text = capture.get()
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines() if line.strip()}
    assert rows["training.learning_rate"].split()[1:] == ["1e-4", "3e-4"]
    assert rows["training.batch_size"].split()[1:] == ["8", "16"]
    assert rows["best validation"].split()[2:] == [
        "3.1000", "at", "step", "20", "2.9000", "at", "step", "25",
    ]  # fmt: skip
    assert rows["accuracy"].split()[1:] == ["0.4000", "–"]
    assert "model.num_layers" not in text
    for kind in ("validation", "train"):
        assert f"{kind} loss by tokens:  ● small  ▲ large" in text
    assert text.count("└") == 2
    # The first validation is the highest: small's, at a quarter of the width.
    highest = next(line for line in text.splitlines() if line.strip().startswith("3.8 ┤"))
    assert "●" in highest
    assert "▲" not in highest
    assert max(map(len, text.splitlines())) <= 90


def test_names_too_long_for_their_columns_stand_above(workspace: Workspace):
    long = "a-run-with-a-name-of-some-forty-characters"
    write_run(workspace, long, [look(3, 2.0, lm_loss=2.0)], arch="gpt")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_compare(compare(workspace, ["small", long]), 80))
    lines = capture.get().splitlines()
    assert [line.rstrip() for line in lines[:2]] == ["● small", f"▲ {long}"]
    assert sum(long in line for line in lines) == 1
    assert [line.split() for line in lines if line.split() == ["●", "▲"]] == [["●", "▲"]] * 2
    assert max(map(len, lines)) <= 80


def status(workspace: Workspace, *words: str) -> Any:
    return CliRunner().invoke(app, ["status", "-w", str(workspace.root), *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--compare", "small", "large", "third"],
        ["--compare", "small", "--compare", "large", "--compare", "third"],
        ["--compare", "small", "--compare", "large", "third"],
    ],
)
def test_the_command_takes_two_names_or_more(workspace: Workspace, words: list[str]):
    write_run(workspace, "third", [], arch="gpt")
    document = json.loads(status(workspace, *words, "--json").stdout)
    assert [run["name"] for run in document["runs"]] == ["small", "large", "third"]
    shown = status(workspace, *words)
    assert shown.exit_code == 0
    assert "■ third" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["small", "large"], 2, "llmctl status --compare small large"),
        (["--compare", "small"], 2, "two runs or more"),
        (["--compare", "small", "nobody"], 3, "no run named 'nobody'"),
        (["--compare", "small", "large", "--watch", "--json"], 2, "--watch"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    workspace: Workspace, words: list[str], code: int, says: str
):
    result = status(workspace, *words)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
