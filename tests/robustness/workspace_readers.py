"""Readers of what lies in a workspace: manifests, logs, checkpoints, shards, plans and reports."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from llmctl.data.shards.choosing import choose_shards
from llmctl.data.shards.files import ShardReader
from llmctl.parsing import read_json
from llmctl.reporting.compare import render_compare
from llmctl.reporting.report import render_report
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.status import render_detail, render_overview
from llmctl.stages.compare import compare
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.status import detail, overview
from llmctl.stages.tokenize.parts import parse_part, tokenize_part
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain
from llmctl.tasks import pretraining
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.kept_reports import parts_of
from llmctl.tasks.pretraining import open_pretraining
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.manifests import FileRecord, read_manifest, write_manifest
from tests.robustness.children import Reader
from tests.robustness.model_readers import CORPUS

LINES = TokenizeConfig(tokenizer="bpe", vocab_size=300, document="line", workers=1, validation=0.3)
SHAPE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 32}
TRAINING = {"max_steps": 4, "batch_size": 2, "precision": "fp32", "checkpoint_every": 2,
            "log_every": 1, "compile": "off", "device": "cpu",
            "keep_checkpoints": "last"}  # fmt: skip


def _corpus(folder: Path) -> Path:
    path = folder / "corpus.txt"
    path.write_text("".join(f"{number} {line}\n" for number in range(8) for line in CORPUS))
    return path


def _config(seed: int = 0) -> Any:
    layers = {"model": SHAPE, "data": {"sequence_length": 32}, "training": TRAINING, "seed": seed}
    return pretraining.resolve("gpt", "nano", layers)


def _workspace(folder: Path, *, trained: bool = True) -> Workspace:
    place = Workspace(folder / "workspace")
    tokenize(place, [str(_corpus(folder))], LINES, name="shards")
    for name in ("one", "two") if trained else ():
        config = _config(seed=ord(name[0]))
        pretrain(place, config, shards_name="shards", name=name)
    if trained:
        config = EvaluateConfig(baselines=False, max_tokens=200, device="cpu")
        prepare_evaluation(place, "one", Files(), config, name="report").run()
    return place


def _shards_only(folder: Path) -> None:
    _workspace(folder, trained=False)


# Status


def _status(folder: Path) -> list[Any]:
    """All that ``llmctl status`` shows, for people and as JSON."""
    place = Workspace(folder / "workspace")
    console = Console(file=io.StringIO(), width=120)
    whole = overview(place)
    console.print(render_overview(whole))
    details = []
    for name in [run["name"] for run in whole["runs"]]:
        details.append(detail(place, name))
        console.print(render_detail(details[-1]))
    compared = compare(place, ["one", "two"])
    console.print(render_compare(compared, 100))
    return [whole, *details, compared]


def _sound_status(found: list[Any]) -> None:
    whole = found[0]
    named = [entry["name"] for entry in [*whole["runs"], *whole["damaged"]]]
    assert {"one", "two"} <= set(named), f"of two runs only {named} are there"


RUN = "workspace/runs/one"
STATUS = [
    Reader(f"status: {what}", _workspace_of, {name: form}, _status, _sound_status)
    for what, name, form, _workspace_of in (
        ("workspace.json", "workspace/workspace.json", "json", _workspace),
        ("a run's manifest", f"{RUN}/manifest.json", "json", _workspace),
        ("metrics.jsonl", f"{RUN}/metrics.jsonl", "jsonl", _workspace),
        ("progress.json", f"{RUN}/progress.json", "json", _workspace),
        ("manifest of shards", "workspace/shards/shards/manifest.json", "json", _workspace),
        ("manifest of a report", "workspace/reports/report/manifest.json", "json", _workspace),
    )
]


# Shards


def _sealed(kind: str, name: str) -> Callable[[Path], None]:
    """Digests made anew, as whoever changed the files could do."""

    def seal(folder: Path) -> None:
        artefact = folder / "workspace" / kind / name
        manifest = read_manifest(artefact)
        files = FileRecord.below(artefact, list(manifest.files))
        write_manifest(artefact, manifest.model_copy(update={"files": files}))

    return seal


def _shards(folder: Path) -> list[int]:
    """A training's first steps on shards, and every token of them."""
    place = Workspace(folder / "workspace")
    chosen = choose_shards(place, "shards", Reporter(), suits=lambda t: True, wanted="anything")
    found = []
    for split in ("train", "validation"):
        reader = ShardReader(chosen.folder, split)
        for number in range(len(reader)):
            tokens, starts = reader.tokens(number), reader.sentence_starts(number)
            assert len(tokens) == 0 or int(tokens.max()) < 300
            found += [len(tokens), int(starts.sum()), int(tokens.sum())]
        reader.token_counts(300)
    config = open_pretraining(chosen, _config()).config
    found.append(config.model.vocab_size)
    return found


