"""Folders of sentence-transformers: modules.json names a Transformer, a Pooling and a Normalize.

The Transformer is a folder in Hugging Face's layout; what the others are is said in files beside
it, in one of two dialects: that of versions up to 5.0, which every version reads and we write
(``pooling_mode_mean_tokens``), and today's (``pooling_mode``). Whatever else a folder names, and
would change a vector, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH, Purpose
from llmctl.formats.huggingface.reading import read_folder
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models.config_json import shown
from llmctl.models.heads.embed import NORMALIZE, POOLING, Embedder, Pooling
from llmctl.parsing import Malformed, parse_json, read_json_object
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import read_tensor, tensor_heads, write_tensors

MODULES = "modules.json"
POOLING_FOLDER, NORMALIZE_FOLDER, DENSE_FOLDER = "1_Pooling", "2_Normalize", "3_Dense"
DENSE_FILE = "model.safetensors"
DENSE_NAMES = {"output.weight": "linear.weight", "output.bias": "linear.bias"}
"""Our names of the tensors of a layer that tells classes, and theirs."""
IDENTITY = "torch.nn.modules.linear.Identity"
SETFIT = "llmctl_setfit"
"""The field of a folder whose Dense layer tells classes by a text's vector."""
TRANSFORMER_FILE, MODEL_FILE = "sentence_bert_config.json", "config_sentence_transformers.json"
AGAIN = "copy it again from where it was made"

OLD_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last",
}  # fmt: skip
NEW_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
HIDDEN_STATES = "token_embeddings"
"""What a Transformer gives, as they call it."""
OLD_WIDTH, NEW_WIDTH = "word_embedding_dimension", "embedding_dimension"
"""What either calls the width of a vector."""
TYPE = "sentence_transformers.models."
"""What the names of the modules' classes begin with, as every version understands them."""
OF_TRANSFORMER = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name",
}  # fmt: skip
OF_MODEL = {
    "__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type",
}  # fmt: skip


