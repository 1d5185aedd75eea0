"""What tests of others' models share: small ones that transformers made, with the tokenizers that
such models have."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import processors

from llmctl.tokenizers import Tokenizer, learn

TEXTS = [
    "the ship sails over the wide sea", "waves rise and fall", "the captain watches the stars",
    "the farmer feeds the cows", "hens lay eggs in the barn", "wheat grows tall",
    "the tram stops at the square", "people hurry to work", "a",
]  # fmt: skip
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


DISTILBERT = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}  # fmt: skip


@cache
def learned(kind: str) -> Tokenizer:
    return learn(kind, TEXTS * 3, 290 if kind != "wordpiece" else 60, exact=False)


def save_tokenizer(folder: Path, like: str, **config: Any) -> None:
    """The files of a tokenizer. like: ``bert``, ``gpt2`` and ``qwen`` (nothing is put around a
    text), ``llama`` (bos before it), ``t5`` and ``bart`` as transformers makes them, ``ours`` and
    ``unigram`` as llmctl does.

    config: fields of tokenizer_config.json.
    """
    kinds = {"bert": "wordpiece", "unigram": "unigram", "llama": "unigram"}
    if like in ("t5", "bart"):
        encoder_decoders_tokenizer(like).save_pretrained(folder)
        return
    if like in ("roberta", "xlm-roberta"):
        robertas_tokenizer(like).save_pretrained(folder)
        return
    tokenizer = learned(kinds.get(like, "bpe"))
    tokenizer.save(folder, max_length=64)
    path = folder / "tokenizer_config.json"
    if like in ("gpt2", "qwen"):
        rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
        rust.post_processor = processors.ByteLevel(trim_offsets=False)
        rust.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    if like == "qwen":
        config = {"bos_token": None, "add_bos_token": False, **config}
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def encoder_decoders_tokenizer(like: str) -> Any:
    """A tokenizer of a T5 (unigram pieces, sentinels last, an end behind each text) or of a BART
    (byte-level BPE, each text between <s> and </s>)."""
    import transformers

    settings = json.loads(learned("unigram" if like == "t5" else "bpe")._rust.to_str())["model"]  # type: ignore[attr-defined]
    if like == "t5":
        pieces = [(piece, score) for piece, score in settings["vocab"] if piece[0] != "<"]
        first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -99.0)]
        return transformers.T5Tokenizer(vocab=[*first, *pieces], extra_ids=10)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(p for p in settings["vocab"] if p[0] != "<")]
    return transformers.BartTokenizer(
        vocab={piece: number for number, piece in enumerate([*pieces, "<mask>"])},
        merges=[tuple(merge) for merge in settings["merges"]],
    )


@cache
def robertas_tokenizer(like: str) -> Any:
    """The tokenizer of a RoBERTa (byte-level BPE) or of an XLM-R (unigram pieces): texts between
    <s> and </s>, and padding numbered 1."""
    import transformers

    first = ["<s>", "<pad>", "</s>", "<unk>"]
    xlm = like == "xlm-roberta"
    settings = json.loads(learned("unigram" if xlm else "bpe")._rust.to_str())["model"]  # type: ignore[attr-defined]
    if xlm:
        pieces = [(piece, score) for piece, score in settings["vocab"] if piece[0] != "<"]
        return transformers.XLMRobertaTokenizer(
            vocab=[*((piece, 0.0) for piece in first), *pieces, ("<mask>", 0.0)]
        )
    pieces = [*first, *(p for p in settings["vocab"] if p[0] != "<"), "<mask>"]
    return transformers.RobertaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in settings["merges"]],
    )


ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5": {
        "d_model": 16, "d_kv": 12, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2,
        "num_heads": 2, "n_positions": 64, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
    },
    "Bart": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20,
        "max_position_embeddings": 64, "init_std": 0.3,
    },
}  # fmt: skip


def save_encoder_decoder(folder: Path, kind: str, *, padding: int = 0, **fields: Any) -> Any:
    """A T5 or a BART of transformers' in a folder, as ``save_model`` does it."""
    import transformers

    beginning = "T5" if kind.startswith("T5") else "Bart"
    like = beginning.lower()
    tokenizer = encoder_decoders_tokenizer(like)
    special = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "eos")
    }
    shape = {"vocab_size": len(tokenizer) + padding, **ENCODER_DECODERS[beginning], **special}
    torch.manual_seed(0)
    text = "Text" if beginning == "Gemma3" else ""
    config = getattr(transformers, f"{beginning}{text}Config")(**{**shape, **fields})
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder, like)
    return model


def save_model(folder: Path, kind: str, *, like: str, padding: int = 0, **fields: Any) -> Any:
    """A model of transformers with random weights in a folder, with its tokenizer; returns it.

    kind: its class. padding: rows beyond the tokenizer's pieces. fields: of its configuration.
    """
    import transformers

    if like in ("t5", "bart"):
        return save_encoder_decoder(folder, kind, padding=padding, **fields)
    tokenizers = {"bert": "wordpiece", "unigram": "unigram", "llama": "unigram"}
    if like in ("roberta", "xlm-roberta"):
        size, special = len(robertas_tokenizer(like)), {"eos": 2, "pad": 1}
    else:
        tokenizer = learned(tokenizers.get(like, "bpe"))
        size, special = tokenizer.vocab_size, {**tokenizer.special, "pad": None}
    kinds = (
        "Bert",
        "DistilBert",
        "Roberta",
        "XLMRoberta",
        "Electra",
        "ModernBert",
        "GPT2",
        "Llama",
        "Mistral",
        "NanoChat",
        "Qwen2",
        "Qwen3",
        "SmolLM3",
        "Gemma3",
    )
    beginning = next(name for name in kinds if kind.startswith(name))
    shape: dict[str, Any] = {**SHAPE}
    if beginning == "GPT2":
        shape["n_inner"] = shape.pop("intermediate_size")
    if beginning == "NanoChat":
        shape |= {"num_key_value_heads": 2}
    elif beginning == "DistilBert":
        for ours, own in DISTILBERT.items():
            shape[own] = shape.pop(ours)
    elif beginning not in ("Bert", "Electra", "ModernBert", "GPT2", "Roberta", "XLMRoberta"):
        shape |= {"num_key_value_heads": 1, "head_dim": 8}
    ids = {f"{role}_token_id": special.get(role) for role in ("eos", "pad")}
    torch.manual_seed(0)
    text = "Text" if beginning == "Gemma3" else ""
    config = getattr(transformers, f"{beginning}{text}Config")(
        **{"vocab_size": size + padding, **shape, "bos_token_id": None, **ids, **fields}
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder, like)
    return model
