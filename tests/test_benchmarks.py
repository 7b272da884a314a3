"""The speed benchmark runs and prints its table; both of its sides compute the same losses."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from benchmarks import contestants, quantization, runtimes, text
from benchmarks.distill_speed import Ours, Plain, Plan, TakesTurns, main, make_store
from benchmarks.peak import Peak
from benchmarks.plain_mst import PlainMst
from distill.lab import OptimizerChoice, freeze
from distill.masks import SpecialisedTeacher
from distill.methods.base import METHODS
from distill.mst_options import PAPER, MstOptions
from distill.networks.registry import NETWORKS, NetworkChoice
from distill.tasks import Classification
from mst_edge.core.stats import Interval
from mst_edge.recipe import find_recipe, load_recipe
from targets.target import target_names
from tests.distill.test_training import make_lab, store  # noqa: F401

SMALL = {
    "student": (("image",), "lenet5"),
    "multimodal": (("image", "audio"), "fusion"),
    "audio": (("audio",), "small_cnn"),
}


def test_the_benchmark_prints_its_table(capfd):
    main(
        [
            "--samples",
            "16,16,16",
            "--batch-size",
            "8",
            "--side",
            "16",
            "--repeats",
            "1",
            "--clock",
            "cpu",
            "--stages",
            "3",
        ],
        SMALL,
    )
    first, *lines = capfd.readouterr().out.splitlines()
    assert re.match(r"lone LeNet-5: [\d,]+ samples/s", first)
    (row,) = [line.split("|")[1:-1] for line in lines if re.match(r"\| \d ", line)]
    assert [cell.strip()[-2:] for cell in (row[5], row[6], row[7])] == [" s", "MB", "MB"]
    assert len(row) == 9


@pytest.mark.parametrize("stage", [1, 2])
def test_both_sides_of_the_other_stages_take_turns(tmp_path, stage):
    plan = Plan(samples=(16, 16, 16), batch_size=8, repeats=2, side=16, clock="cpu", networks=SMALL)
    data = make_store(tmp_path / "data", plan)
    watch = TakesTurns(16, Plain(data, plan, stage).turn, plan.now)
    Ours(data, tmp_path / "ours", plan).stage(stage, watch)
    assert [turn.ours > 0 and turn.plain > 0 for turn in watch.turns] == [True, True]


@pytest.fixture
def sides(store, tmp_path):  # noqa: F811
    """Our method and the plain rendering on the same networks, with the same weights and masks."""
    lab = make_lab(
        store,
        tmp_path,
        student=NetworkChoice("tcn"),
        optimizer=OptimizerChoice(lr=1e-4, schedule="constant"),
        task=Classification(3),
        teachers={
            "multimodal": (("facts", "signal"), NetworkChoice("fusion", {"dropout": 0.0})),
            "facts": (("facts",), NetworkChoice("mlp")),
        },
    )
    method = METHODS.get("mst")(lab, MstOptions(**PAPER))
    student, teachers = lab.new_student(), {name: lab.new_teacher(name) for name in lab.teachers}
    networks = {
        "student": (("signal",), "tcn"),
        "multimodal": (("facts", "signal"), "fusion"),
        "facts": (("facts",), "mlp"),
    }
    plain = PlainMst(store.shapes, 3, networks)
    for name, model in (("student", student), *teachers.items()):
        plain.models[name].module.load_state_dict(model.module.state_dict())
        if name == "multimodal":
            plain.models[name].module.dropout.p = 0.0
    return lab, method, student, teachers, plain


def _batches(lab, phase):
    """The batches of a phase's first epoch."""
    seed = [lab.session.seed_for(phase, "order"), 0]
    return list(lab.store.shuffled("train", lab.session.batch_size, seed, ("facts", "signal"), torch.device("cpu")))


def _epoch(plain, stage, batches):
    """Mean losses of one epoch of the rendering."""
    said = [(plain.step(stage, batch.inputs, batch.target), len(batch.ids)) for batch in batches]
    total = sum(size for _, size in said)
    return {name: sum(losses[name] * size for losses, size in said) / total for name in said[0][0]}


def test_stage_one_learns_as_the_plain_rendering_does(sides):
    lab, method, student, teachers, plain = sides
    expected = _epoch(plain, 1, _batches(lab, "mst_collaborate"))
    method._collaborate(student, teachers)
    assert lab.histories["mst_collaborate"][0]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert lab.histories["mst_collaborate"][0]["mutual"] == pytest.approx(expected["mutual"], rel=1e-3)


def test_stage_two_learns_as_the_plain_rendering_does(sides):
    lab, method, student, teachers, plain = sides
    specialised = _same_masks(method, teachers, plain)
    expected = _epoch(plain, 2, _batches(lab, "mst_masks"))
    for model in (student, *teachers.values()):
        freeze(model)
    method._train_masks(student, specialised)
    history = lab.histories["mst_masks"][0]
    for special in specialised:
        assert history[special.name] == pytest.approx(expected[special.name], rel=1e-3)


