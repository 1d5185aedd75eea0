"""Artefacts: published whole, found by name or fingerprint, checked by digest, traced back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import BusyError, InputError, NameTaken, UsageError
from llmctl.workspace import locks
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import hidden_sibling, replaced_sibling
from llmctl.workspace.identity import Identity
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.manifests import (
    FORMAT_VERSION,
    FileRecord,
    InputRecord,
    Kind,
    Manifest,
    fingerprint,
    new_manifest,
    read_manifest,
    verify_files,
    write_manifest,
)
from llmctl.workspace.names import is_name


def asked(value: object = 1, *inputs: InputRecord) -> Identity:
    return Identity("tokenize", {"value": value}, {"value": 0}, inputs)


def manifest(
    name: str, *inputs: InputRecord, kind: Kind = "shards", value: object = 1, **changes: Any
) -> Manifest:
    made = new_manifest(
        kind,
        name,
        stage="tokenize",
        config={"value": value},
        identity=asked(value, *inputs),
        seed=0,
    )
    return made.model_copy(update=changes)


def publish(
    workspace: Workspace, name: str, *inputs: InputRecord, content: str = "text", **options: Any
) -> Artefact:
    made = manifest(name, *inputs, **options)
    with workspace.publish(made) as (folder, summary):
        (folder / "data.txt").write_text(content)
        summary["documents"] = 3
    return workspace.get(made.kind, name)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


def visible(workspace: Workspace) -> list[str]:
    return sorted(
        path.relative_to(workspace.root).as_posix()
        for path in workspace.root.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


def test_a_published_artefact_says_what_made_it_and_what_it_holds(workspace: Workspace):
    artefact = publish(workspace, "stories")
    assert artefact.finished
    assert artefact.manifest.summary == {"documents": 3}
    record = artefact.manifest.files["data.txt"]
    # printf text | sha256sum
    assert (record.size, record.sha256) == (
        4,
        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1",
    )
    assert visible(workspace) == [
        "shards/stories/data.txt",
        "shards/stories/manifest.json",
        "workspace.json",
    ]
    artefact.verify()


def test_nothing_is_visible_before_the_block_ends(workspace: Workspace):
    with workspace.publish(manifest("stories")) as (folder, _):
        (folder / "data.txt").write_text("text")
        assert workspace.names("shards") == []
        with pytest.raises(InputError, match="no shards named 'stories'"):
            workspace.get("shards", "stories")
    assert workspace.names("shards") == ["stories"]


def fail_inside(workspace: Workspace, error: BaseException) -> None:
    with workspace.publish(manifest("stories", value=2)) as (folder, _):
        (folder / "data.txt").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError("inside"), KeyboardInterrupt()])
def test_an_exception_inside_leaves_nothing(workspace: Workspace, error: BaseException):
    with pytest.raises(type(error)):
        fail_inside(workspace, error)
    assert visible(workspace) == ["workspace.json"]
    assert not hidden_sibling(workspace.path("shards", "stories")).exists()


def test_an_exception_inside_leaves_the_old_artefact_intact(workspace: Workspace):
    publish(workspace, "stories", content="old")
    before = visible(workspace)
    with pytest.raises(ValueError, match="inside"):
        fail_inside(workspace, ValueError("inside"))
    assert visible(workspace) == before
    artefact = workspace.get("shards", "stories")
    artefact.verify()
    assert artefact.manifest.config == {"value": 1}
    assert (artefact.folder / "data.txt").read_text() == "old"


CRASH = """
import os, sys
from pathlib import Path
from llmctl.workspace import files
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import new_manifest
root, where = Path(sys.argv[1]), sys.argv[2]
made = new_manifest("shards", "stories", stage="tokenize", config={},
                    identity=Identity("tokenize", {"v": 2}, {}, []), seed=0)
