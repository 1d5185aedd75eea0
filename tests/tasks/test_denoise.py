"""Denoising over shards: batches as the models take them, their report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmctl.data.tables.labelled import Example
from llmctl.errors import ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.stages.evaluate import Files, prepare_evaluation
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import predict
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain
from llmctl.tasks.denoise.batches import lengths_of, text_length
from llmctl.tasks.denoise.config import DenoiseConfig
from llmctl.tasks.denoise.loss import denoising_loss
from llmctl.tasks.denoise.spans import spans_in
from llmctl.tasks.denoise.task import DenoisingPretraining
from llmctl.tasks.evaluation import EvaluateConfig
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.pretraining import open_pretraining, resolve
from llmctl.tokenizers.frames import Frame
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model
from tests.once import own_copy
from tests.run import llmctl, one_sentence

SHAPE = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_positions": 64}
TRAINING = {"max_steps": 40, "batch_size": 8, "precision": "fp32"}
CHINESE = "天好。我走！你？"


def layers(arch: str, noise: str | None = None, **objective: Any) -> dict[str, Any]:
    shape = {**SHAPE, "head_size": 16} if arch == "t5" else SHAPE
    more = {} if noise is None else {"noise": noise}
    return {
        "model": shape,
        "objective": {**more, **objective},
        "data": {"sequence_length": 40, "eval_batches": 2},
        "training": TRAINING,
    }


def make(root: Path, corpus: Path) -> None:
    place = Workspace(root)
    text = root.parent / "both.txt"
    lines = corpus.read_text().splitlines()[:120]
    text.write_text(
        "\n".join([*lines, *(f"{n}{CHINESE}" for n in range(20))]) + "\n", encoding="utf-8"
    )
    for name, count in (("marked", 20), ("few", 2), ("bare", 0)):
        config = TokenizeConfig(
            tokenizer="bpe", vocab_size=330, document="line", validation=0.1, workers=1,
            sentinels=count,
        )  # fmt: skip
        tokenize(place, [str(text)], config, name=name)
    pretrain(place, resolve("t5", "nano", layers("t5")), shards_name="marked", name="t5")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Workspace:
    return Workspace(own_copy(tmp_path_factory, "denoise", lambda root: make(root, corpus_file)))


def opened(workspace: Workspace, arch: str, noise: str | None = None, **objective: Any) -> Any:
    shards = workspace.get("shards", "marked")
    return open_pretraining(shards, resolve(arch, "nano", layers(arch, noise, **objective)))


def text_of(task: Any, ids: list[int]) -> list[int]:
    """Ids without what stands around them."""
    around = {*task._frame.before, *task._frame.after, *task._frame.start, *task._frame.end}
    return [number for number in ids if number not in around]


def test_spans_make_rows_of_one_length(workspace: Workspace):
    task = opened(workspace, "t5")
    batch = task.batch(3)
    assert batch.source_lengths_B is None
    assert batch.source_ids_BS.shape == (8, 40)  # all of the sequence's length
    assert batch.num_positions == batch.real_tokens
    # The first is the token that decoding starts with; then each is the label of the one before.
    assert (batch.input_ids_BT[:, 0] == task.tokenizer.special["pad"]).all()
    assert torch.equal(batch.input_ids_BT[:, 1:], batch.labels_BT[:, :-1])
    sentinels = task.tokenizer.sentinels
    for source, target in zip(batch.source_ids_BS.tolist(), batch.labels_BT.tolist(), strict=True):
        spans = spans_in(target, sentinels, -1)
        assert [*spans][:-1] == [number for number in source if number in set(sentinels)]
        assert source[-1] == target[-1] == task.tokenizer.special["eos"]


def test_rows_are_as_long_as_t5s():
    # Its own code makes of 568 tokens a source of 512 and a target of 114, which lacks the last
    # sentinel of its paper's figure 2.
    frame = Frame((), (1,), (0,), (1,))
    assert text_length(DenoiseConfig(), 512, frame) == 568
    assert lengths_of(DenoiseConfig(), 568, frame) == (512, 115)
    assert text_length(DenoiseConfig(noise="deletion"), 512, frame) == 511


@pytest.mark.parametrize(
    "noise", ["infilling", "masking", "deletion", "permutation", "rotation", "infilling+rotation"]
)
def test_the_whole_text_is_written(workspace: Workspace, noise: str):
    task = opened(workspace, "bart", noise)
    batch, plain = task.batch(1), opened(workspace, "bart", "prefix").batch(1)
    source, target = plain.source_ids_BS.tolist(), plain.labels_BT.tolist()
    whole = [text_of(task, s + t) for s, t in zip(source, target, strict=True)]
    assert [text_of(task, row) for row in batch.labels_BT.tolist()] == whole
    assert (batch.labels_BT.shape[1], batch.counts.tokens) == (40, 8 * (40 - 2))
    mask = task.tokenizer.special["mask"]
    for row, (ids, text) in enumerate(zip(batch.source_ids_BS.tolist(), whole, strict=True)):
        size = len(ids) if batch.source_lengths_B is None else int(batch.source_lengths_B[row])
        kept = text_of(task, [number for number in ids[:size] if number != mask])
        assert not set(kept) - set(text)
        if noise in ("permutation", "rotation"):
            assert sorted(kept) == sorted(text)


def test_sentences_are_moved_in_chinese_too(workspace: Workspace):
    task = opened(workspace, "bart", "permutation")
    tokenizer, found = task.tokenizer, set()
    sentences = ["天好。", "我走！", "你？"]
    for number in range(task.batches_per_epoch * 3):
        for row in task.batch(number).source_ids_BS.tolist():
            text = tokenizer.decode(row)
            if all(sentence in text for sentence in sentences):
                found.add(tuple(sorted(range(3), key=lambda n: text.index(sentences[n]))))
    assert len(found) > 1


def test_barts_default_is_its_published_mixture(workspace: Workspace):
    config = opened(workspace, "bart").config.objective
    assert (config.names, config.share, config.span) == (["infilling", "permutation"], 0.3, 3.0)
    config = opened(workspace, "t5").config.objective
    assert (config.names, config.share, config.span) == (["spans"], 0.15, 3.0)


def test_what_was_noised_is_reported_as_realised(workspace: Workspace):
    summary = workspace.get("run", "t5").manifest.summary
    found = summary["noise"]
    task = opened(workspace, "t5")
    counts = [task.batch(number).counts for number in range(40)]
    hidden, tokens = (sum(getattr(c, name) for c in counts) for name in ("hidden", "tokens"))
    assert found["spans"]["share"] == pytest.approx(hidden / tokens)
    assert found["spans"]["share"] == pytest.approx(0.15, abs=0.02)
    assert found["spans"]["mean_span"] == hidden / sum(c.spans for c in counts)
    assert found["batches"] == 40
    mixture = opened(workspace, "bart", "infilling+permutation+rotation")
    kinds = mixture.conclude({"steps": 5, "validation": {}})["noise"]
    assert kinds["infilling"]["share"] == pytest.approx(0.3, abs=0.02)
    assert 2.5 < kinds["infilling"]["mean_span"] < 3.5
    assert kinds["permutation"]["moved_share"] > 0.3
    assert kinds["rotation"]["rotated_share"] > 0.5


def test_batches_are_a_function_of_seed_and_number(workspace: Workspace):
    for noise in ("spans", "infilling+permutation"):
        one, other = (opened(workspace, "t5", noise) for _ in range(2))
        other.batch(0)
        for number in (2, one.batches_per_epoch + 2):
            assert torch.equal(one.batch(number).source_ids_BS, other.batch(number).source_ids_BS)
        first, later = one.batch(2), one.batch(one.batches_per_epoch + 2)
        assert first.source_ids_BS.tolist() != later.source_ids_BS.tolist()


def test_the_loss_is_the_cross_entropy_of_the_logits(workspace: Workspace):
    for arch, noise in (("t5", "spans"), ("bart", "infilling")):
        task = opened(workspace, arch, noise)
        model, batch = task.build_model().eval(), task.batch(0)
        hidden = model(batch.source_ids_BS, batch.source_lengths_B, batch.input_ids_BT)
        logits = model.logits(hidden).flatten(0, 1)
        labels = batch.labels_BT.flatten()
        nll = F.cross_entropy(logits, labels, reduction="none")
        parts = denoising_loss(model, batch)
        torch.testing.assert_close(
            parts.losses["denoising_loss"].total, nll.sum(), rtol=1e-5, atol=1e-4
        )
        shown = parts.metrics["hidden_loss"]
        assert shown.count == batch.counts.hidden == int(batch.hidden_BT.sum())
        torch.testing.assert_close(
            shown.total, nll[batch.hidden_BT.flatten()].sum(), rtol=1e-5, atol=1e-4
        )
        assert "hidden_loss" not in denoising_loss(model.train(), batch).metrics


def test_eval_measures_beside_frequencies(workspace: Workspace):
    config = EvaluateConfig(device="cpu", max_tokens=600)
    report, _, _ = prepare_evaluation(workspace, "t5", Files(), config).run()
    assert (report.task, report.facts["noise"]) == ("denoise", "spans")
    model, guess = report.results["model"], report.results["by frequency"]
    assert 0 < model["hidden_accuracy"] < 1
    assert guess["hidden_loss"] > 0
    assert report.facts["spans"] > 10
    for row in (model, guess):
        low, high = row["exact_interval"]
        assert low <= row["exact_fill"] <= high
    words = ("eval", "--from", "t5", "--device", "cpu", "--max-tokens", "600")
    shown = llmctl(workspace.root, *words).stdout
    assert "spans filled in exactly" in shown


def test_a_span_is_what_stands_behind_its_sentinel():
    assert spans_in([9, 1, 2, 8, 3, 7, 0], [9, 8, 7], 0) == {9: (1, 2), 8: (3,), 7: ()}
    assert spans_in([5, 9, 1], [9, 8], 0) == {9: (1,)}


def test_predict_fills_in_what_sentinels_stand_for(workspace: Workspace):
    text = "The ship <extra_id_0> over the <extra_id_1> sea."
    (answer,) = predict(workspace, "t5", [Example(text, None, None, "text 1")], device="cpu")
    config = GenerateConfig(max_new_tokens=40, device="cpu")
    generation = open_generation(workspace, "t5", config)
    ((written),) = generation.answers([Prompt(text, "text 1")])
    tokenizer = generation.tokenizer
    ids = written.completions[0].ids
    spans = spans_in(ids, tokenizer.sentinels, tokenizer.special["eos"])
    expected = {
        f"<extra_id_{n}>": tokenizer.decode(spans[s]).strip() if s in spans else None
        for n, s in enumerate(tokenizer.sentinels[:2])
    }
    assert answer.record() == {"text": text, "spans": expected}
    assert next(iter(answer.lines(5))) == text
    for wrong, said in {
        "The ship sails.": "has no <extra_id_0>",
        "A <extra_id_0> and a <extra_id_0>": "has a sentinel twice",
        "sea " * 60 + "<extra_id_0>": "shorten it",
    }.items():
        with pytest.raises(InputError, match=said):
            list(predict(workspace, "t5", [Example(wrong, None, None, "text 1")], device="cpu"))


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"noise": "span"}, "no noise.*spans"),
        ({"noise": "spans+rotation"}, "spans goes with no other noise"),
        ({"noise": "infilling+masking"}, "hides tokens twice"),
        ({"noise_share": 0.0}, "nothing to restore"),
        ({"noise_share": 1.0}, "nothing to go by"),
        ({"noise": "rotation", "noise_share": 0.3}, "not for rotation"),
        ({"noise": "deletion", "mean_span": 3.0}, "mean_span is for spans and infilling"),
        ({"mean_span": 0.5}, "less than 1"),
        ({"noise_share": 0.9, "mean_span": 2.0}, "more spans than tokens between them"),
    ],
)
def test_what_makes_no_sense_is_refused(objective: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        resolve("t5", "nano", {"objective": objective})


def test_what_does_not_fit_the_text_is_refused(workspace: Workspace):
    with pytest.raises(ConfigError, match=r"mean_span 30 is longer than what is hidden of a row"):
        opened(workspace, "t5", "spans", mean_span=30.0)
    config = resolve("t5", "nano", layers("t5"))
    for name, have in (("few", "has 2"), ("bare", "has none")):
        with pytest.raises(InputError, match=rf"{have}.*--sentinels 100"):
            open_pretraining(workspace.get("shards", name), config)
    failed = llmctl(
        workspace.root, "pretrain", "--arch", "t5", "--preset", "nano", "--shards", "bare", code=3
    )
    assert "sentinels" in one_sentence(failed)
    assert DenoiseConfig(noise="permutation+infilling").noise == "infilling+permutation"


@pytest.mark.reference
@pytest.mark.parametrize(
    ("like", "kind", "noise"),
    [
        ("t5", "T5ForConditionalGeneration", "spans"),
        ("bart", "BartForConditionalGeneration", "infilling+permutation"),
    ],
)
def test_the_loss_of_a_model_of_others_is_that_of_transformers(
    tmp_path: Path, corpus_file: Path, like: str, kind: str, noise: str
):
    pytest.importorskip("transformers")
    theirs = save_model(tmp_path / "theirs", kind, like=like)
    place = Workspace(tmp_path / "w")
    config = TokenizeConfig(
        tokenizer=str(tmp_path / "theirs"), document="line", validation=0.1, workers=1
    )
    shards, _ = tokenize(place, [str(corpus_file)], config)
    base = open_folder(tmp_path / "theirs")
    more = {"data": {"sequence_length": 40}, "training": {"batch_size": 4}}
    task = DenoisingPretraining(
        shards, DenoisingPretraining.resolve(like, None, more, base=base), base
    )
    assert task.config.objective.noise == noise
    batch, model = task.batch(0), task.build_model().eval()
    sources = batch.source_ids_BS
    lengths = batch.source_lengths_B
    mask = torch.ones_like(sources)
    if lengths is not None:
        mask = (torch.arange(sources.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        expected = theirs(input_ids=sources, attention_mask=mask, labels=batch.labels_BT).loss
        ours = denoising_loss(model, batch).losses["denoising_loss"].mean
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_pretraining_goes_on_with_what_was_pretrained(workspace: Workspace):
    llmctl(
        workspace.root, "pretrain", "--from", "t5", "--shards", "marked", "--name", "more",
        "--set", "training.max_steps=2", "--set", "training.batch_size=4",
        "--set", "objective.noise=prefix", "--set", "training.precision=fp32",
    )  # fmt: skip
    manifest = json.loads((workspace.path("run", "more") / "manifest.json").read_text())
    assert 0.2 < manifest["summary"]["noise"]["prefix"]["share"] < 0.9
    assert np.isfinite(manifest["summary"]["validation"]["denoising_loss"])