def test_stage_three_learns_as_the_plain_rendering_does(sides):
    lab, method, student, teachers, plain = sides
    specialised = _same_masks(method, teachers, plain)
    for special in (*specialised, *plain.specialised):
        special.mask.eval()
    for model in teachers.values():
        freeze(model)
    for name in teachers:
        plain.models[name].module.eval()
    plain.router.load_state_dict(method._router(len(specialised)).state_dict())
    expected = _epoch(plain, 3, _batches(lab, "mst"))
    method._distill(student, specialised)
    history = lab.histories["mst"][0]
    for name in ("task", "kd", "loss"):
        assert history[name] == pytest.approx(expected[name], rel=1e-3)


def _same_masks(method, teachers, plain) -> list[SpecialisedTeacher]:
    specialised = method._fresh(teachers)
    for own, other in zip(specialised, plain.specialised, strict=True):
        assert (own.name, own.layer) == (other.name, other.layer)
        own.mask.load_state_dict(other.mask.state_dict())
    return specialised


def test_the_table_of_schemes_has_a_row_per_build_and_marks_the_chosen_one(finished_run):
    result = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))
    (target,) = result["targets"]
    rows = list(quantization.table("A student", result))
    assert rows[0].startswith("**A student**: accuracy ")
    assert len(rows) == 4 + len(target["builds"]) + len(target["skipped"]) + len(result["skipped_schemes"])
    assert sum(f"**`{target['chosen']}`**" in row for row in rows) == 1
    assert {row.count("|") for row in rows[2:]} == {8}
    fp32 = min(b["measurement"]["latency"]["p50_ms"] for b in target["builds"] if b["precision"] == "fp32")
    int8 = next(b for b in target["builds"] if b["id"] == "onnxruntime-int8")
    (row,) = [row for row in rows if row.startswith("|") and "`onnxruntime-int8`" in row.split("|")[1]]
    assert row.split("|")[-2].strip() == f"{int8['measurement']['latency']['p50_ms'] / fp32:.2f}"
    assert quantization.chosen_row("A student", result).endswith("| - |")


def test_every_student_of_the_benchmark_is_a_sound_recipe(tmp_path):
    for contender in quantization.STUDENTS.values():
        settings = [setting.replace("{out}", str(tmp_path)) for setting in contender.settings]
        recipe = load_recipe(find_recipe(contender.recipe), settings)
        assert NETWORKS.get(recipe.student.network)


def test_our_build_meets_what_a_user_has_without_it_on_the_same_samples(finished_run, monkeypatch):
    few = (contestants.TorchEager.name, contestants.DefaultOnnxRuntime.name)
    monkeypatch.setattr(contestants.Contest, "spec", replace(contestants.Contest.spec, runtimes=few))
    peak = Peak({"fp32": 1e9, "bf16": 2e9, "int8": 4e9}, 1e9)
    found = runtimes.contest(finished_run, lambda threads: peak, 0.1)
    (target,) = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))["targets"]
    chosen = next(row for row in target["builds"] if row["id"] == target["chosen"])
    assert found.build == chosen["id"]
    assert [row.name for row in found.rows] == ["ours", *few]
    ours, eager, default = found.rows
    assert ours.accuracy == chosen["accuracy"]["value"]
    assert eager.accuracy == pytest.approx(target["fp32_accuracy"])
    assert default.holds
    assert eager.slower.low <= eager.slower.estimate <= eager.slower.high
    arithmetic = {"int8": 4e9, "bf16": 2e9, "int8-bf16": 4e9}.get(chosen["precision"], 1e9)
    least_s = max(found.operations / arithmetic, chosen["measurement"]["size_bytes"] / 1e9)
    assert found.roofline == pytest.approx(1e3 * least_s / ours.p50_ms)
    rows = "\n".join(runtimes.lines(found))
    assert ("BEATEN" in rows) == bool(found.beaten_by)
    assert "contest" not in target_names()  # known only as long as it is needed


def test_a_contender_beats_us_only_within_the_goal_and_beyond_noise():
    def row(name, low, high, *, holds=True):
        return runtimes.Row(name, 0.8, holds, 1.0, 1.1, Interval((low + high) / 2, low, high))

    rows = (row("ours", 1, 1), row("a", 0.7, 0.9), row("b", 0.7, 0.9, holds=False), row("c", 0.9, 1.01))
    student = runtimes.Result("s", "b", rows, 1e6, 1.0, 0.5, 49.0, "", ())
    assert student.beaten_by == ["a"]
    assert student.overhead_holds  # 5 % of a millisecond
    assert not replace(student, overhead_us=51.0).overhead_holds


def test_macro_f1_is_sklearns():
    rng = np.random.default_rng(0)
    target, said = rng.integers(0, 4, 200), rng.integers(0, 5, 200)  # a class that is said and never true
    assert text.macro_f1(said, target) == pytest.approx(f1_score(target, said, average="macro", zero_division=0))
