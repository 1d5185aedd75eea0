"""Tokenize in parts: whatever the number of parts, their order, their crashes, the same shards."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.shards import encoding
from llmctl.data.shards import files as shards
from llmctl.data.tables import columnar
from llmctl.data.text import decoding
from llmctl.errors import BusyError, InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize import parts as stage
from llmctl.stages.tokenize.parts import MOST_PARTS, Part, PartOutcome, parse_part, tokenize_part
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import sha256_file
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.parts import PartsFolder
from tests.run import llmctl, one_sentence, start

TIMING = {"seconds", "megabytes_per_second"}
SIZES = {"wordpiece": 90, "bpe": 290, "unigram": 300, "sentencepiece-bpe": 300, "characters": None}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    """So that a small file is cut between parts, and a part has several batches."""
    monkeypatch.setattr(decoding, "DECODE_BLOCK", 256)
    monkeypatch.setattr(columnar, "BATCH_ROWS", 8)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr("llmctl.stages.tokenize.shards.BATCH_CHARACTERS", 500)


WORDS = [
    "ship", "sails", "over", "wide", "sea", "while", "waves", "rise", "near", "grey", "stones",
    "Ünder", "北京",
]  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    """Some of which come again, in this file and in others; some are empty or without a piece."""
    generator = random.Random(seed)
    made = [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(count)]
    made += ["The same in every file.", "", "  ", "\x01", *generator.sample(made, count // 4)]
    generator.shuffle(made)
    return made


def write_jsonl(path: Path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def write_csv(path: Path, lines: list[str]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], *enumerate(lines)])


def write_text(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n\n" for line in lines))


def write_gzip(path: Path, lines: list[str]) -> None:
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_parquet(path: Path, lines: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": lines}), path, row_group_size=16)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "txt": write_text,
    "jsonl.gz": write_gzip,
    "parquet": write_parquet,
}


def corpus_of(folder: Path, suffix: str, files: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.{suffix}" for number in range(files)]
    for number, path in enumerate(paths):
        WRITERS[suffix](path, texts(15 + 40 * number, seed=number))
    return [str(path) for path in paths]


def config_of(kind: str = "wordpiece", **fields: Any) -> TokenizeConfig:
    values = {"tokenizer": kind, "vocab_size": SIZES.get(kind), "validation": 0.2, "workers": 1}
    return TokenizeConfig.model_validate({**values, **fields})


def contents(root: Path, name: str = "docs") -> dict[str, Any]:
    """All of an artefact but when it was made, how long it took and by which command."""
    manifest = Workspace(root).get("shards", name).manifest
    folder = root / "shards" / name
    found = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == {path: record.sha256 for path, record in manifest.files.items()}
    return {
        "files": found,
        "summary": {k: v for k, v in manifest.summary.items() if k not in TIMING},
        "fingerprint": manifest.fingerprint,
        "inputs": [(record.role, record.name, record.digest) for record in manifest.inputs],
        "config": manifest.config,
    }


def whole(root: Path, sources: list[str], config: TokenizeConfig) -> dict[str, Any]:
    """What one process makes."""
    tokenize(Workspace(root), sources, config, name="docs")
    return contents(root)


def part(
    root: Path, sources: list[str], config: TokenizeConfig, text: str, **more: Any
) -> PartOutcome:
    return tokenize_part(Workspace(root), sources, config, parse_part(text), name="docs", **more)


def all_parts(root: Path, sources: list[str], config: TokenizeConfig, of: int, seed: int = 0):
    """Every part, in some order; the last one's outcome."""
    numbers = list(range(1, of + 1))
    random.Random(seed).shuffle(numbers)
    for done, number in enumerate(numbers, 1):
        outcome = part(root, sources, config, f"{number}/{of}")
        assert (outcome.shards is None) == (done < of)
        assert sorted([*outcome.missing, *numbers[:done]]) == sorted(numbers)
    return outcome


