"""The commands whose numbers are kept, as a user gives them, and how their numbers are collected.

Nothing of the package is imported: where its modules lie makes no difference here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.goldens.corpus import write_corpus
from tests.run import llmctl

FIRST = 20
"""Steps of a training whose losses are kept."""

VOLATILE = {"seconds", "megabytes_per_second"}
"""What of a printed value is of the machine and of the moment."""

PRETRAINED: dict[str, tuple[str, ...]] = {
    "bert": ("bert", "embeddings=random"),
    "gpt": ("gpt", "training.max_steps=120", "training.learning_rate=1e-2"),
    "llama": ("llama",),
    "qwen3": ("llama", "model.qk_norm=true", "model.num_layers=2"),
    "nanochat": ("nanochat",),
    "muon": ("gpt", "training.optimiser=muon", "training.schedule=wsd"),
}
"""By run: its architecture, and what is set beyond ``TRAINING``. The GPT is trained until it is
sure of what it writes."""

CLASSIFY = ("--task", "classify", "--data", "subjects.csv")
INSTRUCT = ("--task", "instruct", "--data", "sayings.jsonl")
SEQ2SEQ = ("--task", "seq2seq", "--data", "pairs.jsonl")
LONGER = ("--set", "training.max_steps=80", "--set", "training.learning_rate=5e-3")
FINETUNED: dict[str, tuple[str, ...]] = {
    "classify-bert": ("--from", "bert", *CLASSIFY),
    "classify-bert-lora": ("--from", "bert", *CLASSIFY, "--method", "lora"),
    "classify-gpt": ("--from", "gpt", *CLASSIFY),
    "classify-gpt-lora": ("--from", "gpt", *CLASSIFY, "--method", "lora"),
    "classify-gpt-last": ("--from", "gpt", *CLASSIFY, "--method", "last-layers",
                          "--class-weights", "balanced"),
    "classify-llama-scratch": ("--from", "scratch", "--like", "llama", *CLASSIFY),
    "instruct-gpt": ("--from", "gpt", *INSTRUCT, *LONGER),
    "instruct-gpt-lora": ("--from", "gpt", *INSTRUCT, "--method", "lora"),
    "decoder-gpt": ("--from", "gpt", *SEQ2SEQ, "--style", "decoder", *LONGER),
    "decoder-gpt-frozen": ("--from", "gpt", *SEQ2SEQ, "--style", "decoder", "--freeze-encoder"),
    "decoder-gpt-lora": ("--from", "gpt", *SEQ2SEQ, "--style", "decoder", "--method", "lora"),
    "prefix-gpt": ("--from", "gpt", *SEQ2SEQ, "--style", "prefix", *LONGER),
    "prefix-gpt-lora": ("--from", "gpt", *SEQ2SEQ, "--style", "prefix", "--method", "lora"),
}  # fmt: skip
"""By run: the options of ``llmctl finetune``, beyond ``TRAINING``."""

NGRAMS = {
    "grams": (),
    "grams-katz": ("--set", "model.smoothing=katz"),
    "grams-add-k": ("--set", "model.smoothing=add-k"),
}

PROMPTS = ("--prompt", "The ship sails over the", "--prompt", "Hens lay")
GENERATED: dict[str, tuple[str, ...]] = {
    "greedy": ("--from", "gpt", *PROMPTS),
    "greedy-int8": ("--from", "gpt", *PROMPTS, "--dtype", "int8"),
    "stop": ("--from", "gpt", *PROMPTS, "--stop", "watches", "--stop", "red"),
    "beam": ("--from", "gpt", *PROMPTS, "--num-beams", "3", "--num-samples", "2"),
    "contrastive": ("--from", "gpt", *PROMPTS, "--penalty-alpha", "0.6", "--top-k", "4"),
    "speculative": ("--from", "gpt", *PROMPTS, "--draft", "grams"),
    "ngram": ("--from", "grams", *PROMPTS),
    "source-decoder": ("--from", "decoder-gpt", "--source", "sources.txt"),
    "source-decoder-beam": ("--from", "decoder-gpt", "--source", "sources.txt", "--num-beams", "3"),
    "source-prefix": ("--from", "prefix-gpt", "--source", "sources.txt"),
}  # fmt: skip
"""By name: options of ``llmctl generate`` whose texts hang on no close decision."""

SAMPLED: dict[str, tuple[str, ...]] = {
    "penalties": ("--from", "gpt", *PROMPTS, "--repetition-penalty", "2",
                  "--frequency-penalty", "0.5", "--no-repeat-ngram-size", "2"),
    "top-p": ("--from", "gpt", *PROMPTS, "--top-p", "0.9", "--temperature", "1.5",
              "--num-samples", "3", "--seed", "3"),
    "top-k": ("--from", "gpt", *PROMPTS, "--top-k", "20", "--temperature", "2", "--seed", "4"),
    "min-p": ("--from", "gpt", *PROMPTS, "--min-p", "0.01", "--temperature", "2", "--seed", "5"),
    "typical-p": ("--from", "gpt", *PROMPTS, "--typical-p", "0.9", "--seed", "6"),
    "speculative-sampled": ("--from", "gpt", *PROMPTS, "--draft", "muon", "--temperature", "1",
                            "--seed", "7"),
    "ngram-sampled": ("--from", "grams", *PROMPTS, "--top-p", "0.9", "--seed", "8"),
    "llama-greedy": ("--from", "llama", *PROMPTS),
    "nanochat-greedy": ("--from", "nanochat", *PROMPTS),
}  # fmt: skip
"""By name: options of ``llmctl generate`` where the last bit of a probability can decide: texts
that are drawn, and those of models of twenty steps, which are sure of nothing."""

EVALUATED: dict[str, tuple[str, ...]] = {
    "masked": ("--from", "bert", "--max-tokens", "40"),
    "shards": ("--from", "gpt", "--compare", "llama", "--compare", "grams"),
    "perplexity": ("--from", "gpt", "--data", "held-out.txt", "--stride", "7",
                   "--compare", "nanochat", "--compare", "qwen3"),
    "perplexity-int8": ("--from", "gpt", "--data", "held-out.txt", "--dtype", "int8"),
    "perplexity-ngrams": ("--from", "grams", "--data", "held-out.txt", "--compare", "grams-katz",
                          "--compare", "grams-add-k"),
    "lambada": ("--from", "gpt", "--data", "lambada.jsonl", "--task", "lambada"),
    "multiple-choice": ("--from", "gpt", "--data", "choices.jsonl", "--score", "bytes"),
    "blimp": ("--from", "gpt", "--data", "blimp.jsonl", "--compare", "grams"),
    "prompted": ("--from", "gpt", "--data", "asked.csv", "--template", "subject.toml",
                 "--examples", "subjects.csv", "--shots", "0,1", "--score", "pmi"),
    "classify": ("--from", "classify-bert", "--data", "subjects-test.csv",
                 "--compare", "classify-gpt-lora"),
    "seq2seq-decoder": ("--from", "decoder-gpt", "--data", "few-pairs.jsonl",
                        "--max-new-tokens", "12", "--num-beams", "2"),
    "seq2seq-prefix": ("--from", "prefix-gpt", "--data", "few-pairs.jsonl",
                       "--max-new-tokens", "12", "--num-beams", "1"),
}  # fmt: skip
"""By name: options of ``llmctl eval``."""

PREDICTED: dict[str, tuple[str, ...]] = {
    "classify-bert": ("--from", "classify-bert", "The ship sails over the deep sea."),
    "classify-gpt": ("--from", "classify-gpt", "Hens lay eggs in the red barn."),
    "fill-mask": ("--from", "bert", "The ship [MASK] over the wide sea."),
}
"""By name: words of ``llmctl predict``."""

HERE = ("--threads", "1")
TRAINING = (
    *HERE, "--set", "training.max_steps=20", "--set", "training.batch_size=8",
    "--set", "training.precision=fp32", "--set", "training.device=cpu",
    "--set", "training.compile=off", "--set", "training.log_every=1", "--seed", "5", "--quiet",
)  # fmt: skip
PRETRAINING = ("--preset", "nano", "--set", "data.sequence_length=64", "--set",
               "data.eval_batches=2")  # fmt: skip


def settings(*assignments: str) -> Iterator[str]:
    """``--set`` before each assignment."""
    for assignment in assignments:
        yield from ("--set", assignment)


class Recipe:
    """The commands, given one after another in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._workspace = folder, folder / "workspace"
        self._files = set[str]()
        self._found: dict[str, dict[str, Any]] = {
            "losses": {}, "figures": {}, "texts": {}, "sha256": {}
        }  # fmt: skip

    def make(self) -> dict[str, dict[str, Any]]:
        """Give every command.

        Returns, each by command: ``losses`` of the first steps; ``figures``, numbers by their
        place in what is printed; ``texts`` that hang on no close decision; ``sha256`` of weights
        and of all that is printed.
        """
        write_corpus(self._folder)
        self._files = {path.name for path in self._folder.iterdir() if path.is_file()}
        self._train()
        for name, words in (GENERATED | SAMPLED).items():
            self._generate(name, words)
        self._chat()
        for name, words in EVALUATED.items():
            told = self._run("eval", *words, *HERE, "--device", "cpu", "--set", "resamples=50",
                             "--name", f"report-{name}", "--json", "--quiet")  # fmt: skip
            self._keep(f"eval {name}", json.loads(told))
        for name, words in PREDICTED.items():
            told = self._run("predict", *words, *HERE, "--device", "cpu", "--json")
            self._keep(f"predict {name}", [json.loads(line) for line in told.splitlines()])
        return self._found

    def _train(self) -> None:
        for name, more in {"wordpiece": ("--vocab-size", "200"),
                           "bpe": ("--vocab-size", "400")}.items():  # fmt: skip
            told = self._run("tokenize", "stories.txt", "--document", "line", "--validation", "0.1",
                      "--workers", "1", "--tokenizer", name, *more, "--name", name, "--quiet",
                      "--json")  # fmt: skip
            self._keep(f"tokenize {name}", json.loads(told))
        for name, (arch, *more) in PRETRAINED.items():
            shards = "wordpiece" if arch == "bert" else "bpe"
            self._run("pretrain", "--arch", arch, "--shards", shards, *PRETRAINING, *TRAINING,
                      *settings(*more), "--name", name)  # fmt: skip
            self._losses("pretrain", name)
        for name, words in NGRAMS.items():
            self._run("pretrain", "--arch", "ngram", "--order", "3", "--shards", "bpe", *HERE,
                      *words, "--name", name, "--quiet")  # fmt: skip
            self._weights(f"pretrain {name}", self._workspace / "runs" / name / "model")
        for name, words in FINETUNED.items():
            self._run("finetune", *TRAINING, *words, "--name", name)
            self._losses("finetune", name)

    def _losses(self, command: str, name: str) -> None:
        run = self._workspace / "runs" / name
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [record["loss"] for record in records if record["kind"] == "train"]
        assert len(losses) >= FIRST, (name, len(losses))
        self._found["losses"][f"{command} {name}"] = losses[:FIRST]
        self._weights(f"{command} {name}", run / "model")

    def _weights(self, name: str, folder: Path) -> None:
        for path in sorted(folder.glob("*.safetensors")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self._found["sha256"][f"{name} {path.name}"] = digest

    def _generate(self, name: str, words: tuple[str, ...]) -> None:
        path = self._folder / f"{name}.jsonl"
        self._run("generate", *words, *HERE, "--device", "cpu", "--max-new-tokens", "16",
                  "--output", str(path), "--quiet")  # fmt: skip
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        written = [text for answer in answers for text in answer["completions"]]
        self._digest(f"generate {name}", answers)
        if name in GENERATED:
            self._found["texts"][f"generate {name}"] = [text["text"] for text in written]
            self._found["figures"][f"generate {name}"] = {
                f"log_probs.{number}": sum(text["log_probs"]) for number, text in enumerate(written)
            }

    def _chat(self) -> None:
        asked = "What of Hens and barn? (7)\nWhat of Wheat and mill? (2)\n"
        words = ("chat", "--from", "instruct-gpt", *HERE, "--device", "cpu", "--json", "--quiet",
                 "--max-new-tokens", "12")  # fmt: skip
        for name, more in {"greedy": ("--temperature", "0"), "drawn": ("--seed", "2")}.items():
            told = self._run(*words, *more, stdin=asked)
            answers = [json.loads(line) for line in told.splitlines()]
            self._digest(f"chat {name}", answers)
            if name == "greedy":
                self._found["texts"]["chat greedy"] = [answer["answer"] for answer in answers]

    def _run(self, *words: str, stdin: str | None = None) -> str:
        given = [self._folder / word if word in self._files else word for word in words]
        return llmctl(self._workspace, *given, stdin=stdin).stdout

    def _keep(self, name: str, printed: Any) -> None:
        stable = _without_volatile(printed, self._folder)
        self._digest(name, stable)
        self._found["figures"][name] = dict(_numbers(stable))

    def _digest(self, name: str, printed: Any) -> None:
        text = json.dumps(_without_volatile(printed, self._folder), sort_keys=True)
        self._found["sha256"][name] = hashlib.sha256(text.encode()).hexdigest()


def _without_volatile(value: Any, folder: Path) -> Any:
    """A printed value without what is of the machine, and with paths from the folder on."""
    if isinstance(value, dict):
        return {
            key: _without_volatile(inner, folder)
            for key, inner in value.items()
            if key not in VOLATILE
        }
    if isinstance(value, list):
        return [_without_volatile(inner, folder) for inner in value]
    return value.replace(f"{folder}/", "") if isinstance(value, str) else value


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number within a printed value, by its place, e.g. ``results.model.accuracy``."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _numbers(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
