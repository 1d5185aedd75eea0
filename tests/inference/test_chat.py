"""Chat: the cache changes nothing, old turns make room, an answer can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.config import build
from llmctl.errors import ConfigError, InputError
from llmctl.formats.open import open_folder
from llmctl.inference.chat import ChatAnswer, ChatSession
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import GenerationConfig
from llmctl.inference.decoding.rows import SequenceState
from llmctl.inference.decoding.sampling import write
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.sequences import KV_BLOCK
from llmctl.stages.chat import ChatConfig, open_chat
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.chat import CHATML
from llmctl.tokenizers.chat_template import ChatTemplate
from llmctl.workspace.artefacts import Workspace

TOKENIZER = learn_bpe(
    ["the ship sails over the wide sea", "user assistant system", "hens lay eggs"] * 3,
    320,
    exact=False,
)
V = TOKENIZER.vocab_size


def decoder(name: str = "llama", *, context: int = 160) -> CausalDecoder:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    config = architecture.config(
        vocab_size=V, num_layers=2, hidden_size=32, num_heads=2, max_positions=context,
        initializer_range=0.2,
    )  # fmt: skip
    model = CausalLM(architecture.build(config))
    with torch.no_grad():  # nanochat's blocks begin as the identity
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return CausalDecoder(model)


def session(name: str = "llama", *, context: int = 160, **config: Any) -> ChatSession:
    options = GenerationConfig(**{"max_new_tokens": 12, **config})
    template = ChatTemplate(CHATML, TOKENIZER)
    return ChatSession(decoder(name, context=context), TOKENIZER, template, options)


@pytest.mark.parametrize("name", ["gpt", "llama", "nanochat"])
@pytest.mark.parametrize("config", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_conversation_is_what_it_is_without_a_cache(name: str, config: dict[str, Any]):
    """Each answer is that of a model that reads the whole conversation at once, by the decoder's
    other way of reading and writing."""
    talk = session(name, context=400, **config)
    before: ChatAnswer | None = None
    for number, text in enumerate(["the ship", "hens\n lay", "sea"]):
        prompt = talk._template.encode_prompt([*talk.turns, {"role": "user", "content": text}])
        answer = talk.answer(text)
        row = SequenceState.begin(talk._rules, number, 0, prompt, 12)
        (row,) = write(decoder(name, context=400), [row], talk._rules)
        assert (answer.text, answer.finish, answer.new_tokens) == (
            row.writer.text, row.finish, row.new,
        )  # fmt: skip
        assert answer.prompt_tokens == len(prompt)
        # Whole blocks are kept. Random weights write tokens that the answer's text is not encoded
        # as, so that of what was written nothing may be.
        kept = 0 if before is None else before.prompt_tokens // KV_BLOCK * KV_BLOCK
        assert 0 < answer.read_tokens <= answer.prompt_tokens - kept
        before = answer
    assert before is not None
    assert before.read_tokens < before.prompt_tokens
    assert [turn["content"] for turn in talk.turns[::2]] == ["the ship", "hens\n lay", "sea"]


def test_what_is_kept_changes_no_bit():
    """The engine reads a text in the same pieces, whether it was read before or not."""
    talks = [session(context=400, temperature=1.0, max_new_tokens=40) for _ in range(2)]
    for text in ("the ship", "hens lay eggs", "sea"):
        found = []
        for talk in talks:
            answer = talk.answer(text)
            found.append((answer.text, answer.read_tokens))
            talks[1]._engine.scheduler.prefixes.clear()
        assert found[0][0] == found[1][0]
    assert found[0][1] < found[1][1] == answer.prompt_tokens


def test_text_is_told_as_it_comes():
    told: list[str] = []
    answer = session().answer("the ship", tell=told.append)
    assert len(told) > 1
    assert "".join(told) == answer.text


def test_an_answer_can_be_stopped_and_the_conversation_goes_on():
    told: list[str] = []
    talk, whole = session(), session().answer("the ship")
    answer = talk.answer("the ship", tell=told.append, should_stop=lambda: len(told) >= 3)
    assert answer.finish == "stopped"
    assert whole.finish in ("length", "eos")
    assert answer.new_tokens < whole.new_tokens
    assert whole.text.startswith(answer.text)
    assert answer.text == "".join(told)
    assert talk.turns[-1]["content"] == answer.text
    assert talk.answer("hens").finish != "stopped"


def test_a_new_conversation_is_like_the_first():
    talk = session()
    talk.set_system("user")
    first = talk.answer("the ship")
    talk.answer("hens")
    talk.reset()
    again = talk.answer("the ship")
    assert again.text == first.text
    assert again.read_tokens == (again.prompt_tokens - 1) % KV_BLOCK + 1
    talk.set_system(None)
    talk.reset()
    assert talk.answer("the ship").prompt_tokens < first.prompt_tokens


def test_old_turns_make_room_and_the_system_turn_stays():
    talk = session(context=120)
    talk.set_system("the wide sea")
    left_out = 0
    for number in range(12):
        answer = talk.answer(f"hens {number}")
        left_out += answer.left_out
        assert answer.prompt_tokens + answer.new_tokens <= 120
        assert answer.new_tokens > 0
        assert answer.left_out % 2 == 0
    assert left_out
    assert len(talk.turns) == 2 * 12 - left_out
    assert talk.turns[0]["role"] == "user"
    # The prompt is what it would be had the rest never been said.
    system = {"role": "system", "content": "the wide sea"}
    expected = talk._template.encode_prompt([system, *talk.turns[:-1]])
    assert len(expected) == answer.prompt_tokens


def test_what_is_too_long_is_refused_and_forgotten():
    talk = session(context=60)
    talk.answer("hens")
    before = list(talk.turns)
    with pytest.raises(InputError, match="the model reads 60; say less"):
        talk.answer("the ship sails " * 30)
    assert talk.turns == before
    with pytest.raises(InputError, match="system turn does not fit the model's 60 tokens"):
        talk.set_system("the ship sails " * 30)
    assert talk.answer("hens").text is not None


def test_a_template_without_system_turns_says_so():
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + CHATML
    )
    template = ChatTemplate(source, TOKENIZER)
    talk = ChatSession(decoder(), TOKENIZER, template, GenerationConfig(max_new_tokens=4))
    with pytest.raises(InputError, match="no system turns"):
        talk.set_system("user")
    assert talk.answer("hens").new_tokens


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_model_that_learned_to_answer_answers(decoder_workspace: Path, dtype: Any):
    config = ChatConfig(temperature=0, device="cpu", dtype=dtype)
    talk = open_chat(Workspace(decoder_workspace), "talker", config)
    asked = {
        "Where does the ship sail?": "Over the wide sea.",
        "What does the farmer feed?": "The cows at dawn.",
    }
    for number, (question, known) in enumerate(asked.items()):
        answer = talk.answer(question if number else f"{question} (3)")
        assert answer.text == known
        assert answer.finish == "eos"


@pytest.mark.parametrize(
    ("draft", "fields"), [("tiny-gpt", {"draft_tokens": 3}), (None, {"prompt_lookup": 3})]
)
def test_guesses_change_no_answer(
    decoder_workspace: Path, draft: str | None, fields: dict[str, Any]
):
    told = []
    for ahead, more in ((None, {}), (draft, fields)):
        config = ChatConfig(temperature=0, device="cpu", max_new_tokens=40, **more)
        talk = open_chat(Workspace(decoder_workspace), "talker", config, draft=ahead)
        told.append([talk.answer(text) for text in ("Where do hens live? (1)", "The ship, the sh")])
    assert [one.text for one in told[0]] == [one.text for one in told[1]]
    assert sum(one.drafted for one in told[1]) > 0 == sum(one.drafted for one in told[0])


@pytest.mark.parametrize("run", ["tiny-llama", "tiny-gpt"])
def test_a_model_that_has_not_is_refused(decoder_workspace: Path, run: str):
    with pytest.raises(InputError, match=f"{run} has not learned to answer; finetune it first"):
        open_chat(Workspace(decoder_workspace), run, ChatConfig())


def test_others_models_answer_if_they_have_a_template(decoder_workspace: Path, tmp_path: Path):
    import json

    folder = decoder_workspace / "runs" / "tiny-llama" / "model"
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    theirs = {name: value for name, value in fields.items() if not name.startswith("llmctl")}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    assert open_folder(tmp_path).tokenizer.chat_template is None
    place = Workspace(decoder_workspace)
    with pytest.raises(InputError, match="has not learned to answer"):
        open_chat(place, str(tmp_path), ChatConfig())
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    talk = open_chat(place, str(tmp_path), ChatConfig(max_new_tokens=3), system="user")
    assert talk.answer("the ship").new_tokens


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_beams": 4}, "num_beams 4: a chat writes one answer"),
        ({"num_samples": 2}, "num_samples 2: a chat"),
        ({"penalty_alpha": 0.6}, r"penalty_alpha 0\.6: a chat"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_what_a_chat_can_not_be_told(values: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        build(ChatConfig, values)


def test_answers_keep_to_a_form():
    pytest.importorskip("llguidance")
    template = ChatTemplate(CHATML, TOKENIZER)
    options = GenerationConfig(max_new_tokens=12)
    talk = ChatSession(
        decoder(), TOKENIZER, template, options, form=("choice", ["the ship", "hens"])
    )
    for said in ("sea", "eggs"):
        answer = talk.answer(said)
        assert answer.text in ("the ship", "hens")
        assert answer.finish in ("stop", "eos")
    with pytest.raises(InputError, match="can't be used"):
        ChatSession(decoder(), TOKENIZER, template, options, form=("regex", "(unclosed"))