def assert_no_leftovers(root: Path) -> None:
    assert not PartsFolder(Workspace(root), "docs").folder.exists()
    assert list((root / ".parts").iterdir()) == []
    assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize(
    ("suffix", "kind", "fields"),
    [
        ("jsonl", "wordpiece", {}),
        ("jsonl", "unigram", {"split": "tail"}),
        ("txt", "bpe", {"document": "paragraph"}),
        ("txt", "characters", {"split": "tail", "document": "line"}),
        ("txt", "sentencepiece-bpe", {"document": "file", "split": "tail", "validation": 0.1}),
        ("csv", "wordpiece", {"cased": True}),
        ("jsonl.gz", "bpe", {"validation": 0.0}),
        ("parquet", "characters", {}),
    ],
)
def test_parts_make_what_one_process_makes(
    suffix: str, kind: str, fields: dict[str, Any], tmp_path: Path
):
    sources = corpus_of(tmp_path / "c", suffix)
    config = config_of(kind, **fields)
    expected = whole(tmp_path / "whole", sources, config)
    assert expected["summary"]["duplicates"] > 5 or config.split == "tail"
    for of in (1, 2, 3, 7):
        root = tmp_path / f"parts{of}"
        all_parts(root, sources, config, of, seed=of)
        assert contents(root) == expected, of
        assert_no_leftovers(root)


def test_the_documents_are_shared_out(tmp_path: Path):
    """Else all of the above would hold with one part doing everything."""
    sources = corpus_of(tmp_path / "c", "jsonl")
    for number in range(1, 4):
        part(tmp_path / "w", sources, config_of(), f"{number}/4")
    folder = PartsFolder(Workspace(tmp_path / "w"), "docs")
    records = [folder.record(number) for number in range(1, 4)]
    assert all(record is not None and record.documents > 10 for record in records)
    # Parts that end within a file.
    assert any(record.before for record in records if record)


def test_one_file_cut_into_many_parts_and_more_parts_than_documents(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "One two."}\n{"text": "Three."}\n')
    sources, config = [str(tmp_path / "a.jsonl")], config_of("characters")
    expected = whole(tmp_path / "whole", sources, config)
    all_parts(tmp_path / "w", sources, config, 60)
    assert contents(tmp_path / "w") == expected


@pytest.mark.parametrize("share", [0.000001, 0.9999])
def test_a_small_corpus_fills_both_splits(share: float, tmp_path: Path):
    sources, config = corpus_of(tmp_path / "c", "csv", 2), config_of(validation=share)
    expected = whole(tmp_path / "whole", sources, config)
    summary = expected["summary"]
    assert 1 in (summary["train_documents"], summary["validation_documents"])
    all_parts(tmp_path / "w", sources, config, 3)
    assert contents(tmp_path / "w") == expected


def test_an_existing_tokenizer_and_folders(tmp_path: Path):
    sources = corpus_of(tmp_path / "c", "txt")
    learned = tmp_path / "t"
    tokenize(Workspace(learned), sources, config_of("bpe"), name="mine")
    given = config_of(str(learned / "tokenizers" / "mine"))
    expected = whole(tmp_path / "whole", [str(tmp_path / "c")], given)
    all_parts(tmp_path / "w", [str(tmp_path / "c")], given, 3)
    assert contents(tmp_path / "w") == expected
    assert not (tmp_path / "w" / "tokenizers").exists()


def test_a_corpus_without_text_is_refused_as_by_one_process(tmp_path: Path):
    tokenize(Workspace(tmp_path / "t"), corpus_of(tmp_path / "c", "txt"), config_of(), name="mine")
    for content, says in (("\n \n", "has no text"), ("\x01\n", "has no tokens")):
        (tmp_path / "a.txt").write_text(content)
        root, sources = tmp_path / says, [str(tmp_path / "a.txt")]
        config = config_of(str(tmp_path / "t" / "tokenizers" / "mine"))
        part(root, sources, config, "1/2")
        with pytest.raises(InputError, match=says):
            part(root, sources, config, "2/2")
        with pytest.raises(InputError, match=says):
            whole(root, sources, config)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    encoded = []
    encode = stage._encode_part
    monkeypatch.setattr(stage, "_encode_part", lambda *a: encoded.append(a[2]) or encode(*a))
    part(root, sources, config_of(), "2/2")
    assert part(root, sources, config_of(), "2/2").up_to_date
    outcome = part(root, sources, config_of(), "1/2")
    assert not outcome.up_to_date
    assert encoded == [2, 1]
    expected = contents(root)
    for text in ("1/2", "2/2", "3/7"):
        outcome = part(root, sources, config_of(), text)
        assert outcome.up_to_date
        assert outcome.shards is not None
    _, there = tokenize(Workspace(root), sources, config_of(), name="docs")
    assert there
    assert encoded == [2, 1]
    assert contents(root) == expected
    assert_no_leftovers(root)