class SentenceTransformers:
    """What sentence-transformers writes and opens, of models that make one vector of a text."""

    name = "sentence-transformers"

    def recognises(self, path: Path) -> bool:
        """Whether there is a list of modules."""
        return (path / MODULES).is_file()

    def open(self, path: Path) -> Pretrained:
        """The model of a folder. Raises InputError naming what is missing, malformed, or not
        supported."""
        modules = _modules(path)
        inner = path / modules["Transformer"]
        model = read_folder(inner)
        pooling_file = path / modules["Pooling"] / "config.json"
        pooling = _pooling(pooling_file, int(model.config.hidden_size))
        length = _max_length(inner, model)
        files = [path / MODULES, pooling_file, *_if_there(path / MODEL_FILE)]
        purpose = Purpose("embed")
        if "Dense" in modules:
            model = with_dense(path / modules["Dense"], model)
            purpose = model.purpose
        _check_model_file(path / MODEL_FILE)
        fields = {**model.fields, POOLING: pooling, NORMALIZE: "Normalize" in modules}
        return replace(
            model,
            path=path,
            files=(*model.files, *files, *sorted(inner.glob("sentence_*_config.json"))),
            fields=fields if length is None else {**fields, MAX_LENGTH: length},
            purpose=purpose,
        )

    @staticmethod
    def described(path: Path) -> dict[str, Any]:
        """What a folder says of its embedder beside config.json. Raises InputError as ``open``."""
        fields = SentenceTransformers().open(path).fields
        return {name: fields[name] for name in (POOLING, NORMALIZE, MAX_LENGTH) if name in fields}

    def save(
        self,
        folder: Path,
        model: Embedder,
        tokenizer: Tokenizer,
        extra: Mapping[str, Any],
        dense: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Write an embedder. extra: further fields of config.json, ``MAX_LENGTH`` among them.
        dense: weights and biases of a layer that tells classes by its vectors."""
        described: dict[str, Any] = {POOLING: model.pooling, NORMALIZE: model.normalize}
        if dense is not None:
            described[SETFIT] = True
        write_model_folder(folder, model, tokenizer, {**extra, **described})
        names = {"Transformer": "", "Pooling": POOLING_FOLDER}
        if model.normalize:
            names["Normalize"] = NORMALIZE_FOLDER
        if dense is not None:
            names["Dense"] = DENSE_FOLDER
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": TYPE + kind}
            for number, (kind, path) in enumerate(names.items())
        ]
        modes = {name: mode == model.pooling for name, mode in OLD_MODES.items()}
        width = model.body.config.hidden_size
        for path in filter(None, names.values()):
            (folder / path).mkdir()
        _write(folder / MODULES, modules)
        _write(folder / POOLING_FOLDER / "config.json", {OLD_WIDTH: width, **modes})
        if dense is not None:
            _write_dense(folder / DENSE_FOLDER, *dense)
        _write(
            folder / TRANSFORMER_FILE,
            {"max_seq_length": extra[MAX_LENGTH], "do_lower_case": False},
        )
        _write(
            folder / MODEL_FILE,
            {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        )


def _write_dense(folder: Path, weight: Tensor, bias: Tensor) -> None:
    tensors = {"output.weight": weight.float().contiguous(), "output.bias": bias.float()}
    write_tensors(
        folder / DENSE_FILE, {DENSE_NAMES[name]: tensor for name, tensor in tensors.items()}
    )
    fields = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    _write(folder / "config.json", {**fields, "bias": True, "activation_function": IDENTITY})


def with_dense(folder: Path, model: Pretrained) -> Pretrained:
    """An embedder with the layer of a folder that tells classes by its vectors.

    Raises InputError for another layer, which would make other vectors.
    """
    if model.fields.get(SETFIT) is not True:
        raise InputError(
            f"{folder}: a Dense layer is not supported but as a classifier's of --task setfit; a "
            "Transformer, a Pooling and a Normalize are"
        )
    weights = folder / DENSE_FILE
    shapes = {name: shape for name, (_, shape) in tensor_heads(weights).items()}
    width = int(model.config.hidden_size)
    rows = shapes.get(DENSE_NAMES["output.weight"], (0,))[0]
    if shapes != {"linear.weight": (rows, width), "linear.bias": (rows,)} or not rows:
        raise InputError(f"{weights} is no layer from vectors {width} wide to classes; {AGAIN}")
    own = {name: partial(read_tensor, weights, theirs) for name, theirs in DENSE_NAMES.items()}
    readers = {name: partial(model.tensors.__getitem__, name) for name in model.tensors}
    return replace(
        model,
        files=(*model.files, folder / "config.json", weights),
        purpose=Purpose("setfit"),
        tensors=LazyTensors({**readers, **own}),
    )


def _write(path: Path, value: object) -> None:
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def _if_there(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _modules(path: Path) -> dict[str, str]:
    """The folder of each module by its class. Raises InputError for others than those known, or
    in another order."""
    file = path / MODULES
    try:
        modules = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, Malformed) as error:
        raise InputError(f"{file} can't be read ({error}); {AGAIN}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{file} is no list of modules; {AGAIN}")
    found: dict[str, str] = {}
    for module in modules:
        kind, folder = str(module.get("type")).rpartition(".")[2], module.get("path")
        if kind not in ("Transformer", "Pooling", "Normalize", "Dense"):
            raise InputError(
                f"{file}: the module {module.get('type')!r} is not supported; a Transformer, a "
                "Pooling and a Normalize are"
            )
        # A list may not reach out of its folder.
        if not isinstance(folder, str) or (folder and Path(folder).name != folder):
            raise InputError(f"{file} names the folder {shown(folder)}, which is no plain name")
        found[kind] = folder
    order = ["Transformer", "Pooling", *(name for name in ("Normalize", "Dense") if name in found)]
    if list(found) != order:
        raise InputError(
            f"{file} has the modules {', '.join(found) or 'none'}; a Transformer, then a Pooling, "
            "then perhaps a Normalize are supported"
        )
    return found


def _pooling(file: Path, width: int) -> Pooling:
    """What a pooling's description says. Raises InputError for one that isn't supported."""
    fields = read_json_object(file, AGAIN)
    known = {*OLD_MODES, "pooling_mode", OLD_WIDTH, NEW_WIDTH}
    modes: list[str]
    if "pooling_mode" in fields:
        mode = fields["pooling_mode"]
        modes = [str(name) for name in (mode if isinstance(mode, list) else [mode])]
        table = NEW_MODES
    else:
        modes = [name for name, on in fields.items() if name.startswith("pooling_mode_") and on]
        table = OLD_MODES
    if len(modes) != 1 or modes[0] not in table:
        raise InputError(
            f"{file}: the pooling {' with '.join(modes) or 'that is not named'} is not supported; "
            f"one of {', '.join(table)} is"
        )
    neutral = {name for name in fields if name.startswith("pooling_mode_")}
    for name in fields.keys() - known - neutral - {"include_prompt"}:
        raise InputError(f"{file}: {name} {shown(fields[name])} is not supported")
    for name in (NEW_WIDTH, OLD_WIDTH):
        if fields.get(name, width) != width:
            raise InputError(
                f"{file}: {name} is {shown(fields[name])}, and the network is {width} wide; {AGAIN}"
            )
    return table[modes[0]]


def _max_length(inner: Path, model: Pretrained) -> int | None:
    """Tokens of a text at most, where the files say it. Raises InputError for what isn't
    supported."""
    length: Any = None
    for file in sorted(inner.glob("sentence_*_config.json")):
        fields = read_json_object(file, AGAIN)
        for name in fields.keys() - OF_TRANSFORMER:
            if fields[name] not in (None, {}, [], False):
                raise InputError(f"{file}: {name} {shown(fields[name])} is not supported")
        length = fields.get("max_seq_length")
        task, output = fields.get("transformer_task"), fields.get("module_output_name")
        if task not in (None, "feature-extraction") or output not in (None, HIDDEN_STATES):
            raise InputError(
                f"{file}: a Transformer for {shown(task)} that gives {shown(output)} is not "
                "supported"
            )
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        if fields.get("modality_config") not in (None, {"text": text}):
            raise InputError(
                f"{file}: modality_config {shown(fields['modality_config'])} is not supported; "
                "texts to hidden states are"
            )
        alike = [list(model.tokenizer.encode(word)) for word in ("ÉA", "éa")]
        if fields.get("do_lower_case") and alike[0] != alike[1]:
            raise InputError(
                f"{file}: do_lower_case is true, and the tokenizer tells capitals; that is not "
                "supported"
            )
    if length is None and (inner / "tokenizer_config.json").is_file():
        length = read_json_object(inner / "tokenizer_config.json", AGAIN).get("model_max_length")
        # transformers writes an enormous number for none.
        length = length if isinstance(length, int) and length < model.config.max_positions else None
    if length is not None and (type(length) is not int or length < 1):
        raise InputError(f"{inner}: max_seq_length is {shown(length)}, not a number of tokens")
    return length


def _check_model_file(file: Path) -> None:
    """Raises InputError where a folder asks for what is not done here."""
    if not file.is_file():
        return
    fields = read_json_object(file, AGAIN)
    for name in fields.keys() - OF_MODEL:
        if fields[name] not in (None, {}, []):
            raise InputError(f"{file}: {name} {shown(fields[name])} is not supported")
    kind = fields.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise InputError(f"{file}: model_type {shown(kind)} is not supported")
    default, prompts = fields.get("default_prompt_name"), fields.get("prompts") or {}
    if default is not None and (not isinstance(prompts, dict) or prompts.get(default) != ""):
        raise InputError(
            f"{file}: default_prompt_name is {shown(default)}, a text before every text, which is "
            "not supported; set it to null and write it into the texts"
        )
    similarity = fields.get("similarity_fn_name")
    if similarity not in (None, "cosine"):
        raise InputError(
            f"{file}: similarity_fn_name is {shown(similarity)}, and vectors are compared by their "
            "cosines here"
        )
