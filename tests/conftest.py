"""What tests of stages share: a small corpus of our own and a workspace with a tiny BERT."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests import repeating
from tests.once import made_once, own_copy

pytest_plugins = ("tests.model_fixtures",)

# Before PyTorch is loaded, here and in the commands that tests start: threads that wait for work by
# spinning keep it from those of the other worker, and a test takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
repeating.keep_parsers()

# HYPOTHESIS_PROFILE=thorough python -m pytest …  tries more.
settings.register_profile("default", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    repeating.settle()
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("PyTorch finds no CUDA device")


SUBJECTS = {
    "sea": "the ship sails over the wide sea . waves rise and fall . the captain watches the stars",
    "farm": "the farmer feeds the cows at dawn . hens lay eggs in the barn . wheat grows tall",
    "city": "the tram stops at the square . people hurry to work . the baker opens the shop early",
}


def make_sentences(subject: str, count: int, generator: random.Random) -> str:
    """Sentences of one subject's words in a random order."""
    words = SUBJECTS[subject].replace(".", "").split()
    return " ".join(
        " ".join(generator.choices(words, k=generator.randint(4, 9))).capitalize() + "."
        for _ in range(count)
    )


def write_corpus(folder: Path) -> None:
    generator = random.Random(0)
    path = folder / "stories.txt"
    lines = [
        make_sentences(generator.choice(list(SUBJECTS)), generator.randint(2, 8), generator)
        for _ in range(300)
    ]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 short documents, a line each."""
    return made_once(tmp_path_factory, "corpus", write_corpus) / "stories.txt"


def write_labelled(folder: Path) -> None:
    generator = random.Random(1)
    path = folder / "subjects.csv"
    rows = ["label,text"]
    for number in range(120):
        subject = list(SUBJECTS)[number % 3]
        rows.append(f"{subject},{make_sentences(subject, 2, generator)}")
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 labelled texts as CSV with a header."""
    return made_once(tmp_path_factory, "labelled", write_labelled) / "subjects.csv"


TINY = [
    "--preset", "nano", "--set", "model.hidden_size=32", "--set", "model.num_heads=2",
    "--set", "data.sequence_length=32", "--set", "training.batch_size=8",
    "--set", "data.eval_batches=2", "--set", "training.precision=fp32",
]  # fmt: skip
"""Options of ``llmctl pretrain`` that make a step take milliseconds."""


def make_tiny_workspace(root: Path, corpus_file: Path, labelled_file: Path) -> None:
    from tests.run import llmctl

    llmctl(root, "tokenize", corpus_file, "--document", "line", "--vocab-size", "120",
           "--validation", "0.1")  # fmt: skip
    llmctl(root, "pretrain", *TINY, "--set", "training.max_steps=30", "--name", "tiny")
    llmctl(root, "finetune", "--from", "tiny", "--data", labelled_file, "--name", "subjects",
           "--set", "training.epochs=3", "--set", "training.precision=fp32",
           "--keep-checkpoints", "last")  # fmt: skip


@pytest.fixture(scope="session")
def tiny_workspace(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, labelled_file: Path
) -> Path:
    """Shards ``stories``, a pretrained run ``tiny`` and a classifier ``subjects``."""
    return own_copy(
        tmp_path_factory, "tiny", lambda root: make_tiny_workspace(root, corpus_file, labelled_file)
    )


@pytest.fixture
def own_workspace(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, corpus_file: Path, labelled_file: Path
) -> Path:
    """That as it was made, for a test that leaves something in it: others count what is there."""
    made = made_once(
        tmp_path_factory, "tiny", lambda root: make_tiny_workspace(root, corpus_file, labelled_file)
    )
    return Path(shutil.copytree(made, tmp_path / "own"))


SAYINGS = {
    "Where does the ship sail?": "Over the wide sea.",
    "What does the farmer feed?": "The cows at dawn.",
    "Where does the tram stop?": "At the square.",
}


def write_sayings(folder: Path) -> None:
    import json

    path = folder / "sayings.jsonl"
    lines = []
    for number in range(90):
        (asked, answered), (then, told) = random.Random(number).sample(list(SAYINGS.items()), 2)
        extra = f" ({number})"
        lines.append(
            [
                {"instruction": asked + extra, "input": "", "output": answered},
                {"conversations": [{"from": "human", "value": asked + extra},
                                   {"from": "gpt", "value": answered}]},
                {"messages": [{"role": "system", "content": "Answer." + extra},
                              {"role": "user", "content": asked},
                              {"role": "assistant", "content": answered},
                              {"role": "user", "content": then},
                              {"role": "assistant", "content": told}]},
            ][number % 3]
        )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def sayings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 conversations in three layouts: a question and its answer, every third time another."""
    return made_once(tmp_path_factory, "sayings", write_sayings) / "sayings.jsonl"


def make_decoder_workspace(root: Path, corpus_file: Path, sayings_file: Path) -> None:
    from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
    from llmctl.stages.train import finetune, pretrain
    from llmctl.tasks import finetuning, pretraining
    from llmctl.workspace.artefacts import Workspace

    place = Workspace(root)
    # A document a line; the questions too, so that their words have pieces.
    lines = TokenizeConfig(tokenizer="bpe", vocab_size=400, document="line", workers=1)
    tokenize(place, [str(corpus_file)], lines, name="stories")
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 128}
    short = {"max_steps": 30, "batch_size": 8, "precision": "fp32", "learning_rate": 5e-3}
    for arch, more in {"gpt": {}, "llama": {"num_kv_heads": 1}}.items():
        layers = {
            "model": {**shape, **more},
            "data": {"sequence_length": 128},
            "training": short,
        }
        pretrain(place, pretraining.resolve(arch, "nano", layers), name=f"tiny-{arch}")
    training = {"epochs": 12, "precision": "fp32", "learning_rate": 1e-2, "batch_size": 8}
    config = finetuning.resolve("instruct", {"training": training, "patience": 0})
    finetune(place, "tiny-llama", sayings_file, config, name="talker")


@pytest.fixture(scope="session")
def decoder_workspace(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, sayings_file: Path
) -> Path:
    """Pretrained decoders ``tiny-gpt`` and ``tiny-llama``, and ``talker``, which answers."""
    return own_copy(
        tmp_path_factory,
        "decoders",
        lambda root: make_decoder_workspace(root, corpus_file, sayings_file),
    )
