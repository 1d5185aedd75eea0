"""Measure models by tasks of lm-evaluation-harness: ``llmctl eval --harness TASKS``.

The harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) reads the tasks, writes the
questions and judges the answers; the model answers here. Tasks of a folder's YAML files need no
network.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.errors import InputError, LlmctlError, UsageError, did_you_mean
from llmctl.evaluation.report import MODEL, Report
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import figure
from llmctl.tasks import TASKS
from llmctl.tasks.generation import GenerateConfig
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.suites.harness_model import TEXTS_AT_ONCE, HarnessModel, as_lm
from llmctl.tasks.suites.scoring import TextEvaluator
from llmctl.training.distributed.processes import get_world
from llmctl.workspace.files import sha256_file, sha256_json
from llmctl.workspace.manifests import InputRecord

INSTALL = "--harness needs lm-evaluation-harness; install it with: pip install 'llmctl[eval]'"
NO_BARS = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Settings of the libraries that the harness stands on, read when they are imported."""

FEWSHOT_SEED = 1234
"""The harness's own default, to which ours is added."""


class HarnessEvaluator(TextEvaluator):
    """Tasks of lm-evaluation-harness under models that score texts or write them."""

    reports = ("harness",)

    def choose(self) -> None:
        """Find the tasks."""
        super().choose()
        if self.files.data is not None:
            raise UsageError("--harness names tasks, which have their data; leave --data out")
        if get_world().size > 1:
            raise UsageError("--harness works in one process; leave --nproc out")
        names = [name.strip() for name in (self.config.harness or "").split(",")]
        if not all(names):
            raise UsageError("--harness: name one task or several, as arc_easy,hellaswag")
        folder = self.files.include
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"--harness-include {folder} is no folder; give that of the YAML files"
            )
        self.manager, self.names, self.version = _find(names, folder)
        if folder is not None:
            self.data = _include_record(folder)

    def run(self, reporter: Reporter) -> Report:
        """Have all models answer the same tasks."""
        results: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        for row, model in self.models.items():
            found = self._evaluate(model, reporter)
            results[row] = {
                task: {key: _json(value) for key, value in values.items() if key != "name"}
                for task, values in found["results"].items()
            }
            if row == MODEL:
                facts = self._facts(found)
        first = self.names[0] if self.names[0] in results[MODEL] else next(iter(results[MODEL]))
        metric, value = next(_metrics(results[MODEL][first]))
        notes = []
        if tied := sum(facts["ties"].values()):
            notes.append(
                f"{tied:,} questions have several likeliest answers, of which the harness takes "
                "the first: where that is the right one always, ties count as right"
            )
        return Report(
            task="harness",
            data=",".join(self.names),
            facts=facts,
            results=results,
            notes=notes,
            summary={f"{first} {metric.partition(',')[0]}": value},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """A row for each metric of each task."""
        rows = report.results
        lines = []
        for task, values in rows[MODEL].items():
            for key, _ in _metrics(values):
                name, _, of = key.partition(",")
                shown = name if of == "none" else f"{name} ({of})"
                cells = [_cell(row[task], key) for row in rows.values()]
                lines.append([f"{task}  {shown}", *cells])
        yield ReportTable(
            f"{report.model}: lm-evaluation-harness {report.facts['harness']}",
            list(map(report.shown, rows)),
            lines,
        )
        yield "each figure with its standard error, as the harness gives them"

    def _evaluate(self, model: OpenedModel, reporter: Reporter) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate

        asked = HarnessModel(
            model.name,
            self.scorer(model),
            model.folder.tokenizer,
            decoder=self._writer(model),
            masked=self.scoring_of(model) != "causal",
            progress=lambda what, done, total: reporter.progress(
                f"{what} of {model.name}", done, total
            ),
        )
        if self.config.apply_chat_template and asked.chat_template is None:
            asked.apply_chat_template([])  # says so
        with _told(self.names), _without_bars():
            found: dict[str, Any] = evaluate(
                lm=as_lm(asked),
                task_dict=self._tasks(asked),
                limit=self.config.limit,
                apply_chat_template=self.config.apply_chat_template,
                fewshot_as_multiturn=self.config.apply_chat_template,
                bootstrap_iters=self.config.resamples,
            )
        return found

    def _tasks(self, model: HarnessModel) -> Any:
        """The tasks with their data, ready to ask a model.

        Raises UsageError for one that has a model write which writes nothing.
        """
        # As the harness seeds itself, so that its examples are those of others.
        random.seed(self.config.seed)
        np.random.seed(FEWSHOT_SEED + self.config.seed)
        loaded = self.manager.load(list(self.names))
        for name, task in loaded["tasks"].items():
            if task.OUTPUT_TYPE == "generate_until" and not model.writes:
                raise UsageError(
                    f"--harness {name}: the task has the model write, and {model.name} writes no "
                    "text; leave it out, or give a language model"
                )
            own, asked = task.get_config("num_fewshot"), self.config.num_fewshot
            # A task that says 0 itself can't be asked otherwise.
            if own is None or (asked is not None and own != 0):
                task.set_config(key="num_fewshot", value=asked or 0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED + self.config.seed)
        return loaded

    def _writer(self, model: OpenedModel) -> Any:
        """Makes what writes texts with a model; None if it writes none."""
        generator = TASKS[model.kind].generator()
        if generator is None:
            return None
        config = GenerateConfig(device=self.config.device, dtype=self.config.dtype)
        return lambda: generator.decoder(model, config, TEXTS_AT_ONCE)

    def _facts(self, found: Mapping[str, Any]) -> dict[str, Any]:
        samples = found.get("samples", {})
        kinds = {task: config.get("output_type") for task, config in found["configs"].items()}
        return {
            "harness": self.version,
            "tasks": self.names,
            "versions": {task: _json(value) for task, value in found["versions"].items()},
            "num_fewshot": {task: _json(value) for task, value in found["n-shot"].items()},
            "examples": {task: len(rows) for task, rows in samples.items()},
            "higher_is_better": {
                task: _json(value) for task, value in found["higher_is_better"].items()
            },
            "ties": {
                task: sum(map(_tied, rows))
                for task, rows in samples.items()
                if kinds.get(task) == "multiple_choice"
            },
        }


def _find(names: Sequence[str], folder: Path | None) -> tuple[Any, list[str], str]:
    """The harness's index of tasks, the tasks that are meant, and its version.

    The index is that of the folder alone, if it has all of them, so that nothing is looked for
    elsewhere. Raises UsageError where the harness isn't there, or a task isn't known.
    """
    for name, value in NO_BARS.items():
        os.environ.setdefault(name, value)
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError(INSTALL) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = None if folder is None else str(folder)
    with _told(names):
        if folder is not None:
            local = TaskManager(include_path=path, include_defaults=False)
            if all(local.match_tasks([name]) for name in names):
                os.environ.update(OFFLINE)
                return local, local.match_tasks(list(names)), lm_eval.__version__
        whole = TaskManager(include_path=path)
        known = {name: whole.match_tasks([name]) for name in names}
    if unknown := [name for name, found in known.items() if not found]:
        raise UsageError(
            f"--harness {unknown[0]}: no such task{did_you_mean(unknown[0], whole.all_tasks)}; "
            "give one of the harness's, or the folder of its YAML file with --harness-include"
        )
    return whole, whole.match_tasks(list(names)), lm_eval.__version__


@contextmanager
def _told(names: Sequence[str]) -> Iterator[None]:
    """What the harness can't do is told in a sentence; ours passes."""
    try:
        yield
    except (LlmctlError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:  # tasks are programs of others, and may fail anyhow
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"--harness {','.join(names)}: lm-evaluation-harness failed ({type(error).__name__}: "
            f"{said}); check the task's YAML file and its data"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """The harness draws a bar of its own, whatever the settings say: progress is told here."""
    from lm_eval.api import task

    drawn = task.tqdm
    task.tqdm = lambda entries, **how: entries
    try:
        yield
    finally:
        task.tqdm = drawn


def _include_record(folder: Path) -> InputRecord:
    """A folder of tasks as an input, with the files that its YAML files name as data."""
    everything = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    files = {path for path in everything if path.is_file()}
    for path in sorted(files):
        if path.suffix in (".yaml", ".yml"):
            words = path.read_text(encoding="utf-8", errors="replace").replace(",", " ").split()
            named = (Path(word.strip("\"'[]{}")) for word in words if "/" in word or "." in word)
            files |= {found for found in named if found.is_file()}
    digests = [[str(path), sha256_file(path)] for path in sorted(files)]
    return InputRecord(role="data", name=str(folder.resolve()), digest=sha256_json(digests))


def _metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metrics of a task: ``acc,none`` and the like, by their keys."""
    for key, value in values.items():
        name = key.partition(",")[0]
        if "," in key and not name.endswith("_stderr"):
            yield key, value


def _cell(values: Mapping[str, Any], key: str) -> str:
    name, _, of = key.partition(",")
    error = values.get(f"{name}_stderr,{of}")
    value = figure(values[key], ".4f") if isinstance(values[key], int | float) else str(values[key])
    return f"{value} ± {error:.4f}" if isinstance(error, int | float) else value


def _tied(sample: Mapping[str, Any]) -> bool:
    """Whether several answers of a question are the likeliest."""
    values = [answer[0] for answer in sample["filtered_resps"]]
    return values.count(max(values)) > 1


def _json(value: Any) -> Any:
    """A figure of the harness as JSON has it: NumPy's numbers as Python's, what is none as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _json(entry) for key, entry in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
