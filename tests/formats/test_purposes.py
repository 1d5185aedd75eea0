"""What a model does is said by its folder: heads that look like a classifier's and are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import InputError
from llmctl.formats.description import PurposeError, names_of_labels
from llmctl.formats.huggingface.purposes import purpose_of
from llmctl.formats.open import open_folder
from llmctl.models import BY_MODEL_TYPE
from llmctl.models.spec import HUGGING_FACE
from llmctl.stages.evaluate import prepare_evaluation
from llmctl.stages.predict import predict
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model

pytest.importorskip("transformers")

OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "several numbers": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "regression"},
        "regression",
    ),
    "choices": ("BertForMultipleChoice", {}, "BertForMultipleChoice"),
    "spans": ("BertForQuestionAnswering", {}, "BertForQuestionAnswering"),
    "next sentence": ("BertForNextSentencePrediction", {}, "BertForNextSentencePrediction"),
    "spans of a decoder": ("LlamaForQuestionAnswering", {}, "LlamaForQuestionAnswering"),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", OTHERS)
def test_a_head_that_is_no_classifier_is_refused_by_its_name(tmp_path: Path, name: str):
    kind, fields, says = OTHERS[name]
    folder = tmp_path / "model"
    like = "bert" if kind.startswith("Bert") else "llama"
    save_model(folder, kind, like=like, **fields)
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(InputError, match=f"model can't be used as it is: .*{says}"):
        list(predict(workspace, str(folder), []))
    data = tmp_path / "x.csv"
    data.write_text("label,text\nLABEL_0,a\n")
    with pytest.raises(InputError, match=says):
        prepare_evaluation(workspace, str(folder), Files(data), EvaluateConfig())
    if name == "spans of a decoder":  # whose body has other names
        return
    # Its body is as good as any.
    classifier = open_folder(folder).new_classifier(2, dropout=0.0, scratch=False)
    assert classifier.output.out_features == 2


ANSWERS = {
    "MODEL_FOR_SEQUENCE_CLASSIFICATION": "classify",
    "MODEL_FOR_TOKEN_CLASSIFICATION": "tag",
    "MODEL_FOR_MASKED_LM": "masked_lm",
    "MODEL_FOR_CAUSAL_LM": "causal_lm",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM": "seq2seq",
    **dict.fromkeys(("MODEL", "MODEL_FOR_PRETRAINING", "MODEL_FOR_TEXT_ENCODING"), "pretraining"),
}
"""What the classes of transformers' tables answer; nothing that is known here where it isn't said.
``pretraining``: what predicts tokens."""


def classes_of_transformers() -> dict[str, tuple[str, str | None]]:
    """Each class that transformers has for a model_type that is read here, with that and what the
    class answers."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, str | None]] = {}
    for table, classes in sorted(vars(modeling_auto).items()):
        what = re.fullmatch(r"(MODEL(_FOR_\w+)?)_MAPPING_NAMES", table)
        for model_type in BY_MODEL_TYPE if what else ():
            spec = BY_MODEL_TYPE[model_type]
            taught = spec.usual_head
            kind = ANSWERS.get(what[1]) if what else None
            kind = taught if kind == "pretraining" else kind
            if name := classes.get(model_type):
                # A BERT that reads from left to right is another network, and so is half a T5.
                heads = spec.weights[HUGGING_FACE].heads
                half = spec.kind == "encoder-decoder" and name.endswith("EncoderModel")
                if kind in heads and not half:
                    found[name] = (model_type, kind)
                found.setdefault(name, (model_type, None))
    return found


@pytest.mark.reference
@pytest.mark.parametrize("name", classes_of_transformers())
def test_each_class_of_transformers_is_what_it_is_or_refused_by_its_name(tmp_path: Path, name: str):
    import transformers

    model_type, kind = classes_of_transformers()[name]
    fields = {"model_type": model_type, "architectures": [name]}
    purpose = purpose_of(fields, BY_MODEL_TYPE[model_type], {})
    assert purpose.kind == kind
    assert kind or name in purpose.reason
    if not (
        hasattr(transformers, name) and name.startswith(BY_MODEL_TYPE[model_type].class_prefix)
    ):
        return  # or one that takes such a network for a part
    likes = {"modernbert": "bert", **{name: name for name in ("bert", "gpt2", "t5", "bart")}}
    like = likes.get(model_type, "llama")
    counted = {"pad_token_id": 1} if "roberta" in model_type else {}
    save_model(tmp_path, name, like=like, **counted)
    if kind is not None:
        assert open_folder(tmp_path).kind == kind
        return
    refused = f"can't be used as it is: .*{name}|without its (encoder|decoder) is not supported"
    with pytest.raises(InputError, match=refused):
        _ = open_folder(tmp_path).kind


BERT = {"model_type": "bert"}
HEAD = {"classifier.weight": (3, 16), "classifier.bias": (3,)}


@pytest.mark.parametrize(
    ("fields", "shapes", "kind"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, HEAD, "classify"),
        ({"architectures": ["BertForMaskedLM"]}, {}, "masked_lm"),
        ({"architectures": ["BertForMaskedLM"]}, HEAD, "masked_lm"),  # a surplus, named later
        ({"architectures": ["BertModel"]}, {}, "masked_lm"),
        ({}, {}, "masked_lm"),
        ({"architectures": None}, HEAD, None),
        ({"architectures": ["BertLMHeadModel"]}, {}, None),
        ({"architectures": ["RobertaForSequenceClassification"]}, HEAD, None),
        ({"llmctl_task": "classify", "architectures": ["x"]}, HEAD, "classify"),
    ],
)
def test_what_says_what_a_model_does(
    fields: dict[str, Any], shapes: dict[str, tuple[int, ...]], kind: str | None
):
    purpose = purpose_of({**BERT, **fields}, BY_MODEL_TYPE["bert"], shapes)
    assert purpose.kind == kind
    assert bool(purpose.reason) == (kind is None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"llmctl_task": "juggle"}, 'llmctl_task is "juggle", which is not known here'),
        ({"llmctl_task": ["classify"]}, "llmctl_task is"),
        ({"architectures": "BertModel"}, 'architectures is "BertModel", not a list'),
        ({"architectures": [3]}, r"architectures is \[3\]"),
    ],
)
def test_a_purpose_that_can_not_be_understood(fields: dict[str, Any], says: str):
    with pytest.raises(PurposeError, match=says):
        purpose_of({**BERT, **fields}, BY_MODEL_TYPE["bert"], {})


def test_names_of_labels():
    assert names_of_labels({}, 2) == ["LABEL_0", "LABEL_1"]
    assert names_of_labels({"id2label": {"1": "b", "0": "a"}}, 2) == ["a", "b"]
    for wrong in ([], ["a", "b"], {"0": "a"}, {"0": "a", "2": "b"}, {"0": "a", "1": None}):
        with pytest.raises(PurposeError, match="each of the 2 classes"):
            names_of_labels({"id2label": wrong}, 2)
    with pytest.raises(PurposeError, match="'a' twice"):
        names_of_labels({"id2label": {"0": "a", "1": "a"}}, 2)


def test_what_llmctl_writes_says_what_it_does(tiny_workspace: Path):
    for run, task in {"tiny": "masked_lm", "subjects": "classify"}.items():
        path = tiny_workspace / "runs" / run / "model"
        fields = json.loads((path / "config.json").read_text())
        assert fields["llmctl_task"] == task
        assert open_folder(path).kind == task
