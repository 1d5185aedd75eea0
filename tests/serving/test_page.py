"""The page in a real browser: by keyboard, on a phone, in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.chromium import CHROMIUM, Browser
from tests.serving.test_server import QUESTION, post

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def chosen(name: str) -> str:
    return f'document.getElementById("{name}")'


def test_a_conversation_by_keyboard(browser: Browser, talker: httpx.Client):
    """It streams, its tokens have alternatives, one of which is gone on from, and it is kept."""
    browser.open(str(talker.base_url))
    browser.wait(f"{chosen('model')}.options.length === 2")
    # What is in force where nothing is said stands there.
    hints = [f"{chosen(field)}.placeholder" for field in ("temperature", "top_p")]
    assert [browser.ask(hint) for hint in hints] == ["0.7", "0.9"]
    for field, value in {"temperature": "0", "top_p": "1", "max_tokens": "12"}.items():
        browser.ask(f"{chosen(field)}.value = '{value}', null")
    assert browser.ask("document.activeElement.id") == "say"
    browser.type(QUESTION)
    browser.press("Enter")
    finished = f"{chosen('send')}.textContent === 'Send' && document.querySelector('.note')"
    browser.wait(finished)
    said = "document.querySelector('article.assistant > div').textContent"
    assert browser.ask(said) == "Over the wide sea."
    # Each token's share is the one that the server gives.
    asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    found = post(talker, "/v1/chat/completions", **asked, logprobs=True, top_logprobs=5)
    tokens = found["choices"][0]["logprobs"]["content"]
    kept = f"JSON.stringify({chosen('talk')} && talk.turns[1].tokens)"
    shown = json.loads(browser.ask(kept))
    expected = [one["logprob"] for one in tokens]
    assert [one["logprob"] for one in shown] == pytest.approx(expected, abs=1e-6)
    # From an alternative of the first token the answer goes on otherwise.
    browser.ask("document.querySelector('.token').focus()")
    browser.press("Enter")
    browser.wait(f"{chosen('others')}.open")
    others = (
        "[...document.querySelectorAll('#others code')].map((one) => JSON.parse(one.textContent))"
    )
    assert browser.ask(others) == [one["token"] for one in tokens[0]["top_logprobs"]]
    browser.press("Tab")
    browser.press("Enter")
    browser.wait(f"!{chosen('others')}.open && {finished}")
    assert browser.ask(said).startswith(tokens[0]["top_logprobs"][1]["token"])
    # It is there again when the page is.
    before = browser.ask(said)
    browser.open(str(talker.base_url))
    browser.wait(f"{chosen('list')}.children.length === 1")
    browser.ask("document.querySelector('#list button').click()")
    assert browser.ask(said) == before
    assert browser.complaints == []


def test_classes_with_what_decided_on_a_phone_in_the_dark(
    browser: Browser, judges: httpx.Client, tmp_path: Path
):
    browser.resize(390, 800, mobile=True)
    browser.dark()
    browser.open(str(judges.base_url))
    browser.wait(f"{chosen('tab_chat')}.getAttribute('aria-selected') === 'true'")
    browser.ask(f"{chosen('tab_chat')}.focus()")
    browser.press("ArrowRight")
    assert browser.ask("document.activeElement.id") == "tab_classify"
    browser.wait(f"{chosen('model')}.value === 'subjects'")
    browser.ask(f"{chosen('text')}.focus()")
    text = "the ship 😀 sails"
    browser.type(text)
    browser.press("Enter")
    browser.wait("document.querySelector('.weighed')")
    assert browser.ask("document.querySelector('.weighed').textContent") == text
    found = post(judges, "/explain", input=text)
    marks = "[...document.querySelectorAll('.weighed mark')].map((one) => one.title)"
    assert browser.ask(marks) == [f"{word['weight']:.3f}" for word in found["words"]]
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    ground = "getComputedStyle(document.body).backgroundColor"
    assert browser.ask(ground) == "rgb(22, 22, 24)"
    picture = tmp_path / "page.png"
    browser.picture(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    browser.ask(f"{chosen('tab_classify')}.focus()")
    browser.press("ArrowRight")
    browser.ask(f"{chosen('texts')}.value = 'a', {chosen('query')}.value = 'b', null")
    browser.ask(f"{chosen('find')}.requestSubmit()")
    assert "None of the models" in browser.ask(f"{chosen('found')}.textContent")
    assert browser.complaints == []


def test_what_is_nearest_is_found_first(browser: Browser, embedder: Any):
    client, _ = embedder
    browser.open(str(client.base_url))
    browser.wait(f"{chosen('tab_search')} && cards.length")
    browser.ask("open_tab('search')")
    texts = ["the ship sails", "hens lay eggs", "the tram stops"]
    browser.ask(f"{chosen('texts')}.value = {json.dumps(chr(10).join(texts))}, null")
    browser.ask(f"{chosen('query')}.value = 'hens lay', null")
    browser.ask(f"{chosen('find')}.requestSubmit()")
    browser.wait("document.querySelectorAll('#found .score').length === 3")
    found = post(client, "/rerank", query="hens lay", documents=texts)["results"]
    shown = browser.ask("[...document.querySelectorAll('#found .score')].map((s) => s.textContent)")
    assert [float(one) for one in shown] == pytest.approx(
        [one["relevance_score"] for one in found], abs=1e-3
    )