rename = Path.rename
def crash_between(self, to):
    if self == files.hidden_sibling(root / "shards" / "stories"):
        os.kill(os.getpid(), 9)
    return rename(self, to)
if where == "renames":
    Path.rename = crash_between
with Workspace(root).publish(made) as (folder, _):
    (folder / "data.txt").write_text("new")
    if where == "block":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("where", ["block", "renames"])
def test_a_writer_killed_while_replacing_loses_nothing(workspace: Workspace, where: str):
    publish(workspace, "stories", content="old")
    before = visible(workspace)
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, str(workspace.root), where], check=False, timeout=60
    )
    assert crashed.returncode == -signal.SIGKILL
    workspace.prepare()
    assert visible(workspace) == before
    artefact = workspace.get("shards", "stories")
    artefact.verify()
    assert (artefact.folder / "data.txt").read_text() == "old"
    target = workspace.path("shards", "stories")
    assert not hidden_sibling(target).exists()
    assert not replaced_sibling(target).exists()


def test_what_a_crash_left_is_cleared_unless_its_writer_lives(workspace: Workspace):
    workspace.prepare()
    for name in ("dead", "living"):
        folder = hidden_sibling(workspace.path("shards", name))
        folder.mkdir(parents=True)
        (folder / "data.txt").write_text("half")
    with writer_lock(workspace.path("shards", "living")):
        workspace.prepare()
        assert not hidden_sibling(workspace.path("shards", "dead")).exists()
        assert hidden_sibling(workspace.path("shards", "living")).exists()
    workspace.prepare()
    assert not hidden_sibling(workspace.path("shards", "living")).exists()
    assert workspace.names("shards") == []


def test_two_writers_of_one_artefact(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.05)
    with workspace.publish(manifest("stories")) as (folder, _):
        (folder / "data.txt").write_text("first")
        with pytest.raises(BusyError) as caught, workspace.publish(manifest("stories")):
            pass
        assert caught.value.exit_code == 4
        publish(workspace, "others")
    assert workspace.names("shards") == ["others", "stories"]
    assert (workspace.path("shards", "stories") / "data.txt").read_text() == "first"


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "missing"])
def test_damage_is_found_and_the_file_named(workspace: Workspace, damage: str):
    artefact = publish(workspace, "stories", content="some longer text")
    path = artefact.folder / "data.txt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[3] ^= 1
    elif damage == "cut":
        content = content[:-1]
    elif damage == "longer":
        content += b"x"
    path.write_bytes(content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(InputError) as caught:
        workspace.get("shards", "stories").verify()
    assert str(path) in str(caught.value)
    assert "--force" in str(caught.value)
    assert caught.value.exit_code == 3


def test_verify_looks_at_a_part_when_asked(workspace: Workspace):
    with workspace.publish(manifest("run", kind="run")) as (folder, _):
        for part in ("model", "logs"):
            (folder / part).mkdir()
            (folder / part / "file").write_text(part)
    artefact = workspace.get("run", "run")
    (artefact.folder / "logs" / "file").write_text("changed")
    artefact.verify("model/")
    with pytest.raises(InputError, match="logs"):
        artefact.verify()


def test_describe_files_leaves_out_the_manifest_of_the_folder_alone(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    for name in ("manifest.json", "inner/manifest.json", "b", "a"):
        (tmp_path / name).write_text(name)
    records = FileRecord.below(tmp_path)
    assert list(records) == ["a", "b", "inner/manifest.json"]
    verify_files(tmp_path, records, remedy="")


def test_equal_content_has_an_equal_digest_whatever_the_name(workspace: Workspace):
    one, two = publish(workspace, "one"), publish(workspace, "two", value=2)
    other = publish(workspace, "three", content="other")
    assert one.manifest.digest == two.manifest.digest != other.manifest.digest


@pytest.mark.parametrize("where", ["workspace", "manifest"])
def test_a_newer_format_is_refused(workspace: Workspace, where: str):
    artefact = publish(workspace, "stories")
    marker = workspace.root / "workspace.json"
    path = marker if where == "workspace" else artefact.folder / "manifest.json"
    value = {**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1, "news": 1}
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"format {FORMAT_VERSION + 1}.*upgrade") as caught:
        Workspace(workspace.root).get("shards", "stories")
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1}', "null"])
def test_a_damaged_manifest_is_an_input_error_that_names_it(workspace: Workspace, content: str):
    artefact = publish(workspace, "stories")
    (artefact.folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"stories.manifest\.json"):
        workspace.get("shards", "stories")


