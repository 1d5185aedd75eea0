"""lm-evaluation-harness: what it asks, against transformers; and whole, where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.open import open_folder
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.masked_scoring import MaskedScorer
from llmctl.inference.scoring import CausalScorer
from llmctl.tasks.suites.harness_model import HarnessModel, generation_config
from llmctl.workspace.artefacts import Workspace
from tests.language_models import PAIRS, WINDOW, measure
from tests.run import llmctl, one_sentence

CONTEXT = "the captain watches the"
CHOICES = [" stars", " wide sea", " cows at dawn"]


@pytest.fixture(scope="module")
def gpt(models: Workspace) -> Pretrained:
    return open_folder(models.path("run", "gpt") / "model")


@pytest.fixture
def asked(gpt: Pretrained) -> HarnessModel:
    lm = gpt.causal_lm()
    return HarnessModel(
        "gpt",
        CausalScorer(lm, longest=gpt.max_length),
        gpt.tokenizer,
        decoder=lambda: CausalDecoder(lm, longest=gpt.max_length, tokenizer=gpt.tokenizer),
    )


@pytest.mark.reference
def test_likelihoods_are_transformers(asked: HarnessModel, theirs: Any):
    tokenizer, log_probs = theirs
    requests = [(CONTEXT, choice) for choice in CHOICES]
    requests += [("", "hens lay eggs"), (f"{CONTEXT} ", "stars"), (CONTEXT, CHOICES[0])]
    for (context, continuation), (total, greedy) in zip(
        requests, asked.loglikelihood(requests), strict=True
    ):
        cut = len(context.rstrip())
        shown = tokenizer(context[:cut])["input_ids"] if context else [tokenizer.bos_token_id]
        whole = tokenizer(context + continuation)["input_ids"]
        table = log_probs(whole[:-1])
        scored = range(len(shown), len(whole))
        assert total == pytest.approx(sum(table[n - 1, whole[n]] for n in scored), abs=1e-4)
        assert greedy == all(table[n - 1].argmax() == whole[n] for n in scored)


def test_contexts_that_are_too_long_lose_their_beginning_each_for_itself(asked: HarnessModel):
    long = " ".join(["the ship sails over the wide sea"] * 9)
    both = asked.loglikelihood([(long, " stars"), (long, " cows at dawn in the barn")])
    for alone, request in zip(both, [" stars", " cows at dawn in the barn"], strict=True):
        assert asked.loglikelihood([(long, request)])[0] == pytest.approx(alone, abs=1e-4)


@pytest.mark.reference
def test_texts_of_any_length_are_scored_in_windows(asked: HarnessModel, theirs: Any):
    tokenizer, log_probs = theirs
    text = " ".join(["the farmer feeds the cows at dawn . hens lay eggs"] * 6)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) + 1 > 2 * WINDOW
    # The harness's own windows: a start token before all, each token predicted once, and the last
    # window as long as the others.
    stream, expected, begin = [tokenizer.bos_token_id, *ids], 0.0, 1
    while begin < len(stream):
        stop = min(begin + WINDOW, len(stream))
        window = stream[max(0, stop - 1 - WINDOW) : stop]
        table = log_probs(window[:-1])
        first = len(window) - (stop - begin)
        expected += sum(table[n - 1, window[n]] for n in range(first, len(window)))
        begin = stop
    assert asked.loglikelihood_rolling([text, "hens"])[0] == pytest.approx(expected, abs=1e-3)


def test_windows_are_the_harness_own(asked: HarnessModel):
    utils = pytest.importorskip("lm_eval.utils")
    for length in (1, 5, WINDOW, WINDOW + 1, 3 * WINDOW - 2):
        ids = list(range(10, 10 + length))
        windows = utils.get_rolling_token_windows(ids, asked.prefix, WINDOW, 1)
        expected = [utils.make_disjoint_window(pair) for pair in windows]
        assert list(asked._windows(ids)) == [(list(a), list(b)) for a, b in expected]


@pytest.mark.reference
def test_writing_ends_before_a_stop_as_transformers_greedy_text_does(
    asked: HarnessModel, models: Workspace, theirs: Any
):
    transformers = pytest.importorskip("transformers")
    tokenizer, _ = theirs
    model = transformers.AutoModelForCausalLM.from_pretrained(
        models.path("run", "gpt") / "model"
    ).eval()
    prompts, expected = [CONTEXT, "hens lay"], []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            whole = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    stop = next(letter for letter in expected[0][2:] if letter.strip())
    written = asked.generate_until(
        [(prompt, {"until": [], "max_gen_toks": 12}) for prompt in prompts]
        + [(prompts[0], {"until": stop, "max_gen_toks": 12, "temperature": 0.7})]
    )
    assert written == [*expected, expected[0].partition(stop)[0]]


def test_options_of_writing_are_the_harness_and_no_others():
    config = generation_config({"until": "\n", "do_sample": True, "top_p": 0.9, "max_tokens": 7})
    assert (config.max_new_tokens, config.stop, config.top_p) == (7, ("\n",), 0.9)
    assert config.temperature == 1.0
    assert generation_config({"temperature": 0.7}).temperature is None
    assert generation_config({}).max_new_tokens == 256
    with pytest.raises(UsageError, match="generation_kwargs has think_end_token"):
        generation_config({"think_end_token": "x"})


def test_no_room_to_write_and_nothing_to_score_are_said(asked: HarnessModel):
    with pytest.raises(UsageError, match=f"256 tokens written, and gpt reads {WINDOW} at once"):
        asked.generate_until([(CONTEXT, {})])
    with pytest.raises(InputError, match="no tokens of its own to score"):
        asked.loglikelihood([(CONTEXT, "")])


def test_an_encoder_is_asked_by_pseudo_likelihood(tiny_workspace: Path):
    folder = open_folder(tiny_workspace / "runs/tiny/model")
    scorer = MaskedScorer(folder.masked_lm(), folder.tokenizer, longest=folder.max_length)
    asked = HarnessModel("tiny", scorer, folder.tokenizer, decoder=None, masked=True)
    assert not asked.writes
    short = "the ship sails over the wide sea"
    (rolled,) = asked.loglikelihood_rolling([short])
    assert rolled == pytest.approx(asked.loglikelihood([("", short)])[0][0], abs=1e-4)
    # What doesn't fit is scored in parts of its own.
    ids = folder.tokenizer.encode(" ".join([short] * 12))
    room = folder.max_length - 2
    assert len(ids) > room
    windows = list(asked._windows([folder.tokenizer.special["cls"], *ids]))
    assert [token for _, scored in windows for token in scored] == ids
    assert all(shown == [folder.tokenizer.special["cls"]] for shown, _ in windows)
    assert max(len(scored) for _, scored in windows) == room


def write_tasks(folder: Path) -> Path:
    """A task of pairs, one of questions, one of whole texts and one of writing, with their data."""
    folder.mkdir()
    rows = [{"good": good, "bad": bad, "text": f"{good}. {bad}"} for good, bad in PAIRS]
    rows.append({"good": "hens lay eggs", "bad": "hens lay eggs", "text": "hens"})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n" \
             "test_split: test\n"  # fmt: skip
    acc = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    for name, text in {
        "our_pairs": 'output_type: multiple_choice\ndoc_to_text: ""\ndoc_to_target: 0\n'
        'doc_to_choice: "{{[good, bad]}}"\ntarget_delimiter: ""\n' + acc,
        "our_texts": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n',
        "our_writing": 'output_type: generate_until\ndoc_to_text: "{{good}}"\n'
        'doc_to_target: "{{bad}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 8}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    }.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return folder


def test_figures_equal_those_of_the_harness_own_backend(models: Workspace, tmp_path: Path):
    lm_eval = pytest.importorskip("lm_eval")
    folder = write_tasks(tmp_path / "tasks")
    names = ["our_pairs", "our_texts", "our_writing"]
    report = measure(models, "gpt", harness=",".join(names), include=folder)
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    path = models.path("run", "gpt") / "model"
    found = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={path},dtype=float32", device="cpu", batch_size=2,
        tasks=names, task_manager=manager,
    )  # fmt: skip
    for task, key in (("our_pairs", "acc,none"), ("our_texts", "bits_per_byte,none"),
                      ("our_writing", "exact_match,none")):  # fmt: skip
        expected = found["results"][task][key]
        assert report["results"]["model"][task][key] == pytest.approx(expected, rel=1e-5), task
    assert report["ties"] == {"our_pairs": 1}
    assert any("ties count as right" in note for note in report["notes"])
    assert np.isfinite(report["summary"]["our_pairs acc"])


def test_tasks_that_a_model_can_not_do_are_refused(tiny_workspace: Path, tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder = write_tasks(tmp_path / "tasks")
    words = ["eval", "--from", "tiny", "--harness-include", folder, "--harness"]
    said = one_sentence(llmctl(tiny_workspace, *words, "our_writing", code=2))
    assert "the task has the model write, and tiny writes no text" in said
    assert "no such task" in one_sentence(llmctl(tiny_workspace, *words, "our_pear", code=2))


def test_without_the_harness_the_install_command_is_said(
    models: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'llmctl\[eval\]'"):
        measure(models, "gpt", harness="arc_easy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--harness", "a", "--suite", "blimp"], "two ways of measuring"),
        (["--harness", "a,,b"], "name one task or several"),
        (["--harness", "a", "--data", "x.csv"], "leave --data out"),
        (["--num-fewshot", "2"], "--num-fewshot goes with --harness"),
        (["--apply-chat-template"], "--apply-chat-template goes with --harness"),
        (["--harness-include", "."], "--harness-include goes with --harness TASKS"),
    ],
)
def test_options_that_do_not_fit_are_said(tiny_workspace: Path, words: list[str], said: str):
    result = llmctl(tiny_workspace, "eval", "--from", "tiny", *words, code=2)
    assert said in one_sentence(result)
