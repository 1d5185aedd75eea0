"""Documents to ids: the same for any grouping and any number of workers, sentences in place."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.data.shards import encoding
from llmctl.data.shards.encoding import EncodedBatch, encode_documents, encode_in_order
from llmctl.data.text.sentences import sentence_starts
from llmctl.errors import ResourceError
from llmctl.tokenizers import Tokenizer, cuts
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llmctl.tokenizers.sentencepiece_training import learn_unigram
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, build_wordpiece

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = [
    *WORDPIECE_SPECIAL,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    ".",
    ",",
    "the",
    "河",
    "。",
]

TEXTS = st.lists(
    st.lists(
        st.sampled_from(
            ["The ship sails.", "Why?", " ", "\n\n", "it is 3 p.m. now", "河。河", "é."]
        )
        | st.text(max_size=8),
        max_size=8,
    ).map(" ".join),
    max_size=8,
)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return build_wordpiece(PIECES, cased=False)


def unpack(batch: EncodedBatch) -> list[tuple[list[int], list[int]]]:
    return [(tokens.tolist(), starts.tolist()) for tokens, starts in batch.documents()]


@given(texts=TEXTS.filter(len))
def test_a_document_is_its_sentences_end_to_end(wordpiece: Tokenizer, texts: list[str]):
    for text, (tokens, starts) in zip(
        texts, unpack(encode_documents(wordpiece, texts)), strict=True
    ):
        cuts = [*sentence_starts(text), len(text)]
        sentences = [wordpiece.encode(text[a:b]) for a, b in pairwise(cuts)]
        whole = [sentence for sentence in sentences if sentence]
        assert tokens == [token for sentence in whole for token in sentence]
        assert starts == [0, *np.cumsum([len(s) for s in whole])[:-1].tolist()] * bool(whole)


@given(texts=TEXTS.filter(len), cut=st.integers(0, 8))
def test_grouping_changes_nothing(wordpiece: Tokenizer, texts: list[str], cut: int):
    whole = encode_documents(wordpiece, texts)
    parts = [encode_documents(wordpiece, part) for part in (texts[:cut], texts[cut:]) if part]
    assert unpack(whole) == [document for part in parts for document in unpack(part)]
    assert whole.words == sum(part.words for part in parts)
    assert whole.unknown == sum(part.unknown for part in parts)


def test_a_long_sentence_is_not_encoded_at_once(
    wordpiece: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """What the encoder says of a text takes far more memory than its ids."""
    text = "The ship. " + "The the river " * 80_000 + ". The end."
    expected = wordpiece.encode(text)
    sizes = []

    def spied(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        sizes.append(sum(map(len, texts)))
        return encode(texts)

    encode = wordpiece.encode_batch
    monkeypatch.setattr(wordpiece, "encode_batch", spied)
    monkeypatch.setattr(encoding, "TOGETHER", cuts.STRETCH)
    [(tokens, starts)] = unpack(encode_documents(wordpiece, [text]))
    assert tokens == expected
    assert len(starts) == len(sentence_starts(text)) > 1
    assert sum(sizes) == len(text)
    assert max(sizes) <= 2 * cuts.STRETCH


def test_a_worked_example(wordpiece: Tokenizer):
    encoded = encode_documents(wordpiece, ["The a. The É 7!", "", "河。河", "\x00"])
    the, a, e, stop, unknown, river, full = (
        PIECES.index(piece) for piece in ("the", "a", "e", ".", "[UNK]", "河", "。")
    )
    assert unpack(encoded) == [
        ([the, a, stop, the, e, unknown, unknown], [0, 3]),
        ([], []),
        ([river, full, river], [0, 2]),
        ([], []),
    ]
    assert encoded.unknown == 2
    assert encoded.tokens.dtype == np.uint16


@given(text=st.text(max_size=60) | TEXTS.map("".join))
def test_byte_level_pieces_lose_nothing_at_sentence_starts(bpe: Tokenizer, text: str):
    [(tokens, starts)] = unpack(encode_documents(bpe, [text]))
    assert bpe.decode(tokens) == text
    assert all(0 <= start < len(tokens) for start in starts)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return learn_bpe(["The ship sails over the sea. The sea is wide. " * 20], 280)


def test_byte_level_sentences_begin_with_their_space(bpe: Tokenizer):
    """As the middle of a text does, so a word has one id in both places."""
    text = "The ship sails. The sea is wide."
    [(tokens, starts)] = unpack(encode_documents(bpe, [text]))
    assert len(starts) == 2
    assert tokens == bpe.encode(text)
    assert bpe.decode(tokens[starts[1] :]) == " The sea is wide."


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return learn_unigram(
        ["The ship sails. The sea is wide.", "河水流。船在河上！"] * 50, 60, exact=False
    )


@pytest.fixture(scope="module")
def sentencepiece_model(unigram: Tokenizer) -> Tokenizer:
    """Somebody's .model, which normalises by itself."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The ship sails. The sea is wide.", "河水流。船在河上！"] * 50),
        model_writer=written, model_type="unigram", vocab_size=50, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return SentencePieceTokenizer(written.getvalue())