def test_a_file_is_no_workspace(tmp_path: Path):
    (tmp_path / "work").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        Workspace(tmp_path / "work")


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "0", "x" * 100, "a..b"])
def test_good_names(workspace: Workspace, name: str):
    assert workspace.path("run", name) == workspace.root / "runs" / name


@given(name=st.text(max_size=8) | st.sampled_from(["", ".", "..", "../x", "a/b", "a\n", "-a", "é"]))
def test_a_name_is_a_folder_of_its_own_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
):
    root = tmp_path_factory.getbasetemp() / "names"
    path = None
    with contextlib.suppress(UsageError):
        path = Workspace(root).path("run", name)
    assert path == (root / "runs" / name if is_name(name) else None)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\n", "-a", ".a", "a b", "x" * 101]
)
def test_bad_names(workspace: Workspace, name: str):
    with pytest.raises(UsageError, match="--name") as caught:
        workspace.path("run", name)
    assert caught.value.exit_code == 2


def test_a_name_in_any_script_is_found_in_either_spelling(workspace: Workspace):
    """Composed (NFC) and decomposed, as a Mac's file names are."""
    for name in ("情感", "отзывы-2", "é"):
        publish(workspace, name)
        assert workspace.get("shards", unicodedata.normalize("NFD", name)).manifest.name == name
    assert workspace.names("shards") == ["é", "отзывы-2", "情感"]
    assert workspace.match("shards", None, "评论", asked(9), force=False) == ("评论", None)
    with pytest.raises(UsageError, match="--name"):
        workspace.path("run", unicodedata.normalize("NFD", "é"))


def test_a_close_name_is_suggested(workspace: Workspace):
    with pytest.raises(InputError, match="no shards"):
        workspace.get("shards", "stories")
    publish(workspace, "stories")
    with pytest.raises(InputError, match="did you mean 'stories'"):
        workspace.get("shards", "storis")
    with pytest.raises(InputError, match="there are: stories"):
        workspace.get("shards", "qqq")


def test_the_same_content_is_found_under_any_name(workspace: Workspace):
    publish(workspace, "mine")
    same, other = asked(), asked(2)
    name, found = workspace.match("shards", None, "default", same, force=False)
    assert name == "mine"
    assert found is not None
    assert found.manifest.name == "mine"
    assert workspace.match("shards", None, "default", same, force=True) == ("mine", None)
    assert workspace.match("shards", None, "default", other, force=False) == ("default", None)
    assert workspace.match("run", None, "default", same, force=False) == ("default", None)


def test_a_taken_default_name_is_numbered(workspace: Workspace):
    publish(workspace, "stories")
    for number in (2, 3):
        name, found = workspace.match("shards", None, "stories", asked(number), force=False)
        assert (name, found) == (f"stories-{number}", None)
        publish(workspace, name, value=number)


def test_a_requested_name_must_hold_the_same_content(workspace: Workspace):
    publish(workspace, "stories")
    same, other = asked(), asked(2)
    name, found = workspace.match("shards", "stories", "default", same, force=False)
    assert name == "stories"
    assert found is not None
    with pytest.raises(UsageError, match="--force"):
        workspace.match("shards", "stories", "default", other, force=False)
    for requested, print_, force in (
        ("stories", other, True),
        ("stories", same, True),
        ("new", same, False),
    ):
        got = workspace.match("shards", requested, "default", print_, force=force)
        assert got == (requested, None)