def test_what_one_process_made_meanwhile_ends_the_parts(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    whole(root, sources, config_of())
    assert_no_leftovers(root)
    assert part(root, sources, config_of(), "2/2").up_to_date


KILLED = """
import os, signal, sys
from pathlib import Path
from llmctl.data.tables import columnar
from llmctl.data.text import decoding
from llmctl.stages.tokenize import parts as tokenize_parts
from llmctl.stages.tokenize import plan as tokenize_plan
from llmctl.stages.tokenize import shards as tokenize_shards
from llmctl.stages.tokenize.stage import TokenizeConfig
from llmctl.workspace import parts
from llmctl.workspace.artefacts import Workspace

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

root, part, where, config, *sources = sys.argv[1:]
decoding.DECODE_BLOCK, columnar.BATCH_ROWS, tokenize_shards.BATCH_CHARACTERS = 256, 8, 500
if where == "learning":
    tokenize_plan.write_plan = die
elif where == "encoding":
    add = tokenize_parts.PartWriter.add
    def add_and_die(writer, batch, counted=[]):
        counted.append(batch)
        add(writer, batch)
        len(counted) < 2 or die()
    tokenize_parts.PartWriter.add = add_and_die
elif where == "merging":
    write = tokenize_parts.write_shards
    tokenize_parts.write_shards = lambda *a: write(*a) and die()
elif where == "removing":
    parts.PartsFolder.remove = lambda folder: folder.has(1) and die()
tokenize_parts.tokenize_part(
    Workspace(Path(root)), sources, TokenizeConfig.model_validate_json(config),
    tokenize_parts.parse_part(part), name="docs",
)
"""


@pytest.mark.parametrize("where", ["learning", "encoding", "merging", "removing"])
def test_a_part_that_is_killed_is_run_again(where: str, tmp_path: Path):
    sources, config, root = corpus_of(tmp_path / "c", "jsonl"), config_of("bpe"), tmp_path / "w"
    expected = whole(tmp_path / "whole", sources, config)
    if where != "learning":
        part(root, sources, config, "1/2")
    words = [str(root), "2/2", where, config.model_dump_json(), *sources]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = PartsFolder(Workspace(root), "docs")
    # What was lost, and what was not.
    assert folder.has(2) == (where in ("merging", "removing"))
    lost = [path.name for path in root.rglob(".*.partial")]
    assert lost == {
        "learning": [".docs.partial"],
        "encoding": [".part-00002.partial"],
        "merging": [".docs.partial"],
        "removing": [],
    }.get(where)
    assert (root / "shards" / "docs").exists() == (where == "removing")
    outcomes = [part(root, sources, config, text) for text in ("2/2", "1/2")]
    # Shards that stand are not made a second time.
    assert outcomes[0].up_to_date == (where == "removing")
    assert outcomes[1].shards is not None
    assert contents(root) == expected
    assert_no_leftovers(root)


def test_a_failure_leaves_the_other_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    with monkeypatch.context() as patch:
        patch.setattr(stage.PartWriter, "close", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            part(root, sources, config_of(), "2/2")
    folder = PartsFolder(Workspace(root), "docs")
    assert folder.has(1)
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "locks", "part-00001", "plan.json", "tokenizer",
    ]  # fmt: skip
    part(root, sources, config_of(), "2/2")
    assert contents(root) == whole(tmp_path / "whole", sources, config_of())


@pytest.mark.distributed
def test_processes_that_start_at_once(tmp_path: Path):
    """They race to make the plan and to put the parts together; some parts run twice."""
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    options = ["--name", "docs", "--vocab-size", "90", "--validation", "0.2", "--json"]
    running = [
        start(root, "tokenize", *sources, *options, "--part", f"{number}/3")
        for number in (1, 2, 3, 1, 3)
    ]
    ends = [(process, *process.communicate()) for process in running]
    for process, out, err in ends:
        if process.returncode == 4:  # its twin was at it
            assert "being written by another process" in err
            continue
        assert process.returncode == 0, err
        assert json.loads(out)["parts"] == 3
    # Not all of them can have found others missing.
    done = [json.loads(out) for process, out, _ in ends if process.returncode == 0]
    assert any(value["missing"] == [] and value["documents"] > 50 for value in done)
    assert_no_leftovers(root)
    found = contents(root)
    expected = whole(tmp_path / "whole", sources, config_of(workers=0))
    for key in ("files", "summary", "fingerprint", "inputs"):
        assert found[key] == expected[key]


@pytest.mark.parametrize("late", [False, True])
def test_two_that_would_put_together(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One waits for the other and finds it done: both just wrote their part, or one comes late."""
    sources, config, root = corpus_of(tmp_path / "c", "jsonl"), config_of(), tmp_path / "w"
    expected = whole(tmp_path / "whole", sources, config)
    part(root, sources, config, "1/3")
    if late:
        part(root, sources, config, "2/3")
    written, merging = threading.Barrier(2), threading.Event()
    put, write, merged = stage.merge_parts, stage.write_shards, []

    def put_together(*args: Any) -> Any:
        if not late:
            written.wait(30)
        return put(*args)

    def write_shards(*args: Any) -> dict[str, Any]:
        merged.append(threading.current_thread().name)
        merging.set()
        time.sleep(1.5)  # longer than a lock is tried for
        return write(*args)

    outcomes: dict[str, PartOutcome] = {}
    notes: list[str] = []
    reporter = Reporter()
    reporter.note = notes.append  # type: ignore[method-assign]

    def run(text: str) -> None:
        outcomes[text] = part(root, sources, config, text, reporter=reporter)

    monkeypatch.setattr(stage, "merge_parts", put_together)
    monkeypatch.setattr(stage, "write_shards", write_shards)
    threads = [threading.Thread(target=run, args=(text,)) for text in ("3/3", "2/3")]
    threads[0].start()
    if late:
        assert merging.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(merged) == 1
    assert [outcome.shards is not None for outcome in outcomes.values()] == [True, True]
    assert outcomes["2/3"].up_to_date == late
    assert any("waiting for another process" in note for note in notes)
    assert contents(root) == expected
    assert_no_leftovers(root)


def test_a_part_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmctl.workspace.locks.GRACE_SECONDS", 0.05)
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/3")
    folder = PartsFolder(Workspace(root), "docs")
    with folder.lock(2, 3):
        with pytest.raises(BusyError, match="part 2/3 of shards docs"):
            part(root, sources, config_of(), "2/3")
        # Nor is the folder taken away from under it.
        with pytest.raises(BusyError, match="part-00002 of shards docs"):
            part(root, sources, config_of("bpe"), "1/3", force=True)
        tokenize(Workspace(root), sources, config_of(), name="docs")
        assert folder.folder.exists()
    assert part(root, sources, config_of(), "2/3").up_to_date
    assert_no_leftovers(root)


def test_shards_being_written_are_busy_and_the_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llmctl.workspace.locks.GRACE_SECONDS", 0.05)
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    with writer_lock(root / "shards" / "docs"), pytest.raises(BusyError):
        part(root, sources, config_of(), "2/2")
    assert part(root, sources, config_of(), "1/2").shards is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/8", "counted from 1 to 8"),
        ("9/8", "counted from 1 to 8"),
        ("1/0", "1 to 99,999"),
        (f"1/{MOST_PARTS + 1}", "1 to 99,999"),
        ("/8", "is not i/n"),
        ("3", "is not i/n"),
        ("-1/8", "is not i/n"),
        ("1.5/8", "is not i/n"),
        ("1/8/2", "is not i/n"),
        ("٣/8", "is not i/n"),
        ("", "is not i/n"),
    ],
)
def test_a_part_that_is_none(text: str, says: str):
    with pytest.raises(UsageError, match=says) as caught:
        parse_part(text)
    assert f"--part {text}" in str(caught.value) or f"--part {text!r}" in str(caught.value)


def test_parts_are_counted_from_one():
    assert [parse_part(text) for text in ("1/1", "8/8", "03/8")] == [
        Part(1, 1), Part(8, 8), Part(3, 8),
    ]  # fmt: skip


def test_the_command_line(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "txt", 2), tmp_path / "w"
    words = ["tokenize", *sources, "--vocab-size", "90"]
    for more, says in (
        (["--part", "0/2", "--name", "docs"], "from 1 to 2"),
        (["--part", "1/2"], "give --name too"),
        (["--part", "1/2", "--name", "docs", "--ray"], "leave one out"),
        (["--ray=corpus"], "is not an address"),
    ):
        error = one_sentence(llmctl(root, *words, *more, code=2))
        assert says in error
    assert not root.exists()
    plan = json.loads(llmctl(root, *words, "--part", "1/2", "--name", "docs", "--dry-run").stdout)
    assert plan["part"] == "1/2"
    words += ["--name", "docs"]
    first = llmctl(root, *words, "--part", "2/2")
    assert first.stdout == "part 2/2 of shards docs: done; 1 missing (1)\n"
    again = llmctl(root, *words, "--part", "2/2", "--json")
    assert "part 2/2 of docs: up to date" in again.stderr
    assert json.loads(again.stdout) == {
        "name": "docs", "folder": None, "part": 2, "parts": 2, "missing": [],
    } | {"missing": [1]}  # fmt: skip
    last = json.loads(llmctl(root, *words, "--part", "1/2", "--json").stdout)
    assert (last["part"], last["missing"]) == (1, [])
    assert last["folder"] == str(root / "shards" / "docs")
    assert last["documents"] > 0
    assert "shards docs: up to date" in llmctl(root, *words, "--part", "2/2").stderr
    assert "shards docs: up to date" in llmctl(root, *words).stderr


def swap_a_letter(path: Path) -> None:
    """The same size, another content."""
    path.write_bytes(path.read_bytes().replace(b"ship", b"shop", 1))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')


@pytest.mark.parametrize("change", [swap_a_letter, grow])
def test_a_file_that_changed_between_parts_is_named(change: Callable[[Path], None], tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    kept = Path(sources[2]).read_bytes()
    change(Path(sources[2]))
    with pytest.raises(InputError, match=rf"{sources[2]} has .*--force") as caught:
        part(root, sources, config_of(), "2/2")
    assert caught.value.exit_code == 3
    Path(sources[2]).write_bytes(kept)
    part(root, sources, config_of(), "2/2")
    assert contents(root) == whole(tmp_path / "whole", sources, config_of())
    # With what has changed since they were finished they are other shards.
    change(Path(sources[2]))
    with pytest.raises(UsageError, match="other options or inputs"):
        part(root, sources, config_of(), "2/2")


def test_a_part_that_does_not_read_a_file_does_not_miss_it(tmp_path: Path):
    """The machine with the first half of the corpus need not read the other."""
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "3/3")
    swap_a_letter(Path(sources[2]))
    part(root, sources, config_of(), "1/3")
    with pytest.raises(InputError, match=sources[2]):
        part(root, sources, config_of(), "2/3")


def test_other_files_are_named(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    (tmp_path / "c" / "new.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(InputError, match=r"new\.jsonl was not among the files"):
        part(root, [*sources[:1], str(tmp_path / "c" / "new.jsonl"), *sources[1:]],
             config_of(), "2/2")  # fmt: skip
    with pytest.raises(InputError, match=r"1\.jsonl is no longer among the files"):
        part(root, [sources[0], sources[2]], config_of(), "2/2")


def test_other_options_are_named(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    for config, text, says in (
        (config_of(), "2/3", r"are 2, not 3: go on with --part i/2"),
        (config_of("bpe"), "2/2", "have tokenizer = wordpiece, not bpe"),
        (config_of(validation=0.1), "2/2", r"have validation = 0\.2, not 0\.1"),
    ):
        with pytest.raises(UsageError, match=says):
            part(root, sources, config, text)
    part(root, sources, config_of(workers=2), "2/2")


def test_another_tokenizer_under_the_same_name(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    tokenize(Workspace(root), sources, config_of("bpe"), name="mine")
    part(root, sources, config_of("mine"), "1/2")
    tokenize(Workspace(root), sources, config_of("unigram"), name="mine", force=True)
    with pytest.raises(InputError, match="--tokenizer mine has changed"):
        part(root, sources, config_of("mine"), "2/2")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    monkeypatch.setattr("llmctl.stages.tokenize.plan.__version__", "99.0")
    with pytest.raises(UsageError, match=r"and this is 99\.0"):
        part(root, sources, config_of(), "2/2")


def test_force_begins_anew_with_what_changed(tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    all_parts(root, sources, config_of(), 2)
    before = contents(root)
    part(root, sources, config_of("bpe"), "1/3", force=True)
    swap_a_letter(Path(sources[2]))
    # The old shards stay until the new are complete.
    assert contents(root) == before
    for text in ("3/3", "1/3"):  # the file's last part notices, and begins anew
        assert part(root, sources, config_of("bpe"), text, force=True).shards is None
        assert contents(root) == before
    assert part(root, sources, config_of("bpe"), "2/3", force=True).shards is not None
    assert contents(root) == whole(tmp_path / "whole", sources, config_of("bpe"))
    assert_no_leftovers(root)


@pytest.mark.parametrize("victim", [stage.DOCUMENTS, "part.json"])
def test_a_damaged_part_is_not_put_together(victim: str, tmp_path: Path):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    path = PartsFolder(Workspace(root), "docs").part(1) / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00001.*; that part was removed: run it again"):
        part(root, sources, config_of(), "2/2")
    assert part(root, sources, config_of(), "2/2").missing == [1]
    part(root, sources, config_of(), "1/2")
    assert contents(root) == whole(tmp_path / "whole", sources, config_of())


def test_parts_that_were_cut_differently_are_not_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A library that reads in other steps would lose or repeat documents at the seam."""
    sources, root = corpus_of(tmp_path / "c", "jsonl", 2), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    monkeypatch.setattr(decoding, "DECODE_BLOCK", 1 << 20)
    with pytest.raises(InputError, match=r"parts 1 and 2 .* disagree where .*1\.jsonl is cut"):
        part(root, sources, config_of(), "2/2")


@pytest.mark.parametrize("field", ["", "vocab_size", "tokenizer_digest", "fingerprint"])
def test_a_damaged_plan_is_told_and_force_begins_anew(tmp_path: Path, field: str):
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    path = root / ".parts" / "docs" / "plan.json"
    plan = json.loads(path.read_text())
    if field:
        plan[field] = plan[field] + 1 if field == "vocab_size" else plan[field][::-1]
    path.write_text(json.dumps(plan) if field else "{")
    with pytest.raises(InputError, match=r"plan\.json is damaged"):
        part(root, sources, config_of(), "2/2")
    assert part(root, sources, config_of(), "2/2", force=True).missing == [1]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a part nor of putting together: four times the text, the same peak."""
    monkeypatch.setattr(shards, "ROWS_TOKENS", 2000)
    vocabulary = tmp_path / "v"
    tokenize(Workspace(vocabulary), corpus_of(tmp_path / "c", "txt"), config_of(), name="mine")
    config = config_of(str(vocabulary / "tokenizers" / "mine"))
    peaks = []
    for times in (1, 1, 4):  # once before, so that what is loaded once isn't counted
        lines = [f"{line} {n}" for n in range(20 * times) for line in texts(60, seed=n)]
        write_jsonl(tmp_path / "a.jsonl", lines)
        root = tmp_path / f"w{len(peaks)}"
        tracemalloc.start()
        for text in ("2/2", "1/2"):
            outcome = part(root, [str(tmp_path / "a.jsonl")], config, text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert outcome.shards is not None
    assert outcome.shards.manifest.summary["documents"] > 4000
    # The hashes of what was seen do grow: eight bytes each, and as much while they are sorted.
    assert peaks[2] < 1.2 * peaks[1] + 2 * 8 * 5000, peaks


def test_ray_that_is_missing_is_one_sentence(tmp_path: Path):
    sources = corpus_of(tmp_path / "c", "txt", 1)
    blocked = tmp_path / "blocked" / "ray.py"
    blocked.parent.mkdir()
    blocked.write_text("raise ImportError('no ray here')\n")
    path = os.pathsep.join([str(blocked.parent), os.environ.get("PYTHONPATH", os.getcwd())])
    result = llmctl(tmp_path / "w", "tokenize", "--ray", *sources, code=2, env={"PYTHONPATH": path})
    assert "pip install 'llmctl[scale]'" in one_sentence(result)


def test_copied_workspaces_carry_parts_on(tmp_path: Path):
    """A plain folder: half of the parts here, the others where it was copied to."""
    sources, root = corpus_of(tmp_path / "c", "jsonl"), tmp_path / "w"
    part(root, sources, config_of(), "1/2")
    shutil.copytree(root, tmp_path / "copy")
    part(tmp_path / "copy", sources, config_of(), "2/2")
    assert contents(tmp_path / "copy") == whole(tmp_path / "whole", sources, config_of())
