"""``llmctl generate``: where prompts come from, what is answered, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.config import build
from llmctl.formats import base
from llmctl.formats.open import open_folder
from llmctl.formats.peft.folder import Adapter
from llmctl.stages.generate import open_generation
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.stages.train import pretrain
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.pretraining import resolve
from llmctl.training.adapters.lora import LoraConfig, add_lora, learned
from llmctl.workspace.artefacts import Workspace
from tests.language_models import DATA, TRAINING, WINDOW, split
from tests.run import llmctl, one_sentence
from tests.small_decoders import reread

Run = Callable[..., Result]
FEW = ("--max-new-tokens", "8", "--device", "cpu")


@pytest.fixture
def run(models: Workspace) -> Run:
    def invoke(*words: object, code: int = 0, stdin: str | bytes | None = None) -> Result:
        given = ["generate", "-w", str(models.root), *FEW, *map(str, words)]
        before = signal.getsignal(signal.SIGINT)
        try:
            result = CliRunner().invoke(app, given, input=stdin)
        finally:
            signal.signal(signal.SIGINT, before)
        assert result.exit_code == code, result.output
        return result

    return invoke


def answers(result: Result) -> list[dict[str, Any]]:
    report = json.loads(result.stdout)
    assert set(report) == {"model", "answers"}
    found: list[dict[str, Any]] = report["answers"]
    return found


def error(result: Result) -> str:
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return message.removeprefix("error: ")


def test_json_has_the_tokens_and_their_log_probabilities(models: Workspace, run: Run):
    folder = open_folder(models.path("run", "gpt") / "model")
    (answer,) = answers(run("--from", "gpt", "--prompt", "The ship", "--json"))
    assert (answer["prompt"], answer["source"]) == ("The ship", "--prompt 1")
    (found,) = answer["completions"]
    assert set(found) == {"text", "finish", "tokens", "ids", "log_probs"}
    tokenizer = folder.tokenizer
    assert found["text"] == tokenizer.decode(found["ids"])
    assert found["tokens"] == [tokenizer.id_to_token(number) for number in found["ids"]]
    ids = [tokenizer.special["bos"], *tokenizer.encode("The ship")]
    table = reread(folder.causal_lm(), [*ids, *found["ids"]]).log_softmax(-1)
    expected = [float(table[len(ids) - 1 + n, token]) for n, token in enumerate(found["ids"])]
    assert sum(found["log_probs"]) == pytest.approx(sum(expected), abs=1e-4)
    assert found["log_probs"] == pytest.approx(expected, abs=1e-5)
    assert max(found["log_probs"]) <= 0


@pytest.mark.reference
def test_the_text_is_that_of_transformers(models: Workspace, theirs: Any, run: Run):
    tokenizer, log_probs = theirs
    (answer,) = answers(run("--from", "gpt", "--prompt", "The baker opens", "--json"))
    ids = tokenizer("The baker opens")["input_ids"]
    start = [] if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id]
    written = [*start, *ids]
    for _ in answer["completions"][0]["ids"]:
        written.append(int(np.argmax(log_probs(written)[-1])))
    assert written[len(start) + len(ids) :] == answer["completions"][0]["ids"]


def test_a_text_is_printed_behind_its_prompt(run: Run):
    for options in ((), ("--top-k", "5", "--seed", "2"), ("--num-beams", "3")):
        (answer,) = answers(run("--from", "gpt", "--prompt", "The ship", "--json", *options))
        printed = run("--from", "gpt", "--prompt", "The ship", *options)
        assert printed.stdout == f"The ship{answer['completions'][0]['text']}\n"
        assert not printed.stderr


def test_an_empty_prompt_begins_from_bos(models: Workspace, run: Run):
    (answer,) = answers(run("--from", "llama", "--prompt", "", "--json"))
    folder = open_folder(models.path("run", "llama") / "model")
    ids = [folder.tokenizer.special["bos"]]
    for token in answer["completions"][0]["ids"]:
        assert int(reread(folder.causal_lm(), ids)[-1].argmax()) == token
        ids.append(token)
    text = answer["completions"][0]["text"]
    assert run("--from", "llama", "--prompt", "").stdout == f"{text}\n"


def test_several_samples_are_apart_and_numbered(run: Run):
    words = ("--from", "gpt", "--prompt", "The", "--prompt", "A hen", "--num-samples", "3")
    found = answers(run(*words, "--json"))
    assert [len(answer["completions"]) for answer in found] == [3, 3]
    assert len({c["text"] for answer in found for c in answer["completions"]}) > 3
    texts = [answer["prompt"] + c["text"] for answer in found for c in answer["completions"]]
    assert run(*words).stdout == "\n\n".join(texts) + "\n"
    assert answers(run(*words, "--json", "--seed", "1")) != found
    one = answers(run(*words, "--json", "--set", "batch_size=1"))
    assert [[c["ids"] for c in answer["completions"]] for answer in one] == [
        [c["ids"] for c in answer["completions"]] for answer in found
    ]


def test_prompts_of_files_and_of_standard_input(run: Run, tmp_path: Path):
    texts = ["The ship", "", "Hens lay eggs in", "A"]
    files = {
        "p.txt": "\n".join(texts) + "\n",
        "p.jsonl": "".join(json.dumps({"n": 1, "prompt": text}) + "\n" for text in texts),
    }
    expected = [
        answers(run("--from", "gpt", "--prompt", text, "--json"))[0]["completions"][0]["ids"]
        for text in texts
    ]
    for name, content in files.items():
        path = tmp_path / name
        path.write_text(content)
        found = answers(run("--from", "gpt", "--prompt-file", path, "--json"))
        assert [answer["prompt"] for answer in found] == texts
        assert [answer["source"] for answer in found] == [f"{path}:{n}" for n in range(1, 5)]
        assert [answer["completions"][0]["ids"] for answer in found] == expected
    for words in ((), ("--prompt-file", "-")):
        result = run("--from", "gpt", *words, "--json", stdin=files["p.txt"])
        assert [a["source"] for a in answers(result)] == [
            f"standard input:{n}" for n in range(1, 5)
        ]
        assert [a["completions"][0]["ids"] for a in answers(result)] == expected


def test_standard_input_that_is_no_text(run: Run):
    assert "standard input" in error(run("--from", "gpt", stdin=b"The ship\ncaf\xe9\n", code=3))
    assert "standard input" in error(run("--from", "gpt", stdin="", code=3))


def test_answers_go_to_a_file(run: Run, tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    words = ("--from", "gpt", "--prompt", "The ship", "--prompt", "naïve 京", "--num-beams", "2")
    result = run(*words, "--output", path)
    assert result.stdout == ""
    assert "2 answers" in result.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == answers(run(*words, "--json"))
    assert records[1]["prompt"] == "naïve 京"
    scores = [answer["completions"][0] for answer in records]
    for found in scores:
        assert found["score"] == pytest.approx(
            sum(found["log_probs"]) / len(found["ids"]), abs=1e-5
        )


def test_an_ngram_model_writes(run: Run):
    words = ("--from", "grams", "--prompt", "The ship", "--json")
    (greedy,) = answers(run(*words))
    assert greedy["completions"][0]["text"]
    (beams,) = answers(run(*words, "--num-beams", "3", "--num-samples", "3"))
    assert len(beams["completions"]) == 3
    (sampled,) = answers(run(*words, "--top-p", "0.9", "--num-samples", "4"))
    assert len({c["text"] for c in sampled["completions"]}) > 1
    assert (
        answers(run(*words, "--draft", "gpt"))[0]["completions"][0]["ids"]
        == (greedy["completions"][0]["ids"])
    )
    assert "--dtype int8" in error(run(*words, "--dtype", "int8", code=2))
    assert "decoders that write token by token" in error(
        run(*words, "--prompt-lookup", "2", code=2)
    )
    assert "n-gram model has none" in error(run(*words, "--penalty-alpha", "0.5", code=2))


@pytest.mark.parametrize(
    "guessing", [("--draft", "llama"), ("--draft", "grams"), ("--draft", "gpt"),
                 ("--prompt-lookup", "3", "--draft-tokens", "6")]
)  # fmt: skip
def test_guesses_change_nothing(run: Run, guessing: tuple[str, ...]):
    words = ("--from", "gpt", "--prompt", "The farmer", "--prompt", "The ship and the ship and")
    words = (*words, "--json", "--max-new-tokens", "20")
    plain, guessed = answers(run(*words)), answers(run(*words, *guessing))
    for one, other in zip(guessed, plain, strict=True):
        assert one["completions"][0]["ids"] == other["completions"][0]["ids"]
    told = [one["completions"][0] for one in guessed if "drafted" in one["completions"][0]]
    assert sum(one["drafted"] for one in told) > 0
    assert sum(one["accepted"] for one in told) >= 10 * (guessing == ("--draft", "gpt"))
    assert not any("drafted" in one["completions"][0] for one in plain)


def test_other_types_of_weights(run: Run):
    """After a few steps of training most of what a model writes is sure."""
    words = ("--from", "gpt", "--json", *(f"--prompt={text}" for text in ("The", "Hens", "A ship")))
    plain = answers(run(*words))
    for dtype in ("bf16", "int8"):
        found = answers(run(*words, "--dtype", dtype))
        for one, other in zip(plain, found, strict=True):
            first, second = one["completions"][0], other["completions"][0]
            assert first["ids"][0] == second["ids"][0]
            assert first["log_probs"][0] == pytest.approx(second["log_probs"][0], abs=0.1)
            assert first["log_probs"][0] != second["log_probs"][0]


def test_a_stop_text_that_never_comes_and_one_that_does(run: Run):
    words = ("--from", "gpt", "--prompt", "The ship", "--json", "--min-new-tokens", "8")
    (plain,) = answers(run(*words))
    text = plain["completions"][0]["text"]
    (never,) = answers(run(*words, "--stop", "no such text"))
    assert never == plain
    assert never["completions"][0]["finish"] == "length"
    (cut,) = answers(run(*words, "--stop", "no such text", "--stop", text[2:4]))
    assert cut["completions"][0]["text"] == text[: text.index(text[2:4])]
    assert cut["completions"][0]["finish"] == "stop"


def test_a_template_makes_a_prompt_of_each_row(
    run: Run, template: Path, labelled_file: Path, tmp_path: Path
):
    asked, solved = split(labelled_file, tmp_path, 4)
    words = ("--from", "gpt", "--template", template, "--data", asked, "--max-new-tokens", "3")
    texts = [line.split(",", 1)[1] for line in asked.read_text().splitlines()[1:]]
    found = answers(run(*words, "--json"))
    assert [answer["prompt"] for answer in found] == [f"{text}: the" for text in texts]
    assert [answer["source"] for answer in found] == [f"{asked}:{n}" for n in range(2, 6)]
    shots = answers(run(*words, "--examples", solved, "--shots", "1", "--json"))
    for text, answer in zip(texts, shots, strict=True):
        example, question = answer["prompt"].split(". ")
        assert question == f"{text}: the"
        assert example.endswith((": the wide sea", ": the farm", ": the city"))
    again = answers(run(*words, "--examples", solved, "--shots", "1", "--json", "--seed", "5"))
    assert [a["prompt"] for a in again] != [a["prompt"] for a in shots]
    many = run(*words, "--examples", solved, "--shots", "9", "--json")
    assert "examples do not fit" in many.stderr
    assert answers(many)[0]["prompt"].endswith(f". {texts[0]}: the")
    assert "--examples FILE" in error(run(*words, "--shots", "2", code=2))


def test_a_template_that_asks_for_a_missing_field(run: Run, tmp_path: Path, labelled_file: Path):
    path = tmp_path / "t.toml"
    path.write_text('input = "{{ txet }}:"\n')
    message = error(run("--from", "gpt", "--template", path, "--data", labelled_file, code=3))
    assert "txet" in message


def test_settings_of_a_recipe_give_way_to_options(run: Run, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[generate]\nmax_new_tokens = 3\nstop = "zzz"\nnum_beams = 2\n')
    words = ("--from", "gpt", "--prompt", "The", "--json", "--recipe", recipe)
    (answer,) = answers(run(*words, "--set", "num_samples=2"))
    assert len(answer["completions"]) == 2
    assert max(len(c["ids"]) for c in answer["completions"]) <= 8
    recipe.write_text("[generate]\nmax_new_token = 3\n")
    assert "max_new_tokens" in error(run(*words, code=2))


def test_a_context_with_less_room_than_asked_is_noted_once(run: Run, tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_text("The ship sails\n" * 3)
    result = run("--from", "gpt", "--prompt-file", path, "--max-new-tokens", "60", "--json",
                 "--min-new-tokens", "60")  # fmt: skip
    assert result.stderr.count(f"context of {WINDOW} tokens") == 1
    folder_ids = [len(a["completions"][0]["ids"]) for a in answers(result)]
    assert len(set(folder_ids)) == 1
    assert folder_ids[0] < WINDOW


LONG = "the ship sails over the wide sea " * 20


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--prompt", LONG], 3, ["--prompt 1 has", f"the model takes {WINDOW}", "shorten"]),
        (["--prompt", "a", "--temperature", "-1"], 2, ["temperature", "-1", "or more"]),
        (["--prompt", "a", "--top-p", "0"], 2, ["top_p", "leaves no token"]),
        (["--prompt", "a", "--top-k", "0"], 2, ["top_k", "0"]),
        (["--prompt", "a", "--num-beams", "3", "--num-samples", "5"], 2,
         ["num_samples 5 is more than num_beams 3"]),
        (["--prompt", "a", "--num-beams", "3", "--top-p", "0.9"], 2, ["does not sample"]),
        (["--prompt", "a", "--early-stopping", "soon", "--num-beams", "2"], 2,
         ["early_stopping", "soon"]),
        (["--prompt", "a", "--min-new-tokens", "9"], 2, ["min_new_tokens 9", "max_new_tokens 8"]),
        (["--prompt", "a", "--draft", "other"], 2, ["--draft other", "another vocabulary"]),
        (["--prompt", "a", "--draft", "gpt", "--num-beams", "2"], 2, ["--draft", "beam search"]),
        (["--prompt", "a", "--draft", "gpt", "--prompt-lookup", "2"], 2, ["leave one out"]),
        (["--prompt", "a", "--draft-tokens", "6"], 2, ["--draft-tokens 6", "give --draft or"]),
        (["--prompt", "a", "--prompt-lookup", "2", "--num-beams", "2"], 2, ["prompt_lookup 2"]),
        (["--prompt", "a", "--prompt-lookup", "0"], 2, ["prompt_lookup"]),
        (["--prompt", "a", "--draft", "gtp"], 3, ["'gtp'", "did you mean"]),
        (["--prompt", "a", "--stop", ""], 2, ["stop", "empty"]),
        (["--prompt", "a", "--dtype", "fp8"], 2, ["dtype", "fp8", "int8"]),
        (["--prompt", "a", "--set", "tempreture=1"], 2, ["did you mean 'temperature'"]),
        (["--prompt", "a", "--prompt-file", "p.txt"], 2, ["--prompt or --prompt-file"]),
        (["--prompt", "caf\udce9"], 2, ["--prompt 1 is not UTF-8"]),
        (["--prompt-file", "nowhere.txt"], 3, ["nowhere.txt", "no such file"]),
        (["--prompt", "a", "--shots", "2"], 2, ["--shots goes with --template"]),
        (["--template", "t.toml"], 2, ["--template needs --data"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_in_a_sentence(
    run: Run, words: list[str], code: int, says: list[str]
):
    message = error(run("--from", "gpt", *words, code=code))
    for part in says:
        assert part in message, message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', ["p.jsonl:2"]),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ["p.jsonl:2", "'prompt'"]),
        ("p.jsonl", '{"prompt": 3}\n', ["p.jsonl:1", "'prompt'"]),
        ("p.jsonl", '{"prompt": "a"}\n["b"]\n', ["p.jsonl:2"]),
        ("p.txt", "", ["p.txt", "no prompts"]),
        ("p.txt", f"a\n{LONG}\n", ["p.txt:2 has", "shorten"]),
    ],
)
def test_a_bad_row_is_named(run: Run, tmp_path: Path, name: str, content: str, says: list[str]):
    path = tmp_path / name
    path.write_text(content)
    out = tmp_path / "out.jsonl"
    message = error(run("--from", "gpt", "--prompt-file", path, "--output", out, code=3))
    for part in says:
        assert part in message, message
    assert not out.exists()


def test_models_that_write_no_text_are_refused(run: Run, tmp_path: Path, corpus_file: Path):
    place = Workspace(tmp_path / "w")
    config = TokenizeConfig(tokenizer="wordpiece", vocab_size=120, document="line", workers=1)
    tokenize(place, [str(corpus_file)], config, name="words")
    layers = {
        "model": {"hidden_size": 32, "num_heads": 2, "num_layers": 1},
        "data": DATA | {"eval_batches": 1},
        "training": TRAINING | {"max_steps": 1},
    }
    pretrain(place, resolve("bert", "nano", layers), shards_name="words", name="bert")
    for start in (place.path("run", "bert"), "subjects"):
        message = error(run("--from", start, "--prompt", "a", code=3))
        assert "bert" in message.lower() or "subjects" in message
    assert "did you mean 'gpt'" in error(run("--from", "gtp", "--prompt", "a", code=3))


def test_the_stage_answers_in_the_order_of_the_prompts(models: Workspace):
    config = build(GenerateConfig, {"max_new_tokens": 4, "batch_size": 2, "device": "cpu"})
    generation = open_generation(models, "gpt", config)
    prompts = [Prompt("the " * (n % 5), f"row {n}") for n in range(40)]
    found = list(generation.answers(prompts))
    assert [answer.prompt for answer in found] == prompts
    by_text: dict[str, set[tuple[int, ...]]] = {}
    for answer in found:
        by_text.setdefault(answer.prompt.text, set()).add(answer.completions[0].ids)
    assert [len(ids) for ids in by_text.values()] == [1] * 5


def test_what_a_folder_says_of_sampling_counts_unless_options_do(
    models: Workspace, run: Run, tmp_path: Path
):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "gpt"
    shutil.copytree(models.path("run", "gpt") / "model", folder)
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text())

    def written(said: dict[str, Any], *words: object, code: int = 0) -> tuple[list[int], str]:
        path.write_text(json.dumps({**ends, **said}))
        asked = ("--from", folder, "--prompt", "the ship", "--json", *words)
        result = run(*asked, code=code)
        ids = [] if code else answers(result)[0]["completions"][0]["ids"]
        return list(map(int, ids)), result.stderr

    greedy, _ = written({})
    drawn = {"do_sample": True, "temperature": 9.0, "top_k": 40}
    found, told = written(drawn)
    assert found != greedy
    assert "generation_config.json has temperature 9, top_k 40; options go before it" in told
    assert written(drawn, "--temperature", "0")[0] == greedy
    assert written(drawn, "--top-k", "1")[0] == greedy
    assert written(drawn, "--generation-config", "none") == (greedy, "")
    _, told = written({**drawn, "guidance_scale": 2.0}, "--num-beams", "2")
    assert "also has temperature, top_k, guidance_scale, which a search does not follow" in told
    for name, value in {"top_p": 2.0, "top_k": 1.5, "temperature": 10**400}.items():
        _, told = written({**drawn, name: value}, code=3)
        assert f"{path}: {name}: " in told
        assert f"{path}: {name}: " in written({**drawn, name: value}, "--quiet", code=3)[1]
    assert (
        f"{path}: do_sample is 'yes', not true or false" in written({"do_sample": "yes"}, code=3)[1]
    )
    # What transformers writes of a folder that says so.
    penalised = {"repetition_penalty": 1.7}
    found, _ = written(penalised)
    assert found != greedy
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = open_folder(folder).tokenizer
    ids = [*prompt.layout.before, *prompt.encode("the ship")]
    with_theirs = theirs.generate(torch.tensor([ids]), max_new_tokens=8)[0, len(ids) :].tolist()
    assert with_theirs[: len(found)] == found
    other = tmp_path / "other"
    other.mkdir()
    assert "there is no generation_config.json" in written({}, "--generation-config", other,
                                                           code=3)[1]  # fmt: skip
    (other / "generation_config.json").write_text(json.dumps(penalised))
    assert written(drawn, "--generation-config", other)[0] == found


def test_an_adapters_base_says_how_texts_are_chosen(models: Workspace, run: Run, tmp_path: Path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(models.path("run", "gpt") / "model", base)
    folder, options = open_folder(base), LoraConfig(rank=2)
    model = folder.causal_lm()
    add_lora(model, options, new=())
    Adapter(learned(model, options, folder), folder, {}, "CAUSAL_LM").write(adapter)
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.7}))
    words = ("--prompt", "the ship", "--json")
    alone, told = (run("--from", one, *words) for one in (base, adapter))
    for result in (alone, told):
        assert "generation_config.json has repetition_penalty 1.7" in result.stderr
    assert [one["completions"] for one in answers(alone)] == [
        one["completions"] for one in answers(told)
    ]


def test_a_process_ends_with_one_sentence(models: Workspace):
    """As a user runs it, from a pipe: the exit code and what is written where."""
    result = llmctl(models.root, "generate", "--from", "gpt", *FEW, stdin=f"The ship\n{LONG}\n",
                    code=3)  # fmt: skip
    assert "standard input:2 has" in one_sentence(result)


def test_weights_are_not_read_for_a_digest_that_nobody_asks_for(
    models: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "elsewhere"
    shutil.copytree(models.get("run", "gpt").folder / "model", folder)
    expected = run("--from", folder, "--prompt", "a")

    def digest(path: Path) -> str:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(base, "sha256_file", digest)
    assert run("--from", folder, "--prompt", "a").stdout == expected.stdout
    with pytest.raises(AssertionError, match="is read"):
        open_generation(models, str(folder), GenerateConfig(device="cpu")).identity()