def test_a_taken_name_is_told_with_what_differs(workspace: Workspace):
    """Old and new value, the inputs by role, and the command that goes on where there is one."""
    source = InputRecord(role="corpus", name="a.txt", digest="1")
    publish(workspace, "stories", source, kind="run")
    other = InputRecord(role="corpus", name="b.txt", digest="2")
    with pytest.raises(NameTaken) as caught:
        workspace.match("run", "stories", "x", asked(2, other), force=False)
    assert "inputs: value 1, now 2; corpus a.txt, now b.txt; choose another" in str(caught.value)
    assert "go on" not in str(caught.value)
    folder = workspace.path("run", "begun")
    folder.mkdir()
    begun = manifest("begun", kind="run", command=["llmctl", "pretrain", "--name", "begun"])
    write_manifest(folder, begun)
    with pytest.raises(NameTaken, match="as it was begun: llmctl pretrain --name begun — or"):
        workspace.match("run", "begun", "x", asked(2), force=False)
    many = Identity("tokenize", {f"v{n}": n for n in range(9)}, {}, [])
    with pytest.raises(NameTaken, match="v5 unset, now 5; and 5 more; choose"):
        workspace.match("run", "stories", "x", many, force=False)


def test_a_fingerprint_depends_on_all_that_determines_the_content_and_no_more():
    one, two = (InputRecord(role="text", name=n, digest=d) for n, d in (("a", "1"), ("b", "2")))
    base = fingerprint("tokenize", {"x": 1, "y": 2}, [one])
    assert fingerprint("tokenize", {"y": 2, "x": 1}, [one]) == base
    renamed = InputRecord(role="text", name="elsewhere", digest="1")
    assert fingerprint("tokenize", {"x": 1, "y": 2}, [renamed]) == base
    others = [
        fingerprint("pretrain", {"x": 1, "y": 2}, [one]),
        fingerprint("tokenize", {"x": 1, "y": 3}, [one]),
        fingerprint("tokenize", {"x": 1}, [one]),
        fingerprint("tokenize", {"x": 1, "y": 2}, [two]),
        fingerprint("tokenize", {"x": 1, "y": 2}, [one, two]),
        fingerprint("tokenize", {"x": 1, "y": 2}, []),
    ]
    assert len({base, *others}) == len(others) + 1


def test_lineage_goes_depth_first_to_the_files(workspace: Workspace):
    file = InputRecord(role="text", name="/data/stories.txt", digest="f" * 64)
    tokenizer = publish(workspace, "words", file, kind="tokenizer")
    shards = publish(workspace, "stories", tokenizer.as_input("tokenizer"), file)
    lost = InputRecord(role="base", name="run/gone", digest="0" * 64)
    run = publish(workspace, "bert", shards.as_input("shards"), lost, kind="run")
    seen = [
        (depth, record.name, parent is not None)
        for depth, record, parent in workspace.lineage(run.manifest)
    ]
    assert seen == [
        (1, "shards/stories", True),
        (2, "tokenizer/words", True),
        (3, "/data/stories.txt", False),
        (2, "/data/stories.txt", False),
        (1, "run/gone", False),
    ]


def test_lineage_ends_where_names_go_round(workspace: Workspace):
    """An artefact made again from what was made from it."""
    a = publish(workspace, "a")
    b = publish(workspace, "b", a.as_input("x"))
    again = publish(workspace, "a", b.as_input("x"), value=2)
    names = [record.name for _, record, _ in workspace.lineage(again.manifest)]
    assert names == ["shards/b", "shards/a"]