# Checkpoints, parts, reports


def _interrupted(folder: Path) -> None:
    """A run with checkpoints of steps 2 and 4, of 6."""
    place = Workspace(folder / "workspace")
    tokenize(place, [str(_corpus(folder))], LINES, name="shards")
    config = _config()
    artefact, _ = pretrain(place, config, shards_name="shards", name="one")
    # As it would be had it been killed before its end.
    open_ = artefact.manifest.model_copy(update={"finished": None, "files": {}})
    write_manifest(artefact.folder, open_)


CHECKPOINT = f"{RUN}/checkpoints/step-00000004"


def _sealed_checkpoint(folder: Path) -> None:
    from llmctl.workspace.manifests import QuickRecord

    at = folder / CHECKPOINT
    names = ["model.safetensors", "optimiser.safetensors", "state.json"]
    records = QuickRecord.below(at, names)
    write_json(
        at / "manifest.json", {name: record.model_dump() for name, record in records.items()}
    )


def _resumed(folder: Path) -> Any:
    place = Workspace(folder / "workspace")
    config = _config()
    artefact, _ = pretrain(place, config, shards_name="shards", name="one")
    return artefact.manifest


def _sound_run(manifest: Any) -> None:
    assert manifest.finished is not None
    json.dumps(manifest.model_dump(mode="json"), allow_nan=False)


def _parts(folder: Path) -> None:
    place, corpus = Workspace(folder / "workspace"), _corpus(folder)
    tokenize_part(place, [str(corpus)], LINES, parse_part("1/2"), name="shards")


def _second_part(folder: Path) -> Any:
    place = Workspace(folder / "workspace")
    outcome = tokenize_part(
        place, [str(folder / "corpus.txt")], LINES, parse_part("2/2"), name="shards"
    )
    return outcome.shards.manifest if outcome.shards else None


def _sound_shards(manifest: Any) -> None:
    assert manifest is not None, "no shards, and no word of it"


PART = "workspace/.parts/shards"


def _sealed_part(folder: Path) -> None:
    path = folder / PART / "part-00001" / "part.json"
    record = read_json(path)
    files = FileRecord.below(path.parent, list(record["files"]))
    record["files"] = {name: entry.model_dump() for name, entry in files.items()}
    write_json(path, record)


def _report(folder: Path) -> Any:
    place = Workspace(folder / "workspace")
    config = EvaluateConfig(baselines=False, max_tokens=200, device="cpu")
    report, artefact, _ = prepare_evaluation(place, "one", Files(), config, name="report").run()
    console = Console(file=io.StringIO(), width=100)
    console.print(render_report(parts_of(report, artefact.folder)))
    return report.document()


def _sound_report(report: Any) -> None:
    assert isinstance(report, dict)


OTHERS = [
    Reader("shards, with digests that fit", _shards_only,
           {"workspace/shards/shards/train-00000.arrow": "shard",
            "workspace/shards/shards/validation-00000.arrow": "shard"},
           _shards, seal=_sealed("shards", "shards"), fresh=True),
    Reader("checkpoints, with digests that fit", _interrupted,
           {f"{CHECKPOINT}/state.json": "json", f"{CHECKPOINT}/model.safetensors": "safetensors",
            f"{CHECKPOINT}/optimiser.safetensors": "safetensors"},
           _resumed, _sound_run, seal=_sealed_checkpoint, fresh=True, slow=True),
    Reader("a checkpoint's digests", _interrupted, {f"{CHECKPOINT}/manifest.json": "json"},
           _resumed, _sound_run, fresh=True, slow=True),
    Reader("an unfinished run's manifest", _interrupted, {f"{RUN}/manifest.json": "json"},
           _resumed, _sound_run, fresh=True, slow=True),
    Reader("plan.json", _parts, {f"{PART}/plan.json": "json"}, _second_part, _sound_shards,
           fresh=True),
    Reader("part.json", _parts, {f"{PART}/part-00001/part.json": "json"}, _second_part,
           _sound_shards, fresh=True),
    Reader("a part, with digests that fit", _parts,
           {f"{PART}/part-00001/documents.arrow": "shard"}, _second_part, _sound_shards,
           seal=_sealed_part, fresh=True),
    Reader("reports", _workspace, {"workspace/reports/report/report.json": "json"}, _report,
           _sound_report, seal=_sealed("reports", "report")),
]  # fmt: skip

READERS = [*STATUS, *OTHERS]
