"""Scores of continuations against one forward pass for each, and against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl import tokenizers
from llmctl.errors import InputError
from llmctl.formats.huggingface.tensors import export_model
from llmctl.inference import scoring
from llmctl.inference.scoring import CausalScorer, Query, encode_query, truncate_context
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tokenizers import Layout, Tokenizer

VOCABULARY = 30
POSITIONS = 24
TEXT = "The ship sails over the wide sea. Waves rise and fall; the captain watches 17 stars."


def make_model(arch: str) -> CausalLM:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[arch]
    config = architecture.config(
        vocab_size=VOCABULARY, num_layers=2, hidden_size=16, num_heads=2, max_positions=POSITIONS,
        **{"initializer_range": 0.5} if arch != "nanochat" else {},
    )  # fmt: skip
    model = CausalLM(architecture.build(config)).eval()
    if arch == "nanochat":  # its blocks begin at zero, as if there were no context
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module", params=["gpt", "llama", "nanochat"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    return make_model(request.param)


@pytest.fixture(scope="module")
def gpt() -> CausalLM:
    return make_model("gpt")


@torch.no_grad()
def by_hand(model: CausalLM, context: np.ndarray, continuation: np.ndarray):
    """Log-probabilities and whether all are likeliest, one pass over one text."""
    ids = np.concatenate((context, continuation))
    hidden = model.body(torch.from_numpy(ids[:-1])[None])
    log_probs = model.logits(hidden)[0].log_softmax(-1).numpy()
    places = np.arange(len(context) - 1, len(ids) - 1)
    best = log_probs[places].argmax(-1)
    return log_probs[places, continuation], bool((best == continuation).all())


def random_queries(seed: int, count: int) -> list[Query]:
    generator = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return generator.integers(0, VOCABULARY, generator.integers(low, high))

    return [
        Query(ids(1, 10), [ids(1, 8) for _ in range(generator.integers(1, 6))])
        for _ in range(count)
    ]


def test_equals_a_pass_for_each_continuation(model: CausalLM, monkeypatch: pytest.MonkeyPatch):
    # Small blocks and batches, so that there are several of each.
    monkeypatch.setattr(scoring, "QUERIES_AHEAD", 7)
    monkeypatch.setattr(scoring, "TOKENS_ON_CPU", 64)
    monkeypatch.setattr(scoring, "ROWS_ON_CPU", 5)
    queries = random_queries(0, 20)
    answers = list(CausalScorer(model).score(iter(queries), greedy=True))
    assert len(answers) == len(queries)
    for query, answer in zip(queries, answers, strict=True):
        assert answer.cut == 0
        for continuation, score in zip(query.continuations, answer.scores, strict=True):
            expected, likeliest = by_hand(model, query.context, continuation)
            # fp32 sums in another order: about 1e-6 of values up to 30.
            assert score.log_probs == pytest.approx(expected, abs=2e-5)
            assert score.total == pytest.approx(expected.sum(), abs=1e-4)
            assert score.greedy is likeliest


def test_greedy_is_what_greedy_decoding_writes(gpt: CausalLM):
    context = np.array([3, 1, 4])
    ids = context.tolist()
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(gpt.logits(gpt.body(torch.tensor([ids])))[0, -1].argmax()))
    written = np.array(ids[3:])
    other = written.copy()
    other[-1] = (other[-1] + 1) % VOCABULARY
    (answer,) = CausalScorer(gpt).score(
        [Query(context, [written, other, written[:2]])], greedy=True
    )
    assert [score.greedy for score in answer.scores] == [True, False, True]
    (unasked,) = CausalScorer(gpt).score([Query(context, [written])])
    assert unasked.scores[0].greedy is None


@pytest.mark.reference
def test_equals_the_loss_of_transformers(gpt: CausalLM):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=2, n_embd=16, n_head=2, n_positions=POSITIONS
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = theirs.load_state_dict(
        export_model(gpt.state_dict(), "causal_lm", ARCHITECTURES["gpt"], gpt.body.config),
        strict=False,
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    theirs.tie_weights()
    generator = np.random.default_rng(5)
    for _ in range(5):
        ids = generator.integers(0, VOCABULARY, 14)
        labels = torch.from_numpy(ids.copy())
        labels[:6] = -100
        with torch.no_grad():
            loss = theirs(torch.from_numpy(ids)[None], labels=labels[None]).loss
        (answer,) = CausalScorer(gpt).score([Query(ids[:6], [ids[6:]])])
        assert -answer.scores[0].log_probs.mean() == pytest.approx(float(loss), rel=1e-5)


def test_logits_are_made_for_scored_places_only(gpt: CausalLM, monkeypatch: pytest.MonkeyPatch):
    made = []
    logits = gpt.logits
    monkeypatch.setattr(gpt, "logits", lambda x: (made.append(len(x)), logits(x))[1])
    # Ten labels of one token behind a context of twelve: one place.
    labels = [np.array([n]) for n in range(10)]
    list(CausalScorer(gpt).score([Query(np.arange(12), labels)]))
    # Two of three tokens: the shared place, and two more of each.
    list(CausalScorer(gpt).score([Query(np.arange(5), [np.arange(3), np.arange(3, 6)])]))
    assert made == [1, 5]


def test_a_context_is_read_once_for_all_continuations(
    gpt: CausalLM, monkeypatch: pytest.MonkeyPatch
):
    shapes = []
    gpt.body.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    query = Query(np.arange(10), [np.arange(4), np.arange(4, 8), np.arange(8, 12)])
    list(CausalScorer(gpt).score([query]))
    gpt.body._forward_pre_hooks.clear()
    assert shapes == [(1, 10 + 3 * 3)]


def test_long_contexts_lose_their_left(gpt: CausalLM):
    generator = np.random.default_rng(1)
    context = generator.integers(0, VOCABULARY, 40)
    continuations = [generator.integers(0, VOCABULARY, n) for n in (2, 6, 1)]
    (answer,) = CausalScorer(gpt).score([Query(context, continuations)])
    # Of the longest, five are read: room for 19 of the context.
    assert answer.cut == 40 - (POSITIONS - 5)
    for continuation, score in zip(continuations, answer.scores, strict=True):
        expected, _ = by_hand(gpt, context[answer.cut :], continuation)
        assert score.log_probs == pytest.approx(expected, abs=2e-5)
    (shorter,) = CausalScorer(gpt, longest=10).score([Query(context, continuations)])
    assert shorter.cut == 40 - (10 - 5)


def test_a_continuation_that_is_too_long_is_refused(gpt: CausalLM):
    query = Query(np.array([1]), [np.zeros(POSITIONS + 1, dtype=np.int64)], "x.jsonl:3")
    with pytest.raises(InputError, match=rf"x.jsonl:3: .*{POSITIONS + 1} tokens.*shorten"):
        list(CausalScorer(gpt).score([query]))
    # One that just fits, behind one token.
    (answer,) = CausalScorer(gpt).score([Query(np.array([1, 2]), [np.zeros(POSITIONS, np.int64)])])
    assert answer.cut == 1


@given(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_fitted_leaves_as_much_context_as_there_is_room_for(context: int, lengths: list[int]):
    query = Query(np.arange(context), [np.zeros(n, dtype=np.int64) for n in lengths])
    short, cut = truncate_context(query, 20)
    read = len(short.context) + max(lengths) - 1
    assert read <= 20
    assert cut == 0 or read == 20
    assert short.context.tolist() == list(range(cut, context))
    assert truncate_context(query, None) == (query, 0)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_neighbours_do_not_matter(seed: int):
    model = make_model("llama")
    queries = random_queries(seed, 5)
    together = list(CausalScorer(model).score(queries))
    for query, answer in zip(queries, together, strict=True):
        (alone,) = CausalScorer(model).score([query])
        for a, b in zip(alone.scores, answer.scores, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=2e-5)


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """With a piece for each byte, with merges, and with sentencepiece's sign for a space."""
    kind = {"bytes": "bpe"}.get(request.param, request.param)
    size = {"bytes": 270, "bpe": 330, "unigram": 60}[request.param]
    path = tmp_path_factory.mktemp(request.param)
    tokenizers.learn(kind, [TEXT * 3], size, exact=False).save(path)
    return tokenizers.load(path)


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("The ship", " sails over"),
        ("The ship ", "sails over"),
        ("The sh", "ip sails"),
        ("", "The ship"),
        ("The ship\n", "the sea"),
    ],
)
def test_texts_are_encoded_as_one(tokenizer: Tokenizer, context: str, continuation: str):
    query = encode_query(tokenizer, context, [continuation])
    ids = [*query.context, *query.continuations[0]]
    assert ids == [tokenizer.special["bos"], *tokenizer.encode(context + continuation)]
    assert len(query.continuations[0])
    # All of the continuation is scored, and of the context what a piece takes with it at most.
    scored = tokenizer.decode(query.continuations[0].tolist())
    assert scored.strip().endswith(continuation.strip())
    before = tokenizer.decode(query.context[1:].tolist())
    assert context.startswith(before) or before.strip() == context.strip()