def test_artefacts_are_listed_oldest_first(workspace: Workspace):
    for name, created in (("b", "2024-01-02"), ("c", "2024-01-01"), ("a", "2024-01-03")):
        publish(workspace, name, created=f"{created}T00:00:00+00:00")
    assert [artefact.manifest.name for artefact in workspace.list("shards")] == ["c", "b", "a"]
    assert workspace.names("shards") == ["a", "b", "c"]


def test_of_two_made_in_one_second_the_later_is_the_newer(workspace: Workspace):
    for name in ("z", "m", "a"):
        publish(workspace, name)
    assert [artefact.manifest.name for artefact in workspace.list("shards")] == ["z", "m", "a"]


def test_a_manifest_survives_the_file(workspace: Workspace):
    artefact = publish(workspace, "stories", value={"nested": [1, None, "é", 0.1]})
    assert read_manifest(artefact.folder) == artefact.manifest


def test_the_recorded_command_names_the_workspace_of_the_environment(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["llmctl", "tokenize", "a.txt"])
    monkeypatch.setenv("LLMCTL_WORKSPACE", "/somewhere")
    assert manifest("x").command == ["llmctl", "tokenize", "a.txt", "--workspace", "/somewhere"]
    monkeypatch.setattr(sys, "argv", ["llmctl", "tokenize", "a.txt", "--workspace=w"])
    assert manifest("x").command == ["llmctl", "tokenize", "a.txt", "--workspace=w"]
    monkeypatch.delenv("LLMCTL_WORKSPACE")
    monkeypatch.setattr(sys, "argv", ["llmctl", "tokenize", "a.txt"])
    assert manifest("x").command == ["llmctl", "tokenize", "a.txt"]


@pytest.mark.parametrize(
    ("words", "nodes", "command"),
    [
        ([], "1", "torchrun --nproc-per-node 2 -m llmctl pretrain"),
        ([], "3", "torchrun --nnodes 3 --rdzv-endpoint HOST:PORT --nproc-per-node 2 -m llmctl "
                  "pretrain"),
        (["--nproc", "2"], "1", "llmctl pretrain --nproc 2"),
        (["--nproc=2"], "1", "llmctl pretrain --nproc=2"),
    ],
)  # fmt: skip
def test_the_recorded_command_has_all_its_processes(
    monkeypatch: pytest.MonkeyPatch, words: list[str], nodes: str, command: str
):
    monkeypatch.setattr(sys, "argv", ["llmctl", "pretrain", *words])
    monkeypatch.delenv("LLMCTL_WORKSPACE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(2 * int(nodes)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    assert " ".join(manifest("x").command) == command


def test_damaged_artefacts_match_nothing_and_are_told_of(workspace: Workspace):
    publish(workspace, "good")
    bad = publish(workspace, "bad", value=2)
    (bad.folder / "manifest.json").write_text("{")
    told: list[str] = []
    options: dict[str, Any] = {"force": False, "note": told.append}
    assert workspace.match("shards", None, "x", asked(), **options)[0] == "good"
    assert workspace.match("shards", None, "bad", asked("new"), **options) == ("bad-2", None)
    assert told[0].startswith("shards bad is passed over: ")
    with pytest.raises(InputError, match="--force"):
        workspace.match("shards", "bad", "x", asked("new"), force=False)
    assert workspace.match("shards", "bad", "x", asked("new"), force=True) == ("bad", None)
    assert workspace.match("shards", None, "bad", asked("new"), force=True) == ("bad", None)


def test_the_lineage_goes_round_a_damaged_parent(workspace: Workspace):
    parent = publish(workspace, "parent")
    child = publish(workspace, "child", parent.as_input("shards"))
    (parent.folder / "manifest.json").write_text("{")
    assert [found for _, _, found in workspace.lineage(child.manifest)] == [None]


def test_nothing_is_made_in_the_place_of_what_it_is_made_from(workspace: Workspace):
    record = publish(workspace, "stories").as_input("shards")
    with pytest.raises(UsageError, match="--name stories"):
        manifest("stories", record)
    # A file may be called so.
    manifest("stories", InputRecord(role="corpus", name="shards/stories", digest="0"))


def test_a_default_name_is_cut_to_fit(workspace: Workspace):
    name, _ = workspace.match("run", None, "bert-" + "x" * 100, asked(), force=False)
    assert is_name(name)


def test_a_workspace_that_can_not_be_written(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    workspace.prepare()
    closed = workspace.root / "reports"
    closed.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != closed)
    workspace.prepare("run")
    with pytest.raises(InputError, match=r"reports can't be written"):
        workspace.prepare("report")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def unreadable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0)


