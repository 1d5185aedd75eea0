"""What matters in encoders by the gradient, against gates that autograd is told of, and the rows
that it is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.compression.config import CompressConfig
from llmctl.compression.importance import CalibrationRows, GateImportance
from llmctl.compression.smaller import make_smaller
from llmctl.errors import InputError, UsageError
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models.heads.embed import Embedder
from llmctl.reporting.reporter import Reporter
from llmctl.stages.compress.stage import Compression, read_table
from llmctl.tasks.calibration import check_has_rows, example_rows, text_rows
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import save_model
from tests.language_models import measure

TEXTS = ["the ship sails over the wide sea", "the farmer feeds the cows", "people hurry to work",
         "waves rise and fall", "hens lay eggs in the barn"]  # fmt: skip


def opened(folder: Path, kind: str, **fields: Any) -> OpenedModel:
    save_model(folder / "model", kind, like="bert", **fields)
    return OpenedModel.open(Workspace(folder), str(folder / "model"))


def gated(network: Any, loss: Callable[[], Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """|∂L/∂ξ| of a gate on each channel, on each of two heads and on each layer, one for each."""
    layers, handles = list(network.body.layers()), []
    channels = [torch.ones(part.feed_forward.contract.in_features) for part in layers]
    heads = [torch.ones(2) for _ in layers]
    whole = torch.ones(len(layers))
    gates = [*channels, *heads, whole]
    for gate in gates:
        gate.requires_grad_()
    for number, part in enumerate(layers):
        handles += [
            part.feed_forward.contract.register_forward_pre_hook(
                lambda module, given, gate=channels[number]: (given[0] * gate,)
            ),
            part.attention.output.register_forward_pre_hook(
                lambda module, given, gate=heads[number]: (
                    (given[0].unflatten(-1, (2, -1)) * gate[:, None]).flatten(-2),
                )
            ),
            part.register_forward_hook(
                lambda module, given, output, n=number: given[0] + whole[n] * (output - given[0])
            ),
        ]
    found = [slope.abs() for slope in torch.autograd.grad(loss(), gates)]
    for handle in handles:
        handle.remove()
    return found[: len(layers)], found[len(layers) : -1], found[-1]


def check(network: Any, rows: CalibrationRows, losses: list[Callable[[], Tensor]]) -> None:
    """The importance over rows is the mean of gates' slopes of losses that are written out."""
    importance = GateImportance(network, rows)
    assert len(rows.rows) == len(losses)
    expected = [gated(network, loss) for loss in losses]
    for number in range(len(importance.layers)):
        channels, heads = (
            torch.stack([each[part][number] for each in expected]).mean(0) for part in (0, 1)
        )
        torch.testing.assert_close(importance.channels(number), channels, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(importance.heads(number, 2), heads, rtol=1e-3, atol=1e-6)
    layers = torch.stack([each[2] for each in expected]).mean(0)
    torch.testing.assert_close(torch.tensor(importance.layers), layers, rtol=1e-3, atol=1e-6)


def test_of_a_classifier_by_its_labels(tmp_path: Path):
    labels = {0: "calm", 1: "barn", 2: "sea"}
    model = opened(tmp_path, "BertForSequenceClassification", id2label=labels,
                   label2id={name: number for number, name in labels.items()})  # fmt: skip
    data = tmp_path / "some.csv"
    names = ["sea", "barn", "barn", "sea", "barn"]  # one of the model's labels doesn't come
    data.write_text(
        "label,text\n" + "".join(f"{a},{b}\n" for a, b in zip(names, TEXTS, strict=True))
    )
    rows = example_rows(model, data, 64, {}, Reporter())
    network, tokenizer = model.folder.network().eval(), model.folder.tokenizer
    told = {tuple(row.input_ids_BT[0].tolist()): int(row.labels_B) for row in rows.rows}
    layout = tokenizer.layout
    assert told == {
        (*layout.before, *tokenizer.encode(text), *layout.after): {"sea": 2, "barn": 1}[name]
        for name, text in zip(names, TEXTS, strict=True)
    }
    losses = [
        lambda row=row: F.cross_entropy(
            network(row.input_ids_BT, row.segment_ids_BT, row.mask_BT), row.labels_B
        )
        for row in rows.rows
    ]
    check(network, rows, losses)
    data.write_text("label,text\nsea,the ship\ncity,the tram\n")
    with pytest.raises(InputError, match=r"has labels that the model does not know \(city\)"):
        example_rows(model, data, 64, {}, Reporter())


def test_of_several_labels(tmp_path: Path):
    labels = {0: "wet", 1: "green", 2: "loud"}
    model = opened(tmp_path, "BertForSequenceClassification", id2label=labels,
                   label2id={name: number for number, name in labels.items()},
                   problem_type="multi_label_classification")  # fmt: skip
    data = tmp_path / "some.csv"
    data.write_text("label,text\nloud|wet,the ship sails\nwet,the wide sea\n")
    rows = example_rows(model, data, 64, {}, Reporter())
    network = model.folder.network().eval()
    assert sorted(row.labels_B[0].tolist() for row in rows.rows) == [[1, 0, 0], [1, 0, 1]]
    losses = [
        lambda row=row: F.binary_cross_entropy_with_logits(
            network(row.input_ids_BT, row.segment_ids_BT, row.mask_BT), row.labels_B.float()
        )
        for row in rows.rows
    ]
    check(network, rows, losses)


def test_of_a_tagger_by_its_words(tmp_path: Path):
    labels = {0: "V", 1: "N", 2: "D"}
    model = opened(tmp_path, "BertForTokenClassification", id2label=labels,
                   label2id={name: number for number, name in labels.items()})  # fmt: skip
    data = tmp_path / "some.conll"
    data.write_text("the D\nship N\nsails V\n\ncows N\nsail V\n")
    rows = example_rows(model, data, 64, {}, Reporter())
    network = model.folder.network().eval()
    told = sorted([n for n in row.labels_BT[0].tolist() if n >= 0] for row in rows.rows)
    assert told == [[1, 0], [2, 1, 0]]
    losses = [
        lambda row=row: F.cross_entropy(
            network(row.input_ids_BT, row.mask_BT)[0][row.labels_BT[0] >= 0],
            row.labels_BT[0][row.labels_BT[0] >= 0],
        )
        for row in rows.rows
    ]
    check(network, rows, losses)


def test_of_an_embedder_by_its_pairs(tmp_path: Path):
    start = opened(tmp_path, "BertModel").folder
    embedder = Embedder(start.backbone())
    SentenceTransformers().save(
        tmp_path / "made", embedder, start.tokenizer, {MAX_LENGTH: start.max_length}
    )
    model = OpenedModel.open(Workspace(tmp_path), str(tmp_path / "made"))
    assert model.kind == "embed"
    data = tmp_path / "pairs.csv"
    data.write_text(
        "anchor,positive\n" + "".join(f"{a},{b}\n" for a, b in zip(TEXTS, TEXTS[::-1], strict=True))
    )
    rows = example_rows(model, data, 64, {}, Reporter())
    (batch,), network = rows.rows, model.folder.network().eval()

    def loss() -> Tensor:
        vectors = F.normalize(network(*batch.inputs)[batch.place_S], dim=-1)
        anchors, positives = vectors[:5], vectors[5:]
        logits = (anchors @ positives.T / 0.05).masked_fill(batch.false_EC, -torch.inf)
        return F.cross_entropy(logits, torch.arange(5))

    check(network, rows, [loss])


def test_of_a_masked_model_by_hidden_tokens(tmp_path: Path):
    model = opened(tmp_path, "BertForMaskedLM")
    windows = torch.randint(5, 50, (6, 24), generator=torch.Generator().manual_seed(0))
    rows = text_rows(model, windows, 0)
    network = model.folder.network().eval()
    hidden = sum(len(places) for _, places, _ in rows.rows)
    assert 6 * 24 * 0.05 < hidden < 6 * 24 * 0.3

    def loss(row: Any) -> Tensor:
        ids, places, labels = row
        logits = network.token_logits(network.body(ids)[0])
        return torch.stack(
            [-logits[p].log_softmax(-1)[n] for p, n in zip(places, labels, strict=True)]
        ).mean()

    for ids, places, labels in rows.rows:
        assert not set(labels.tolist()) & set(model.folder.tokenizer.special_ids)
        assert (ids[0, places] != labels).float().mean() > 0.5
    check(network, rows, [lambda row=row: loss(row) for row in rows.rows])
    # The layer whose gate has the largest slope stays.
    importance = GateImportance(network, rows)
    config = CompressConfig(method="layers", keep=0.5, importance="gradient")
    smaller = make_smaller(model.folder, config, None, lambda done, total: None, rows)
    kept = int(np.argmax(importance.layers))
    name = f"blocks.{kept}.feed_forward.contract.weight"
    assert torch.equal(
        smaller.model.tensors["body.blocks.0.feed_forward.contract.weight"],
        network.body.state_dict()[name],
    )


def test_by_command(own_workspace: Path, labelled_file: Path, tmp_path: Path):
    place = Workspace(own_workspace)

    def compressed(start: str, **more: Any) -> Any:
        config = CompressConfig(method="channels", importance="gradient", windows=8)
        return Compression(place, start, config, **more).run(f"{start}-thin")[0]

    with pytest.raises(UsageError, match="labelled examples like those of its training"):
        compressed("subjects", held_out=labelled_file)
    made = compressed("subjects", data=str(labelled_file), held_out=labelled_file)
    assert read_table(made)["quality"] == "accuracy"
    roles = [record.role for record in made.manifest.inputs]
    assert roles == ["model", "data", "calibration", "eval"]
    # What is said of a text that it was trained on is of the training, not of the calibration.
    plain = tmp_path / "calm.txt"
    plain.write_text("the ship sails over the wide sea\n" * 40)
    config = CompressConfig(method="channels", window=32)
    Compression(place, "subjects", config, data=str(plain), held_out=labelled_file).run("calm")
    report = measure(place, "calm", labelled_file)
    assert any("was trained on" in note for note in report["notes"])
    made = compressed("tiny")
    table = read_table(made)
    assert table["quality"] == "nats per hidden token"
    assert table["lower_is_better"]
    assert table["rows"][0]["lost_interval"] is not None


def test_what_has_no_rows(tmp_path: Path):
    model = opened(tmp_path, "ElectraForPreTraining")
    with pytest.raises(InputError, match="a detector of replaced tokens, none is made here"):
        check_has_rows(model)
