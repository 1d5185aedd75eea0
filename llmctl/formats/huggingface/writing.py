"""A model to a folder in Hugging Face's layout: config.json, model.safetensors and the tokenizer.

What llmctl trains is always kept like this, so ``transformers`` opens it with no export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from llmctl.formats.description import NEXT_TOKEN_KINDS, TASK, TOKENIZER
from llmctl.formats.frames import FORCED_FIELD, START_FIELD, frame_of
from llmctl.formats.huggingface.reading import DECODER_FIELD, ENCODER_FIELD, SEQ2SEQ
from llmctl.formats.huggingface.tensors import export_model
from llmctl.formats.huggingface.weights import WEIGHTS_FILE
from llmctl.models import ARCHITECTURES, BY_MODEL_TYPE
from llmctl.models.heads import HEADS
from llmctl.models.heads.seq2seq import Seq2Seq
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import write_tensors

KINDS_OF_MODELS: Mapping[type[nn.Module], str] = {
    **{head.network: kind for kind, head in HEADS.items()},
    Seq2Seq: "seq2seq",
}
"""What each of our networks does."""


def write_model_folder(
    folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write a trained model. ``extra``: further fields of config.json.

    A GPT with a decoder attached has no class in transformers: the fields and tensors of each of
    the two are in Hugging Face's names.
    """
    write_description(folder, model, tokenizer, extra)
    config, kind = model.body.config, KINDS_OF_MODELS[type(model)]
    spec = next(spec for spec in ARCHITECTURES.values() if type(config) is spec.config)
    attached = model.decoder.body.config if isinstance(model, Seq2Seq) else None
    write_tensors(
        folder / WEIGHTS_FILE, export_model(model.state_dict(), kind, spec, config, attached)
    )


def write_description(
    folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write what ``write_model_folder`` does, but for the tensors."""
    config, kind = model.body.config, KINDS_OF_MODELS[type(model)]
    spec = next(spec for spec in ARCHITECTURES.values() if type(config) is spec.config)
    fields = spec.to_hugging_face(config)
    class_name = _class_name(model, kind, BY_MODEL_TYPE[fields["model_type"]].class_prefix, spec)
    if isinstance(model, Seq2Seq):
        layers = model.decoder.body.config.num_layers
        decoder = {"num_layers": layers, "cross_attention": model.attends}
        fields = {"model_type": SEQ2SEQ, ENCODER_FIELD: fields, DECODER_FIELD: decoder}
    folder.mkdir(parents=True, exist_ok=True)
    ids: dict[str, int | None] = {
        f"{role}_token_id": tokenizer.special[role]
        for role in ("pad", "bos", "eos")
        if role in tokenizer.special
    }
    if kind in NEXT_TOKEN_KINDS:
        # transformers has numbers of its own for what isn't said.
        ids = {"bos_token_id": None, "eos_token_id": None, **ids}
    if spec.kind == "encoder":
        tokenizer = tokenizer.for_encoder(segments=config.pairs_by_segments)
    elif spec.kind == "encoder-decoder":
        tokenizer = tokenizer.for_texts(opens=model.body.opens_texts)
        # What it was trained with goes before what a new one would have.
        ids = _pair_ids(tokenizer, model.body) | {
            name: extra[name] for name in (START_FIELD,) if name in extra
        }
    # What the network computes with goes before what its tokenizer has.
    ids |= {name: fields[name] for name in ids if fields.get(name) is not None}
    fields = {
        "architectures": [class_name],
        "dtype": "float32",
        **fields,
        **ids,
        TASK: kind,
        TOKENIZER: tokenizer.digest(),
        **extra,
    }
    _write_json(folder / "config.json", fields)
    if kind in (*NEXT_TOKEN_KINDS, "seq2seq"):
        ends = [tokenizer.special[r] for r in ("eos", "turn_end") if r in tokenizer.special]
        ends += sorted(tokenizer.further_ends.difference(ends))
        said = {name: number for name, number in ids.items() if number is not None}
        _write_json(folder / "generation_config.json", {**said, "eos_token_id": ends or None})
    tokenizer.save(folder, max_length=config.max_positions)


def _pair_ids(tokenizer: Tokenizer, body: Backbone) -> dict[str, int | None]:
    """The token ids that config.json says of an encoder–decoder. What the tokenizer lacks is null:
    transformers has numbers of its own for what isn't said."""
    start, _ = tokenizer.boundaries or (None, None)
    first = frame_of(tokenizer, body).start
    return {
        "pad_token_id": tokenizer.special.get("pad"),
        "bos_token_id": start,
        "eos_token_id": tokenizer.text_end,
        START_FIELD: first[0],
        **({FORCED_FIELD: first[1]} if len(first) > 1 else {}),
    }


def _class_name(model: Any, kind: str, beginning: str, spec: ModelSpec) -> str:
    """What Hugging Face calls the class of a model; "LlmctlSeq2Seq" where there is none."""
    return beginning + HEADS[kind].ending(model, spec) if kind in HEADS else "LlmctlSeq2Seq"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")