def unreadable_manifest(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "manifest.json").chmod(0)


def of_another_kind(folder: Path) -> None:
    folder.mkdir()
    made = manifest(folder.name, kind="report")
    (folder / "manifest.json").write_text(json.dumps(made.model_dump(mode="json")))


def with_a_time(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        folder.mkdir()
        value = manifest(folder.name).model_dump(mode="json")
        (folder / "manifest.json").write_text(json.dumps({**value, "created": text}))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: folder.write_text("mine"),
    "a pipe": os.mkfifo,
    "a broken link": lambda folder: folder.symlink_to("nowhere"),
    "an empty folder": Path.mkdir,
    "a folder for the manifest": lambda folder: (folder / "manifest.json").mkdir(parents=True),
    "an unreadable folder": unreadable,
    "an unreadable manifest": unreadable_manifest,
    "a manifest of another kind": of_another_kind,
    "a time that is none": with_a_time("now"),
    "a time before all calendars": with_a_time("0001-01-01"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_keeps_its_name_and_leaves_the_others_in_peace(
    tmp_path_factory: pytest.TempPathFactory, what: str
):
    """Nothing that lies there is replaced unless it is said, and no other name is lost."""
    root = tmp_path_factory.mktemp("work", numbered=True)
    for folder in (root, *root.parents):  # pytest's are its user's alone
        folder.chmod(0o755)
        if folder.name.startswith("pytest-of-"):
            break
    workspace = Workspace(root)
    publish(workspace, "good")
    bad = root / "shards" / "bad"
    DAMAGES[what](bad)
    told: dict[str, str] = {}
    with as_nobody():
        found = workspace.list("shards", lambda name, error: told.update({name: str(error)}))
        assert [artefact.manifest.name for artefact in found] == ["good"]
        assert list(told) == ["bad"]
        assert str(bad) in told["bad"]
        assert workspace.names("shards") == ["bad", "good"]
        assert workspace.get("shards", "good").finished
        for ask in (
            lambda: workspace.get("shards", "bad"),
            lambda: workspace.match("shards", "bad", "x", asked(2), force=False),
        ):
            with pytest.raises(InputError, match="bad"):
                ask()
        assert workspace.match("shards", None, "bad", asked(2), force=False) == ("bad-2", None)
    if bad.is_dir():
        bad.chmod(0o755)
    assert workspace.match("shards", "bad", "x", asked(2), force=True) == ("bad", None)
    publish(workspace, "bad")
    assert workspace.get("shards", "bad").finished
    assert not [path for path in (root / "shards").iterdir() if path.name.startswith(".")]


def test_a_folder_copied_under_another_name_is_an_artefact_of_that_name(workspace: Workspace):
    shutil.copytree(publish(workspace, "one").folder, workspace.root / "shards" / "two")
    assert [a.manifest.name for a in workspace.list("shards")] == ["one", "two"]
    workspace.get("shards", "two").verify()


@pytest.mark.parametrize("summary", [{"tokens": "many"}, {"seconds": [1]}, {"parameters": True}])
def test_figures_are_numbers(workspace: Workspace, summary: dict[str, object]):
    folder = publish(workspace, "one").folder
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "summary": summary}))
    with pytest.raises(InputError, match=f"summary: {next(iter(summary))} is no number"):
        workspace.get("shards", "one")
