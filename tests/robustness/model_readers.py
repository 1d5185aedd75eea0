"""Readers of tokenizers, chat templates and model folders."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece  # noqa: F401  # imported once, before the children are forked
import torch

from llmctl import tokenizers
from llmctl.data.tables.labelled import Example
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.ngram.folder import NgramFormat
from llmctl.formats.open import open_any_model
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.seq2seq import Seq2SeqShape, attach
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.smoothing import NgramConfig, train
from llmctl.stages.generate import open_generation
from llmctl.stages.predict import predict
from llmctl.tasks.generation import GenerateConfig, Prompt
from llmctl.tasks.masked_lm.predict import Filling
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat import CHATML
from llmctl.tokenizers.chat_template import ChatTemplate
from llmctl.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llmctl.workspace.artefacts import Workspace
from tests.robustness.children import Reader

CORPUS = [
    "The ship sails over the wide sea and the waves rise and fall.",
    "Hens lay eggs in the barn, the wheat grows tall; the farmer feeds the cows at dawn.",
    "The baker opens the shop early, and the tram stops at the square. 東京 äöü 12345",
] * 4  # fmt: skip
SAMPLE = ["The ship sails.", "", "  two  spaces\n\tand lines ", "東京 äöü 🙂 e\u0301", "x" * 300]
TALK = [
    {"role": "system", "content": "Answer."}, {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "There."},
]  # fmt: skip


# Tokenizers


def learned(kind: str, **options: Any) -> Tokenizer:
    """A small tokenizer."""
    size = None if kind == "characters" else 300 if kind != "wordpiece" else 120
    return tokenizers.learn(kind, CORPUS, size, exact=False, **options)


def _saved(kind: str) -> Callable[[Path], None]:
    return lambda folder: learned(kind).save(folder / "tokenizer")


def _used(folder: Path) -> tuple[Tokenizer, list[list[int]], Tokenizer]:
    """A tokenizer, what it makes of some texts, and the tokenizer saved and loaded again."""
    tokenizer = tokenizers.load(folder / "tokenizer")
    ids = [tokenizer.encode(text) for text in SAMPLE]
    flat, _ = tokenizer.encode_batch(SAMPLE)
    for encoded in (ids[0], flat.tolist(), list(range(tokenizer.vocab_size))):
        tokenizer.decode(encoded)
        tokenizer.decode_bytes(encoded)
    tokenizer.encode_offsets(SAMPLE[2])
    tokenizer.encode("<|endoftext|> [MASK]", allow_special=True)
    _ = tokenizer.token_bytes, tokenizer.continuation, tokenizer.ordinary, tokenizer.boundaries
    if tokenizer.chat_template is not None:
        ChatTemplate(tokenizer.chat_template, tokenizer).encode(TALK)
    tokenizer.save(folder / "again")
    return tokenizer, [*ids, flat.tolist()], tokenizers.load(folder / "again")


def _sound_tokenizer(found: tuple[Tokenizer, list[list[int]], Tokenizer]) -> None:
    tokenizer, encoded, again = found
    size = tokenizer.vocab_size
    assert all(0 <= number < size for ids in encoded for number in ids), "ids beyond the vocabulary"
    assert all(0 <= number < size for number in tokenizer.special.values()), "special ids beyond it"
    assert again.vocab_size == size, "saved and loaded, it has another size"
    assert again.digest() == tokenizer.digest(), "saved and loaded, it is another"
    kept = [again.encode(text) for text in SAMPLE]
    assert kept == encoded[: len(kept)], "saved and loaded, it gives other ids"


def _tokenizer_reader(what: str, make: Callable[[Path], None], targets: dict[str, str]) -> Reader:
    named = {f"tokenizer/{name}": form for name, form in targets.items()}
    return Reader(f"tokenizer: {what}", make, named, _used, _sound_tokenizer)


def _vocabulary(folder: Path) -> None:
    made = learned("wordpiece")
    (folder / "tokenizer").mkdir()
    pieces = [made.id_to_token(number) for number in range(made.vocab_size)]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def _merges(folder: Path) -> None:
    made = learned("bpe")
    made.save(folder / "made")
    model = json.loads((folder / "made" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {
        str(len(model["vocab"])): {"content": "<|new|>", "special": True}}}  # fmt: skip
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def _ranks(folder: Path) -> None:
    pieces = [bytes([number]) for number in range(256)] + [b"th", b"the", b" the", b"sh", b"ship"]
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "own.tiktoken").write_text("\n".join(lines) + "\n")


def _sentencepiece(folder: Path) -> None:
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=120, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    SentencePieceTokenizer(model.getvalue()).save(folder / "tokenizer")


def _companions(folder: Path) -> None:
    learned("bpe").save(folder / "tokenizer")
    token = {"content": "<|endoftext|>", "lstrip": False, "special": True}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": token, "bos_token": "<|endoftext|>", "pad_token": None})
    )
    (folder / "tokenizer" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [0, 1], "bos_token_id": 0, "pad_token_id": 0})
    )
    (folder / "tokenizer" / "chat_template.jinja").write_text(CHATML)


def _chat_template(folder: Path) -> None:
    learned("bpe").save(folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").write_text(CHATML)


COMPANIONS = {
    "tokenizer_config.json": "json",
    "special_tokens_map.json": "json",
    "generation_config.json": "json",
}
TOKENIZERS = [
    *(
        _tokenizer_reader(f"tokenizer.json, {kind}", _saved(kind), {"tokenizer.json": "json"})
        for kind in ("wordpiece", "bpe", "unigram", "sentencepiece-bpe", "characters")
    ),
    _tokenizer_reader(
        "vocab.txt", _vocabulary, {"vocab.txt": "text", "tokenizer_config.json": "json"}
    ),
    _tokenizer_reader(
        "vocab.json and merges.txt",
        _merges,
        {"vocab.json": "json", "merges.txt": "text", "tokenizer_config.json": "json"},
    ),
    _tokenizer_reader("ranks", _ranks, {"own.tiktoken": "ranks"}),
    _tokenizer_reader("a sentencepiece model", _sentencepiece, {"spiece.model": "binary"}),
    _tokenizer_reader("the files beside it", _companions, COMPANIONS),
    _tokenizer_reader("chat templates", _chat_template, {"chat_template.jinja": "text"}),
]


# Models


def _model(folder: Path, arch: str, kind: str, **options: Any) -> None:
    """A model folder with random weights."""
    architecture = ARCHITECTURES[arch]
    encoder = architecture.kind == "encoder"
    tokenizer = learned("wordpiece" if encoder else "bpe")
    shape = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
    if arch == "bert":
        shape["intermediate_size"] = 32
    config = architecture.config(vocab_size=tokenizer.vocab_size, **shape, **options)
    torch.manual_seed(0)
    body: Any = architecture.build(config)
    extra: dict[str, Any] = {}
    model: torch.nn.Module
    if kind == "classify":
        model = Classifier(body, 2, dropout=0.0)
        extra = {"id2label": {"0": "sea", "1": "farm"}, "llmctl_max_length": 64}
    elif kind == "seq2seq":
        model = attach(CausalLM(body), Seq2SeqShape(), architecture)
        extra = {"llmctl_style": "decoder", "llmctl_max_source": 20, "llmctl_max_target": 20}
    elif architecture.kind == "encoder-decoder":
        model = EncoderDecoderLM(body)
    else:
        pairs = architecture.judges_pairs
        model = MaskedLM(body, next_sentence=pairs) if encoder else CausalLM(body)
    write_model_folder(folder / "model", model.eval(), tokenizer, extra)
    if kind == "shares":
        _in_shares(folder / "model")


def _in_shares(folder: Path) -> None:
    """Weights in two files with an index, as large models of others have them."""
    from safetensors.torch import load_file, save_file

    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: names[number % 2] for number, name in enumerate(sorted(whole))}
    for name in names:
        save_file(
            {key: whole[key] for key, place in places.items() if place == name}, folder / name
        )
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _ngram(folder: Path) -> None:
    tokenizer, config = learned("bpe"), NgramConfig(order=3)
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    rows = [[bos, *tokenizer.encode(text), eos] for text in CORPUS[:3]]
    begins = np.cumsum([0, *(len(row) for row in rows[:-1])])
    block = TokenBlock(np.concatenate(rows), begins)
    model = train([block], tokenizer.vocab_size, bos, config, dtype=np.float32).model
    NgramFormat().save(folder / "model", model, tokenizer, config.model_dump())


def _answers(folder: Path) -> list[Any]:
    """What a command would make of a model: classes, words behind masks, or text."""
    place = Workspace(folder / "workspace")
    opened, _ = open_any_model(place, str(folder / "model"))
    architecture = getattr(opened, "architecture", None)
    if architecture is not None and architecture.kind == "encoder":
        texts = ["the ship [MASK] over the sea", "[MASK] lay eggs"]
        examples = [Example(text, None, None, f"text {n}") for n, text in enumerate(texts)]
        return list(predict(place, str(folder / "model"), examples, device="cpu"))
    config = GenerateConfig(max_new_tokens=4, temperature=0.0, device="cpu")
    generation = open_generation(place, str(folder / "model"), config)
    prompts = [Prompt("The ship sails", "prompt 1"), Prompt("Hens", "prompt 2")]
    return list(generation.answers(prompts))


def _sound_answers(found: list[Any]) -> None:
    for answer in found:
        if isinstance(answer, Filling):
            numbers = [entry.probability for mask in answer.masks for entry in mask]
        elif hasattr(answer, "completions"):
            numbers = [math.exp(p) for done in answer.completions for p in done.log_probs]
        else:
            numbers = list(answer.probabilities.values())
            assert abs(sum(numbers) - 1) < 1e-6
        assert all(0 <= number <= 1 + 1e-6 for number in numbers), f"probabilities {numbers[:4]}"


def _model_readers(
    what: str, make: Callable[[Path], None], targets: dict[str, str]
) -> list[Reader]:
    return [
        Reader(f"{what}: {name}", make, {f"model/{name}": form}, _answers, _sound_answers)
        for name, form in targets.items()
    ]


def _made(arch: str, kind: str = "lm", **options: Any) -> Callable[[Path], None]:
    return lambda folder: _model(folder, arch, kind, **options)


FILES = {"config.json": "json", "model.safetensors": "safetensors"}
MODELS = [
    *_model_readers("BERT", _made("bert"), FILES),
    *_model_readers("classifier", _made("bert", "classify"), FILES),
    *_model_readers("ModernBERT", _made("modernbert"), FILES),
    *_model_readers("ModernBERT's classifier", _made("modernbert", "classify"), FILES),
    *_model_readers("GPT", _made("gpt"), {**FILES, "tokenizer.json": "json"}),
    *_model_readers("Llama", _made("llama", num_kv_heads=1), FILES),
    *_model_readers("nanochat", _made("nanochat"), {"config.json": "json"}),
    *_model_readers("T5", _made("t5"), {**FILES, "generation_config.json": "json"}),
    *_model_readers("BART", _made("bart"), FILES),
    *_model_readers("model with a decoder", _made("gpt", "seq2seq"), {"config.json": "json"}),
    *_model_readers(
        "model in shares", _made("gpt", "shares"), {"model.safetensors.index.json": "json"}
    ),
    *_model_readers("n-grams", _ngram, {"config.json": "json", "ngram.safetensors": "safetensors"}),
]

READERS = [*TOKENIZERS, *MODELS]
