"""What removes, renames and frees: what is in use stays, and a kill leaves nothing half."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.errors import BusyError, InputError, UsageError
from llmctl.stages import prune, rename
from llmctl.stages.remove import plan as plan_removal
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import finetune, pretrain
from llmctl.tasks.finetuning import resolve as resolve_finetune
from llmctl.tasks.pretraining import resolve
from llmctl.workspace import files
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.commands import resume_command
from llmctl.workspace.locks import lock_path, writer_lock
from llmctl.workspace.manifests import write_manifest


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    # Reports that other tests left there were made from these runs, too.
    root = shutil.copytree(
        tiny_workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("reports")
    )
    return Workspace(Path(root))


def run(workspace: Workspace, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*words, "--workspace", str(workspace.root)])
    assert result.exit_code == code, result.output
    return result


def unfinish(workspace: Workspace, name: str) -> None:
    artefact = workspace.get("run", name)
    write_manifest(artefact.folder, artefact.manifest.model_copy(update={"finished": None}))


# Removing


def test_what_others_were_made_from_stays(workspace: Workspace):
    refused = run(workspace, "rm", "tiny", code=2)
    assert "run/subjects was made from run/tiny" in refused.stderr
    refused = run(workspace, "rm", "shards/stories", code=2)
    assert "run/tiny was made from shards/stories" in refused.stderr
    told = run(workspace, "rm", "tiny", "--force", "--dry-run").stdout
    assert told.startswith("would remove run/tiny, ")
    assert workspace.names("run") == ["subjects", "tiny"]
    removed = json.loads(run(workspace, "rm", "runs/tiny", "subjects", "--json").stdout)
    assert [entry["name"] for entry in removed["removed"]] == ["tiny", "subjects"]
    assert removed["bytes"] > 10_000
    assert workspace.names("run") == []
    assert not list((workspace.root / "runs").iterdir())
    assert run(workspace, "rm", "shards/stories", "--force").exit_code == 0
    assert workspace.names("tokenizer") == ["stories"]


def test_a_name_of_several_asks_which(workspace: Workspace):
    refused = run(workspace, "rm", "stories", code=2)
    assert "shards/stories and of tokenizer/stories; say which" in refused.stderr
    refused = run(workspace, "rm", "subject", code=3)
    assert "did you mean 'subjects'" in refused.stderr
    refused = run(workspace, "rm", "models/subjects", code=2)
    assert "KIND/NAME" in refused.stderr


def test_what_is_being_written_is_not_removed(workspace: Workspace):
    with writer_lock(workspace.path("run", "subjects")):
        with pytest.raises(BusyError) as busy:
            plan_removal(workspace, ["subjects"], force=True)
        assert busy.value.exit_code == 4
    assert workspace.get("run", "subjects").finished


def test_a_damaged_artefact_can_be_removed(workspace: Workspace):
    (workspace.path("run", "subjects") / "manifest.json").write_text("{")
    run(workspace, "rm", "subjects")
    assert not workspace.path("run", "subjects").exists()


@pytest.mark.parametrize("leads", [True, False])
def test_of_a_link_only_the_link_is_removed(workspace: Workspace, tmp_path: Path, leads: bool):
    """A run can be kept on another disk."""
    elsewhere = tmp_path / "elsewhere"
    workspace.path("run", "subjects").rename(elsewhere)
    workspace.path("run", "subjects").symlink_to(elsewhere if leads else tmp_path / "nowhere")
    assert run(workspace, "rm", "subjects").stdout == "removed run/subjects, 0 B\n"
    assert [path.name for path in (workspace.root / "runs").iterdir()] == ["tiny"]
    assert (elsewhere / "model" / "config.json").is_file()


def test_a_file_in_the_place_of_a_run_is_removed(workspace: Workspace):
    workspace.path("run", "notes").write_text("a file")
    run(workspace, "rm", "notes")
    assert workspace.names("run") == ["subjects", "tiny"]


def test_killed_while_it_removes_nothing_is_half(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    folder = workspace.path("run", "subjects")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: killed() if path.exists() else None)
        run(workspace, "rm", "subjects", code=130)
    assert not folder.exists()
    assert files.hidden_sibling(folder).is_dir()
    workspace.prepare("run")
    assert not files.hidden_sibling(folder).exists()


# Renaming


def test_a_renamed_artefact_is_found_by_all_that_it_made(
    workspace: Workspace, labelled_file: Path, corpus_file: Path
):
    told = run(workspace, "rename", "tiny", "base", "--dry-run").stdout
    assert told == "would rename run/tiny to base, and the references of run/subjects\n"
    assert workspace.names("run") == ["subjects", "tiny"]
    run(workspace, "rename", "tiny", "base")
    run(workspace, "rename", "shards/stories", "tales")
    run(workspace, "rename", "tokenizer/stories", "words")
    assert workspace.names("run") == ["base", "subjects"]
    base = workspace.get("run", "base")
    assert (base.manifest.name, base.manifest.inputs[0].name) == ("base", "shards/tales")
    child = workspace.get("run", "subjects").manifest
    present = [parent for _, record, parent in workspace.lineage(child) if record.artefact]
    assert [parent.reference for parent in present if parent] == [
        "run/base", "shards/tales", "tokenizer/words",
    ]  # fmt: skip
    config = resolve_finetune("classify", {"training": {"epochs": 3, "precision": "fp32"}})
    again = finetune(workspace, "base", labelled_file, config, name="subjects")
    assert again == (again[0], True)
    made = TokenizeConfig(document="line", vocab_size=120, validation=0.1)
    shards, there = tokenize(workspace, [str(corpus_file)], made)
    assert (shards.manifest.name, there) == ("tales", True)


def test_an_interrupted_run_goes_on_under_its_new_name(workspace: Workspace):
    unfinish(workspace, "subjects")
    run(workspace, "rename", "subjects", "topics")
    run(workspace, "rename", "tiny", "base")
    command = resume_command(workspace.get("run", "topics").manifest)
    assert "--from base" in command
    assert "--name topics" in command
    assert "subjects" not in command.replace("subjects.csv", "")


def test_shards_of_a_tokenizer_given_by_name_stay_up_to_date(
    workspace: Workspace, corpus_file: Path
):
    def made(tokenizer: str) -> tuple[Any, bool]:
        config = TokenizeConfig(tokenizer=tokenizer, document="paragraph")
        return tokenize(workspace, [str(corpus_file)], config, name="more")

    assert not made("stories")[1]
    run(workspace, "rename", "tokenizer/stories", "words")
    assert made("words")[1]


@pytest.mark.parametrize("new", ["a/b", ".x", "subjects"])
def test_a_name_that_can_not_be(workspace: Workspace, new: str):
    with pytest.raises(UsageError):
        rename.plan(workspace, "tiny", new)
    assert workspace.names("run") == ["subjects", "tiny"]


def test_what_is_being_written_is_not_renamed(workspace: Workspace):
    """Neither it nor what was made from it."""
    for busy in ("tiny", "subjects"):
        with writer_lock(workspace.path("run", busy)):
            run(workspace, "rename", "tiny", "base", code=4)
        assert workspace.get("run", "subjects").manifest.inputs[0].name == "run/tiny"
    with pytest.raises(InputError):
        rename.plan(workspace, "nothing", "else")


@pytest.mark.parametrize("writes", [1, 2])
def test_killed_while_it_renames_the_same_command_does_the_rest(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, writes: int
):
    done: list[str] = []

    def breaks(folder: Path, manifest: Any) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(manifest.name)
        write_manifest(folder, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(rename, "write_manifest", breaks)
        if writes == 2:
            patch.setattr(Path, "rename", lambda *_: breaks(Path(), None))
        run(workspace, "rename", "tiny", "base", code=130)
    assert workspace.names("run") == ["subjects", "tiny"]
    run(workspace, "rename", "tiny", "base")
    assert workspace.get("run", "base").manifest.name == "base"
    assert workspace.get("run", "subjects").manifest.inputs[0].name == "run/base"


# Freeing


def test_pruning_frees_what_nothing_needs(workspace: Workspace):
    unfinish(workspace, "tiny")
    for name in ("tiny", "subjects"):
        kept = workspace.path("run", name) / "checkpoints" / "step-00000001"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "model.safetensors").write_bytes(b"x" * 1000)
    half = files.hidden_sibling(workspace.path("run", "gone"))
    half.mkdir()
    (half / "data").write_bytes(b"x" * 500)
    inner = workspace.path("run", "tiny") / ".model.partial"
    inner.mkdir()
    orphan = lock_path(workspace.path("run", "gone"))
    orphan.touch()
    written = files.hidden_sibling(workspace.path("run", "busy"))
    written.mkdir()
    with writer_lock(workspace.path("run", "busy")):
        told = json.loads(run(workspace, "prune", "--dry-run", "--json").stdout)
        assert half.exists()
        assert {(w["what"], Path(w["path"]).name) for w in told["freed"]} >= {
            ("left half-written", half.name), ("left half-written", ".model.partial"),
            ("lock", orphan.name),
        }  # fmt: skip
        assert told["bytes"] >= 500
        # Those of subjects are kept on purpose, those of tiny are needed.
        assert not any(w["what"] == "checkpoints" for w in told["freed"])
        run(workspace, "prune")
        assert written.exists()
        assert lock_path(workspace.path("run", "busy")).exists()
    assert not half.exists()
    assert not inner.exists()
    assert not orphan.exists()
    assert (workspace.path("run", "tiny") / "checkpoints").exists()
    told = run(workspace, "prune", "--kept").stdout
    assert "checkpoints: " in told
    assert "freed " in told
    assert not (workspace.path("run", "subjects") / "checkpoints").exists()
    workspace.get("run", "subjects").verify()
    assert prune.find(workspace, kept=True) == []


def test_a_replaced_folder_that_nothing_took_the_place_of_is_no_waste(workspace: Workspace):
    folder = workspace.path("run", "subjects")
    folder.rename(files.replaced_sibling(folder))
    assert not [w for w in prune.find(workspace) if "subjects" in w.path.name and w.bytes > 1000]
    prune.free(workspace, prune.find(workspace))
    workspace.prepare("run")
    assert workspace.get("run", "subjects").finished


def test_a_run_can_still_be_trained_after_pruning(workspace: Workspace):
    training = {"max_steps": 30, "batch_size": 8, "precision": "fp32"}
    layers = {
        "model": {"hidden_size": 32, "num_heads": 2},
        "data": {"sequence_length": 32, "eval_batches": 2},
        "training": training,
    }
    run(workspace, "prune", "--kept")
    assert pretrain(workspace, resolve("bert", "nano", layers), name="tiny")[1]
