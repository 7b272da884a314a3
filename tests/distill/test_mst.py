"""MST-Distill: stages, presets, routing."""

from __future__ import annotations

import pytest
import torch

from distill.lab import TeacherNeededError
from distill.masks import CompactMask, FullMask
from distill.methods.base import METHODS
from distill.methods.mst import _decayed
from distill.mst_options import PAPER, MstOptions
from distill.router import EvidenceRouter, LinearRouter, UniformRouter
from distill.training.checkpoint import load_tensors
from mst_edge.core.errors import UserError
from mst_edge.stages.distill import method_options
from tests.distill.test_training import make_lab, store  # noqa: F401


def _method(store, folder, **options):  # noqa: F811
    return METHODS.get("mst")(make_lab(store, folder), MstOptions(**options))


def test_paper_decays_start_after_the_first_epoch():
    # w_KD: 1, then 0.5 for epochs 1 to 30, 0.25 for 31 to 60; w_LB drops after epochs 0, 10, 20.
    assert [_decayed((0.5, 30), epoch) for epoch in (0, 1, 30, 31, 60, 61, 91)] == [
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
        0.0625,
    ]
    assert [_decayed((0.9, 10), epoch) for epoch in (0, 1, 10, 11)] == pytest.approx([1, 0.9, 0.9, 0.81])


def test_presets_differ_where_they_should():
    paper, improved = method_options("mst", "paper", {}), method_options("mst", "improved", {})
    assert (paper.mask, paper.router, paper.mutual, paper.teacher_weights) == ("full", "linear", "both", "last")
    assert (improved.mask, improved.router, improved.mutual) == ("compact", "evidence", "both")
    assert method_options("mst", "paper", {"mask": "compact"}).mask == "compact"


@pytest.mark.parametrize(
    ("preset", "options", "says"),
    [
        ("papr", {}, "has no preset 'papr'; presets: improved, paper"),
        ("", {"temprature": 2}, "did you mean 'temperature'"),
        ("", {"top_k": "many"}, r"distill\.options\.top_k"),
    ],
)
def test_wrong_options_are_told(preset, options, says):
    with pytest.raises(UserError, match=says):
        method_options("mst", preset, options)


@pytest.mark.parametrize("preset", ["paper", "improved"])
def test_both_presets_train_a_student_from_four_specialised_teachers(store, tmp_path, preset):  # noqa: F811
    options = method_options("mst", preset, {})
    method = METHODS.get("mst")(make_lab(store, tmp_path), options)
    student = method.train()
    assert student.reads == ("signal",)
    assert [row["name"] for row in method.insights["teachers"]] == [
        "multimodal:fused",
        "multimodal:hidden",
        "facts:hidden",
        "facts:squeeze",
    ]
    uses = [row["use"][-1] for row in method.insights["teachers"]]
    assert sum(uses) == pytest.approx(1, abs=1e-5)
    history = method.lab.histories["mst_masks"]
    assert history[-1]["loss"] < 10


@pytest.mark.parametrize(("preset", "kind"), [("paper", FullMask), ("improved", CompactMask)])
def test_the_masks_of_each_preset(store, tmp_path, preset, kind):  # noqa: F811
    method = METHODS.get("mst")(make_lab(store, tmp_path), method_options("mst", preset, {}))
    teachers = {name: method.lab.new_teacher(name) for name in method.lab.teachers}
    specialised = method._specialise(method.lab.new_student(), teachers)
    assert [type(special.mask) for special in specialised] == [kind] * 4


def test_teachers_are_frozen_after_stage_one(store, tmp_path):  # noqa: F811
    method = _method(store, tmp_path)
    student = method.lab.new_student()
    teachers = {name: method.lab.new_teacher(name) for name in method.lab.teachers}
    method._collaborate(student, teachers)
    before = {name: [p.clone() for p in t.module.parameters()] for name, t in teachers.items()}
    for teacher in teachers.values():
        teacher.module.eval().requires_grad_(False)
    specialised = method._specialise(student, teachers)
    method._distill(student, specialised)
    for name, teacher in teachers.items():
        assert all(torch.equal(a, b) for a, b in zip(before[name], teacher.module.parameters(), strict=True))
    assert not student.module.training


def _routed(method, router, teachers, target, z=None):
    method._names = [str(i) for i in range(teachers.shape[1])]
    z = torch.randn(len(target), teachers.shape[2], requires_grad=True) if z is None else z
    return z, method._routed(z, teachers, router, target, 0)


