"""TransKD: stage maps and patch embeddings of segmentation networks."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch

from distill.datasets.arrays import open_arrays
from distill.datasets.spec import Kind, ModalitySpec
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.transkd import (
    CrossSelectiveFusion,
    SelectiveSum,
    StageComparison,
    TransKdOptions,
    hierarchical_distance,
)
from distill.networks.registry import NetworkChoice, build_model
from distill.student import Student, StudentSpec
from distill.taps import Tap, frozen_outputs
from distill.tasks import task_for
from distill.training.checkpoint import load_tensors
from distill.training.features import FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from quantize.export import export_student
from tests.conftest import write_label_maps
from tests.distill.methods.helpers import make_method, require_it_teaches, same
from tests.distill.test_training import Kill, KillAt


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    dataset = open_arrays(write_label_maps(tmp_path_factory.mktemp("d") / "d", samples=40, size=(16, 20)))
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    return FeatureStore(dataset, split_dataset(dataset, SplitRule()), fronts)


def make_lab(store, folder, **changes) -> Lab:
    lab = Lab(
        store=store,
        task=task_for(store.dataset, store.splits["train"]),
        session=Session(folder, torch.device("cpu"), 0, batch_size=6),
        student_modality="depth",
        student=NetworkChoice("small_unet", {"width": 0.25}),
        teachers={
            "multimodal": (("colour", "depth"), NetworkChoice("map_fusion", {"width": 0.25})),
            "colour": (("colour",), NetworkChoice("small_unet", {"width": 0.25})),
        },
        optimizer=OptimizerChoice(lr=1e-2),
        epochs=Epochs(1, 1, 2),
    )
    return dataclasses.replace(lab, **changes)


def _mean_over_parts(x, side):
    """``(B, C, H, W)`` to ``(B, C, side, side)``: part i of n goes from floor(i H / n) to ceil((i + 1) H / n)."""
    height, width = x.shape[2:]

    def ends(part, size):
        return part * size // side, -((part + 1) * -size // side)

    out = np.zeros((*x.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            (top, bottom), (left, right) = ends(i, height), ends(j, width)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


@pytest.mark.parametrize(("size", "sides"), [((9, 12), (4, 2, 1)), ((3, 5), (2, 1)), ((2, 2), (1,)), ((1, 3), ())])
def test_the_distance_of_maps_is_taken_at_every_size_that_is_smaller(size, sides):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, *size))
    wanted = np.mean((a - b) ** 2)
    for power, side in enumerate(sides, start=1):
        wanted += np.mean((_mean_over_parts(a, side) - _mean_over_parts(b, side)) ** 2) / 2**power
    wanted /= sum(0.5**power for power in range(len(sides) + 1))
    assert float(hierarchical_distance(*map(torch.tensor, (a, b)))) == pytest.approx(wanted, rel=1e-6)


def test_a_selective_sum_weighs_each_channel_of_a_sample_by_a_softmax_over_both_maps():
    torch.manual_seed(0)
    layer, (x, y) = SelectiveSum(6), torch.randn(2, 3, 6, 4, 5)
    first, norm, _, last = layer.squeeze
    arrays = [p.detach().double().numpy() for p in (first.weight, norm.weight, norm.bias, last.weight, last.bias)]
    v, scale, shift, w, b = arrays
    found = layer(x, y).detach().numpy()
    for sample in range(3):
        mean = (x[sample] + y[sample]).double().numpy().mean(axis=(1, 2))
        z = v @ mean
        z = (z - z.mean()) / np.sqrt(z.var() + norm.eps) * scale + shift
        scores = w @ np.maximum(z, 0) + b
        for channel in range(6):
            of_x, of_y = np.exp(scores[channel]), np.exp(scores[6 + channel])
            wanted = (of_x * x[sample, channel] + of_y * y[sample, channel]) / (of_x + of_y)
            assert found[sample, channel] == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-5)


def test_stages_are_fused_from_the_deepest_up_and_come_out_in_the_teachers_shapes():
    torch.manual_seed(0)
    wanted = [(7, 8, 12), (9, 4, 6), (11, 2, 3)]
    fusion = CrossSelectiveFusion([2, 3, 4], wanted, width=8).eval()
    stages = [torch.randn(2, c, *size, requires_grad=True) for c, size in ((2, (8, 12)), (3, (4, 6)), (4, (2, 3)))]
    low, middle, high = fusion(stages)
    assert [tuple(x.shape[1:]) for x in (low, middle, high)] == wanted

    def reached(output):
        found = torch.autograd.grad(output.sum(), stages, retain_graph=True, allow_unused=True)
        return [grad is not None and bool(grad.any()) for grad in found]

    assert [reached(x) for x in (low, middle, high)] == [[True] * 3, [False, True, True], [False, False, True]]
    # By hand, one step up: the deepest is enlarged by repeating, then chosen against the middle one.
    x, below = fusion.reduce[1](stages[1]), fusion.reduce[2](stages[2])
    u = fusion.select[1](x, below.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert torch.allclose(middle, fusion.widen[1](u), atol=1e-6)


def test_a_teacher_of_another_size_is_met_at_its_own():
    fusion = CrossSelectiveFusion([2, 3], [(5, 16, 16), (5, 6, 7)], width=8)
    assert [tuple(x.shape) for x in fusion([torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4)])] == [
        (2, 5, 16, 16), (2, 5, 6, 7),
    ]  # fmt: skip


def test_embeddings_are_projected_and_weighed_the_deepest_most():
    torch.manual_seed(0)
    shapes, wider = [(2, 8, 8), (3, 4, 4)] * 2, [(4, 8, 8), (6, 4, 4)] * 2
    module = StageComparison(shapes, wider, TransKdOptions())
    own, wanted = ([torch.randn(2, *shape) for shape in side] for side in (shapes, wider))
    total = 0.0
    # Two stages: the last two of the four published weights.
    for weight, project, e, t in zip((0.5, 1.0), module.projections, own[2:], wanted[2:], strict=True):
        matrix, bias = project.weight.detach().numpy()[:, :, 0, 0], project.bias.detach().numpy()
        rows = np.einsum("oc,bchw->bohw", matrix, e.numpy()) + bias[:, None, None]
        total += weight * np.mean((rows - t.numpy()) ** 2)
    assert module(own, wanted, None)["embeddings"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("small_unet", {"image": (3, 32, 32)}),
        ("segnet", {"image": (3, 32, 32)}),
        ("map_fusion", {"image": (3, 32, 32), "depth": (1, 32, 32)}),
        ("fusenet", {"image": (3, 32, 32), "depth": (1, 32, 32)}),
    ],
)
def test_networks_name_their_stages_each_half_as_large_and_what_they_begin_with(network, shapes):
    model = build_model("m", NetworkChoice(network, {"width": 0.25}), shapes, 5, where="m", map_size=(32, 32))
    stages, embeddings = model.module.stage_maps, model.module.patch_embeddings
    for each in embeddings.values() if model.multimodal else [embeddings]:
        tap = Tap(model, [*stages, *each], shapes, where="m")
        sizes = [shape[1:] for shape in tap.feature_shapes]
        assert sizes[: len(stages)] == sizes[len(stages) :]
        assert sizes[0] == (32, 32)
        assert all(a[0] == 2 * b[0] for a, b in pairwise(sizes[: len(stages)]))


def test_losses_reach_student_and_helpers_and_stop_at_the_teacher(store, tmp_path):
    method = make_method("transkd", make_lab(store, tmp_path))
    student, teacher = method.lab.new_student(), method.lab.new_teacher("multimodal")
    taps = method.taps(student, teacher)
    # The student reads depth: so does the embedding that it is compared with.
    assert taps[1].layers == (
        "joined.0", "joined.1", "joined.2",
        "encoders.depth.levels.0.1", "encoders.depth.levels.1.1", "encoders.depth.levels.2.1",
    )  # fmt: skip
    comparison = method.comparison(*taps)
    batch = store.gather(store.splits["train"][:4], ("colour", "depth"), torch.device("cpu"))
    wanted = frozen_outputs(method.lab, taps[1])(batch)
    losses = comparison(taps[0](batch.inputs)[1], [w.float() for w in wanted], batch)
    assert losses.keys() == {"stages", "embeddings"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in comparison.parameters())
    assert all(p.grad is not None for p in student.module.encoder.parameters())
    assert all(p.grad is None for p in teacher.module.parameters())


def test_it_teaches_and_nothing_of_it_is_exported(store, tmp_path):
    """The authors count the heads that only training needs among the student's parameters; no device sees them."""
    method = make_method("transkd", make_lab(store, tmp_path, epochs=Epochs(1, 1, 4)))
    student = require_it_teaches(method)
    history = method.lab.histories["transkd"]
    assert history[-1]["stages"] < history[0]["stages"]
    groups, _ = load_tensors(tmp_path / "transkd" / "final.safetensors")
    helpers = sum(value.numel() for value in groups["comparison"].values())
    assert helpers > student.parameters
    spec = ModalitySpec("depth", Kind.IMAGE, (16, 20, 1), "float32")
    whole = Student(
        StudentSpec(
            spec,
            frontend_options(spec.kind)(),
            NetworkChoice("small_unet", student.options),
            method.lab.task.output,
            (16, 20),
        )
    )
    whole.network.load_state_dict(student.module.state_dict())
    variant = export_student(whole.eval(), tmp_path / "fp32")
    stored = onnx.load(variant.model).graph.initializer
    learned = sum(p.numel() for p in method.lab.new_student().module.parameters())
    # Batch norms are folded, and a few constants of the graph are no weights.
    assert student.parameters == learned
    assert sum(np.prod(each.dims, dtype=int) for each in stored) <= learned + 50


