"""DisWOT's similarities against their formulas in numpy, and what is read from networks of every kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distill.diswot import Readout, channel_similarity, class_similarity, read, relation_similarity, score
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.tasks.classification import Classification
from distill.tasks.regression import Regression
from distill.tasks.segmentation import Segmentation
from distill.tokens import TokenShape
from distill.training.features import Batch
from mst_edge.core.errors import UserError

rng = np.random.default_rng(0)


def _unit_rows(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_samples_that_look_alike_to_both_score_best():
    teacher, student = rng.normal(size=(5, 12)), rng.normal(size=(5, 7))
    gram_t, gram_s = (_unit_rows(a @ a.T) for a in (teacher, student))
    expected = -np.sum((gram_t - gram_s) ** 2) / 25
    assert float(relation_similarity(*_tensors(teacher, student))) == pytest.approx(expected)
    assert float(relation_similarity(*_tensors(teacher, 3 * teacher))) == pytest.approx(0)


def test_channels_are_compared_class_by_class_where_widths_agree():
    teacher, student = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        expected -= np.sum((_unit_rows(np.outer(t, t)) - _unit_rows(np.outer(s, s))) ** 2) / (3 * 4)
    assert float(channel_similarity(*_tensors(teacher, student))) == pytest.approx(expected)
    with pytest.raises(ValueError, match="4 and 6 channels cannot be compared"):
        channel_similarity(*_tensors(teacher, rng.normal(size=(3, 6))))


def test_classes_are_compared_with_classes_whatever_the_widths():
    teacher, student = rng.normal(size=(3, 4)), rng.normal(size=(3, 9))
    gram_t, gram_s = (_unit_rows(g @ g.T) for g in (teacher, student))
    assert float(class_similarity(*_tensors(teacher, student))) == pytest.approx(-np.sum((gram_t - gram_s) ** 2) / 9)


def test_the_score_is_the_sum_of_both_and_the_relation_alone_without_classes():
    one = Readout(*_tensors(rng.normal(size=(5, 12)), rng.normal(size=(3, 4))))
    other = Readout(*_tensors(rng.normal(size=(5, 3)), rng.normal(size=(3, 4))))
    relation = float(relation_similarity(one.features, other.features))
    for width_free, measure in ((True, class_similarity), (False, channel_similarity)):
        found = score(one, other, width_free=width_free)
        assert found.total == pytest.approx(relation + float(measure(one.classes, other.classes)))
    assert score(Readout(one.features, None), Readout(other.features, None)).total == pytest.approx(relation)
    assert score(one, one).total == pytest.approx(0)


def _model(network: str, shape: tuple[int, ...], outputs: int = 4, **options) -> Model:
    torch.manual_seed(0)
    return build_model("student", NetworkChoice(network, options), {"x": shape}, outputs, where="student")


def _batch(shape: tuple[int, ...], target: torch.Tensor) -> Batch:
    torch.manual_seed(1)
    ids = isinstance(shape, TokenShape)
    size = (len(target), *shape)
    x = torch.randint(0, shape.vocabulary, size, dtype=torch.int32) if ids else torch.randn(size)
    return Batch(torch.arange(len(target)), {"x": x}, target)


CLASSES = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def test_what_classes_pull_at_is_the_gradient_of_the_last_weight():
    """(softmax - one-hot)^T features / B, with the features that the last layer reads."""
    model = _model("mlp", (6,))
    batch = _batch((6,), CLASSES)
    shown = read(model, Classification(4), batch)
    with torch.no_grad():
        features = model.module.embed(batch.inputs["x"])
        wrong = model.module.head(features).softmax(dim=1) - nn.functional.one_hot(CLASSES, 4)
    np.testing.assert_allclose(shown.classes.numpy(), (wrong.T @ features / 8).numpy(), atol=1e-6)
    np.testing.assert_allclose(shown.features.numpy(), features.numpy(), atol=1e-6)  # a vector has no map


@pytest.mark.parametrize(
    ("network", "shape", "map_layer"),
    [
        ("small_cnn", (1, 24, 30), "stages"),
        ("bc_resnet", (1, 20, 24), "norm"),
        ("vit", (1, 20, 24), "tokens"),
        ("tcn", (3, 40), "blocks"),
        ("text_transformer", TokenShape(8, 300), "tokens"),
        ("clip_cnn", (1, 9, 16, 16), "blocks"),
    ],
)
def test_features_are_the_map_before_pooling(network, shape, map_layer):
    model, batch, seen = _model(network, shape, dropout=0.0), _batch(shape, CLASSES), []
    shown = read(model, Classification(4), batch)
    getattr(model.module, map_layer).register_forward_hook(lambda _m, _i, out: seen.append(out.flatten(1)))
    model.module.train()
    model(batch.inputs)
    np.testing.assert_allclose(shown.features.numpy(), seen[0].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_reading_leaves_a_network_as_it_was_and_drops_nothing_out():
    model, batch = _model("small_cnn", (1, 24, 30), dropout=0.5), _batch((1, 24, 30), CLASSES)
    model.module.eval()
    model.module.head.train()
    before = copy.deepcopy(model.module.state_dict())
    first, second = (read(model, Classification(4), batch) for _ in range(2))
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.classes, second.classes)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not model.module.training
    assert model.module.head.training
    assert all(weight.grad is None for weight in model.module.parameters())


def test_a_teacher_of_several_modalities_shows_what_its_last_layer_reads():
    shapes = {"a": (1, 20, 20), "b": (5,)}
    torch.manual_seed(0)
    model = build_model("multimodal", NetworkChoice("fusion", {"hidden": 16}), shapes, 4, where="teachers")
    inputs = {name: torch.randn(8, *shape) for name, shape in shapes.items()}
    shown = read(model, Classification(4), Batch(torch.arange(8), inputs, CLASSES))
    assert shown.features.shape == (8, 16)
    assert shown.classes.shape == (4, 16)


def test_numbers_have_no_classes_and_maps_do():
    numbers = Regression(torch.zeros(2), torch.ones(2))
    shown = read(_model("tcn", (3, 40), 2), numbers, _batch((3, 40), torch.randn(8, 2)))
    assert shown.classes is None
    torch.manual_seed(0)
    unet = build_model("s", NetworkChoice("small_unet"), {"x": (3, 16, 24)}, 3, where="student", map_size=(16, 24))
    target = torch.randint(0, 3, (8, 16, 24))
    shown = read(unet, Segmentation(3, (16, 24)), _batch((3, 16, 24), target))
    assert len(shown.features) == 8
    assert len(shown.classes) == 3


class Headless(nn.Module):
    """Logits that come from no layer."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_outputs, *input_shape))

    def forward(self, x):
        return x @ self.weight.T


def test_a_network_without_a_last_layer_is_refused_by_name():
    name = f"{__name__}:Headless"
    with pytest.raises(
        UserError, match=r"search: network '.*Headless' of student ends in no linear layer .* 4 outputs"
    ):
        read(_model(name, (6,)), Classification(4), _batch((6,), CLASSES))