def test_the_published_router_gets_no_gradient_from_distillation(store, tmp_path):  # noqa: F811
    method = _method(store, tmp_path, **PAPER)
    router = LinearRouter(3, 4)
    _, losses = _routed(method, router, torch.randn(8, 4, 3), torch.randint(0, 3, (8,)))
    losses["kd"].backward()
    assert all(p.grad is None for p in router.parameters())


def test_the_published_balance_loss_leaks_into_the_student_and_ours_does_not(store, tmp_path):  # noqa: F811
    for options, router, leaks in ((PAPER, LinearRouter(3, 4), True), ({}, EvidenceRouter(3, 4), False)):
        z, losses = _routed(
            _method(store, tmp_path, **options), router, torch.randn(8, 4, 3), torch.randint(0, 3, (8,))
        )
        losses["balance"].backward()
        assert (z.grad is not None and bool(z.grad.abs().sum() > 0)) is leaks


def test_the_evidence_router_gets_gradient_from_the_loss_it_serves(store, tmp_path):  # noqa: F811
    router = EvidenceRouter(3, 4)
    _, losses = _routed(_method(store, tmp_path), router, torch.randn(8, 4, 3), torch.randint(0, 3, (8,)))
    losses["route"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())


def test_the_evidence_router_learns_which_teacher_is_right(store, tmp_path):  # noqa: F811
    """Teacher 0 is right on even samples, teacher 1 on odd ones; the wrong one is unsure of itself."""
    torch.manual_seed(0)
    method = _method(store, tmp_path, balance_weight=0.0)
    router = EvidenceRouter(3, 2)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    target = torch.randint(0, 3, (256,))
    sure = 6 * torch.nn.functional.one_hot(target, 3).float()
    unsure = torch.randn(256, 3) * 0.5
    even = (torch.arange(256) % 2 == 0)[:, None]
    teachers = torch.stack([torch.where(even, sure, unsure), torch.where(even, unsure, sure)], dim=1)
    z = torch.randn(256, 3)
    for _ in range(200):
        _, losses = _routed(method, router, teachers, target, z)
        optimizer.zero_grad()
        losses["route"].backward()
        optimizer.step()
    chosen = router(z, teachers).argmax(dim=1)
    assert (chosen == (torch.arange(256) % 2)).float().mean() > 0.95


def test_without_masks_stage_two_is_skipped_and_each_teacher_counts_once(store, tmp_path):  # noqa: F811
    method = _method(store, tmp_path, mask="none")
    method.train()
    assert [row["name"] for row in method.insights["teachers"]] == ["multimodal", "facts"]
    assert [row["mask_parameters"] for row in method.insights["teachers"]] == [0, 0]
    assert set(method.lab.histories) == {"mst_collaborate", "mst"}
    assert [work.phase for work in method.workload()] == ["mst_collaborate", "mst"]
    # What the student listens to are the teachers of stage 1 themselves, on training and validation samples.
    groups, _ = load_tensors(tmp_path / "mst_collaborate" / "final.safetensors")
    teacher = method.lab.new_teacher("facts")
    teacher.module.load_state_dict(groups["facts"])
    expected = method.lab.task.metrics(method.lab.logits(teacher, "val"), store.target("val"))
    (row,) = [row for row in method.insights["teachers"] if row["name"] == "facts"]
    assert row["val"] == pytest.approx(expected)


@pytest.mark.parametrize("mask", ["compact", "none"])
@pytest.mark.parametrize(("who", "names"), [("multimodal", {"multimodal"}), ("cross_modal", {"facts"})])
def test_teachers_that_take_no_part_are_not_trained(store, tmp_path, who, names, mask):  # noqa: F811
    method = _method(store, tmp_path, teachers=who, mask=mask)
    method.train()
    groups, _ = load_tensors(tmp_path / "mst_collaborate" / "final.safetensors")
    assert set(groups) == {"student", *names}
    assert {row["name"].partition(":")[0] for row in method.insights["teachers"]} == names
    assert set(method.workload()[0].trained) == {"student", *names}