def test_a_killed_run_goes_on_with_its_fusion(store, tmp_path):
    whole = make_method("transkd", make_lab(store, tmp_path / "whole")).train()
    lab = make_lab(store, tmp_path / "killed")
    killed = dataclasses.replace(lab, session=dataclasses.replace(lab.session, reporter=KillAt("transkd", 1)))
    with pytest.raises(Kill):
        make_method("transkd", killed).train()
    resumed = make_method("transkd", make_lab(store, tmp_path / "killed")).train()
    assert same(whole.module, resumed.module)


class Plain(torch.nn.Module):
    """A network that names no stages."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = torch.nn.Conv2d(input_shape[0], num_outputs, 1)

    def forward(self, x):
        return self.layer(x)


PLAIN = NetworkChoice("tests.distill.methods.test_transkd:Plain")


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"student_stages": ["bottom"] * 4}, "student_stages: 4 stages of the student, but 3 of the student's emb"),
        ({}, {"teacher_embeddings": ["joined.0"] * 4}, "4 embeddings of the teacher, but 3 of the student's stages"),
        ({}, {"student_stages": ["encoder.levels.9"]}, "student_stages: unknown layer 'encoder.levels.9'"),
        ({}, {"embedding_weights": []}, "embedding_weights: 0 weights for 3 pairs of embeddings"),
        ({}, {"teacher": "colours"}, "options.teacher: unknown teacher 'colours'"),
        ({"student": PLAIN}, {}, "student_stages: network 'tests.*Plain' of student names no stages; name them by"),
    ],
)
def test_layers_that_do_not_pair_up_are_told(store, tmp_path, changes, options, says):
    with pytest.raises(UserError, match=says):
        make_method("transkd", make_lab(store, tmp_path, **changes), **options).check()


def test_stages_may_be_named(store, tmp_path):
    options = {"student_stages": ["bottom"], "teacher_stages": ["fused"], "teacher": "multimodal"}
    method = make_method("transkd", make_lab(store, tmp_path), **options)
    student, teacher = method.taps(method.lab.new_student(), method.lab.new_teacher("multimodal"))
    assert student.layers == ("bottom", "encoder.levels.2.1")
    assert teacher.layers == ("fused", "encoders.depth.levels.2.1")