def test_choices_share_what_is_alike_before_them():
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    from llmctl.tokenizers.fast import FastTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, "ab", "<s>"])}
    rust = RustTokenizer(models.BPE(vocabulary, [("a", "b")]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<s>"])
    tokenizer = FastTokenizer("bpe", rust).for_decoder()
    # "xa" + "b" makes the piece "ab", which reaches back into the context.
    query = encode_query(tokenizer, "xa", ["b", "c"])
    shown = [
        [tokenizer.id_to_token(i) for i in ids] for ids in (query.context, *query.continuations)
    ]
    assert shown == [["<s>", "x"], ["ab"], ["a", "c"]]


def test_what_has_no_tokens_or_no_start_is_refused(tmp_path: Path):
    tokenizers.learn("bpe", [TEXT * 3], 270, exact=False).save(tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    with pytest.raises(InputError, match=r"x:1.*no tokens"):
        encode_query(tokenizer, "The ship", [" sails", ""], source="x:1")
    # A tokenizer that puts nothing before a text: only what has no context needs a start.
    tokenizer.__dict__["_own_layout"] = Layout()
    tokens = tokenizer.encode("The ship sails")
    query = encode_query(tokenizer, "The ship", [" sails"])
    assert [*query.context, *query.continuations[0]] == tokens
    assert encode_query(tokenizer, "", ["The"]).context.tolist() == [tokenizer.special["bos"]]
    tokenizer.special = {}
    with pytest.raises(InputError, match="no token for a document's start"):
        encode_query(tokenizer, "", ["The ship"])