def test_without_a_router_the_student_learns_from_the_plain_mean(store, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    method = _method(store, tmp_path, router="mean")
    teachers, target = torch.randn(8, 4, 3), torch.randint(0, 3, (8,))
    z, losses = _routed(method, UniformRouter(3, 4), teachers, target)
    each = [method.lab.task.kd(z, teachers[:, i], 4.0) for i in range(4)]
    assert losses["kd"].item() == pytest.approx(sum(each).item() / 4, rel=1e-5)
    assert [losses[f"use_{i}"].item() for i in range(4)] == [0.25] * 4
    assert "route" not in losses
    method.train()
    groups, _ = load_tensors(tmp_path / "mst" / "final.safetensors")
    assert set(groups) == {"student"}
    assert all(row["use"] == [0.25, 0.25] for row in method.insights["teachers"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_top_k_is_how_many_teachers_a_sample_listens_to(store, tmp_path, count):  # noqa: F811
    torch.manual_seed(0)
    method = _method(store, tmp_path, top_k=count)
    teachers, target = torch.randn(8, 4, 3), torch.randint(0, 3, (8,))
    router = EvidenceRouter(3, 4)
    z, losses = _routed(method, router, teachers, target)
    weights = router(z, teachers)
    each = torch.stack([method.lab.task.sample_kd(z, teachers[:, i], 4.0) for i in range(4)], dim=1)
    kept = weights * (weights >= weights.sort(dim=1, descending=True).values[:, count - 1 : count])
    assert (kept > 0).sum(dim=1).tolist() == [count] * 8
    expected = (kept / kept.sum(dim=1, keepdim=True) * each).sum(dim=1).mean()
    assert losses["kd"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"mask": "none", "layers": {"facts": ["hidden"]}},
            "options.layers: says something of masks, but mask is none",
        ),
        ({"mask": "none", "mask_lr": 0.1}, "options.mask_lr: says something of masks, but mask is none"),
        ({"masked_layers": 0}, "options.masked_layers: .* set mask: none"),
        ({"router": "mean", "top_k": 2}, "options.top_k: router mean listens to every teacher"),
        ({"top_k": 0}, "options.top_k: expected 1 to 4"),
        ({"top_k": 5}, "options.top_k: expected 1 to 4"),
        ({"top_k": 3, "mask": "none"}, "options.top_k: expected 1 to 2"),
        ({"top_k": 3, "teachers": "cross_modal"}, "options.top_k: expected 1 to 2"),
        ({"teachers": "multimodal", "layers": {"facts": ["hidden"]}}, "teacher 'facts' takes no part"),
        ({"layers": {"fact": ["hidden"]}}, "unknown teacher 'fact'; did you mean 'facts'"),
        ({"layers": {"multimodal": ["fuse"]}}, "unknown layer 'fuse'"),
        ({"layers": {"multimodal": [], "facts": []}}, "no teacher has a layer that may be masked"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_trained(store, tmp_path, options, says):  # noqa: F811
    with pytest.raises(UserError, match=says):
        _method(store, tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_ablations_take_one_part_away_each(store, tmp_path):  # noqa: F811
    rows = _method(store, tmp_path, top_k=3, layers={"facts": ["hidden"]}).ablations()
    assert rows == {
        "no masks": {"mask": "none", "layers": {}, "mask_lr": 0.0, "top_k": 2},
        "no router": {"router": "mean", "top_k": 1},
        "multimodal": {"teachers": "multimodal", "layers": {}, "top_k": 2},
        "cross-modal": {"teachers": "cross_modal", "layers": {"facts": ["hidden"]}, "top_k": 1},
        "top_k=1": {"top_k": 1},
        "top_k=2": {"top_k": 2},
        "top_k=3": {"top_k": 3},
    }
    for number, options in enumerate(rows.values()):
        said = {"top_k": 3, "layers": {"facts": ["hidden"]}, **options}
        _method(store, tmp_path / str(number), **said)  # every row is a recipe that is not refused
    assert _method(store, tmp_path, router="mean", mask="none", teachers="multimodal").ablations() == {}


def test_variants_of_a_method_share_lone_networks_and_nothing_else(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path / "lone")
    first, second = lab.borrower(tmp_path / "a"), lab.borrower(tmp_path / "b")
    with pytest.raises(TeacherNeededError, match="multimodal"):
        first.trained_teacher("multimodal")
    lab.trained_teacher("multimodal")
    assert first.trained_teacher("multimodal") is second.trained_teacher("multimodal")
    assert first.lone_student() is second.lone_student()
    for variant, options in ((first, MstOptions()), (second, MstOptions(mask="none"))):
        METHODS.get("mst")(variant, options).train()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"mst_collaborate", "mst_masks", "mst"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"mst_collaborate", "mst"}
    assert {path.name for path in (tmp_path / "lone").iterdir()} == {"lone_multimodal", "lone_student"}


def test_the_workload_names_every_phase(store, tmp_path):  # noqa: F811
    assert [work.phase for work in _method(store, tmp_path).workload()] == ["mst_collaborate", "mst_masks", "mst"]