@pytest.mark.parametrize("name", ["bpe", "unigram", "sentencepiece_model", "wordpiece"])
@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("The ship sails. The sea is wide.", 2),
        ("河。河河！河。", 3),
        ("The ship sails.\n\nThe sea.  The ship.", 3),
        ("河。 ship sails. 河", 3),
    ],
)
def test_a_document_has_the_ids_of_its_whole_text(
    name: str, text: str, sentences: int, request: pytest.FixtureRequest
):
    """No piece of its own at the start of a sentence, and every sentence found."""
    tokenizer: Tokenizer = request.getfixturevalue(name)
    [(tokens, starts)] = unpack(encode_documents(tokenizer, [text]))
    assert tokens == tokenizer.encode(text)
    assert len(starts) == sentences
    for number, start in enumerate(starts):
        begin = sentence_starts(text)[number]
        rest = tokenizer.decode(tokens[start:]).replace(" ", "").replace("\n", "")
        wanted = text[begin:].replace(" ", "").replace("\n", "")
        assert rest.lower().startswith(wanted[0].lower())


@given(texts=TEXTS.filter(len))
def test_documents_of_pieces_that_know_text_starts_are_encoded_whole(
    unigram: Tokenizer, sentencepiece_model: Tokenizer, texts: list[str]
):
    for tokenizer in (unigram, sentencepiece_model):
        found = unpack(encode_documents(tokenizer, texts))
        for text, (tokens, starts) in zip(texts, found, strict=True):
            assert tokens == tokenizer.encode(text)
            assert starts[:1] == [0] * bool(tokens)
            assert all(a < b for a, b in pairwise([*starts, len(tokens)]))


ORPHANS = """
import multiprocessing, os, signal, sys
from pathlib import Path
from llmctl.data.shards import encoding
from llmctl.data.shards.encoding import encode_in_order
if __name__ == "__main__":
    results = encode_in_order((["The sea."] for _ in range(100)), Path(sys.argv[1]), 2)
    next(results)
    pids = [child.pid for child in multiprocessing.active_children()]
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_with_a_killed_parent(wordpiece: Tokenizer, tmp_path: Path):
    wordpiece.save(tmp_path)
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    done = subprocess.run(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_killed_worker_is_a_lack_of_memory(wordpiece: Tokenizer, tmp_path: Path):
    wordpiece.save(tmp_path)
    results = encode_in_order((["The sea."] for _ in range(1000)), tmp_path, 2)
    next(results)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"worker process was killed.*--workers"):
        list(results)


def test_workers_give_the_same_in_the_same_order(
    wordpiece: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wordpiece.save(tmp_path)
    batches = [
        [f"The {letter * size}. Why {letter}?" for letter in LETTERS] for size in range(1, 12)
    ]
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    results = {n: list(encode_in_order(batches, tmp_path, n)) for n in (1, 2)}
    assert os.environ["RAYON_NUM_THREADS"] == "7"
    for one, two, batch in zip(results[1], results[2], batches, strict=True):
        assert len(one.token_counts) == len(batch)
        assert unpack(one) == unpack(two)
        assert unpack(one) == unpack(encode_documents(wordpiece, batch))
        assert (one.words, one.unknown) == (two.words, two.unknown)
    assert sum(batch.words for batch in results[1]) == 4 * len(LETTERS) * len(batches)


def hides_from_ctrl_c(pid: int | None) -> bool:
    """Whether SIGINT was kept from a process from its start on, its imports included."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    blocked = next(line for line in status.read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) & 1 << signal.SIGINT - 1)


def test_workers_take_no_more_batches_than_they_can_hold(
    wordpiece: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    wordpiece.save(tmp_path)
    taken = 0

    def count() -> list[str]:
        nonlocal taken
        taken += 1
        return ["The sea."]

    results = encode_in_order((count() for _ in range(100)), tmp_path, 2)
    next(results)
    assert taken <= 4
    for worker in multiprocessing.active_children():
        assert hides_from_ctrl_c(worker.pid)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    results.close()  # type: ignore[attr-defined]
    assert "RAYON_NUM_THREADS" not in os.environ
