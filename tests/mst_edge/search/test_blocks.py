"""Students cut into blocks: what a block is, that blocks export as they compute, and what a table makes of them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import NoOptions
from distill.mels import LogMelOptions
from distill.networks.registry import NetworkChoice
from distill.networks.transformer import EncoderBlock
from distill.student import Student, StudentSpec
from mst_edge.core.cache import cache_root, entries
from mst_edge.core.scoring import OutputSpec
from mst_edge.recipe import Recipe
from mst_edge.search.blocks import Block, cut, export_blocks, overhead
from mst_edge.search.latency import KIND, BlockTable, benches, excess
from targets.gate import Goals, LatencyGoal

MAP = ModalitySpec("map", Kind.IMAGE, (24, 30), "float32")
VECTOR = ModalitySpec("vector", Kind.VECTOR, (40,), "float32")
SOUND = ModalitySpec("sound", Kind.AUDIO, (2000,), "int16", 8000)


def _student(network: str, modality=MAP, frontend=None, **options) -> Student:
    choice, output = NetworkChoice(network, options), OutputSpec("classification", ("a", "b", "c"))
    return Student(StudentSpec(modality, frontend or NoOptions(), choice, output)).eval()


def _paths(student: Student) -> list[str]:
    return [block.path for block in cut(student)]


@pytest.mark.parametrize(
    ("network", "options", "paths"),
    [
        (
            "ds_cnn",
            {"blocks": 2},
            ["stem", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "head"],
        ),
        ("small_cnn", {}, ["stages.0", "stages.1", "stages.2", "stages.3", "stages.4", "stages.5", "stages.6"]),
        ("vit", {"depth": 2}, ["blocks.0", "blocks.1", "norm", "tokens", "squeeze", "head", "patches"]),
    ],
)
def test_a_student_is_cut_into_front_end_stem_blocks_and_head(network, options, paths):
    found = _paths(_student(network, **options))
    more = ["squeeze", "head"] if network == "small_cnn" else []
    assert found == ["frontend", *(f"network.{path}" for path in [*paths, *more])]


def test_blocks_are_the_same_where_structure_and_sizes_are_whatever_the_weights():
    torch.manual_seed(0)
    one = {block.path: block.signature for block in cut(_student("ds_cnn", blocks=2))}
    torch.manual_seed(1)
    other = {block.path: block.signature for block in cut(_student("ds_cnn", blocks=4))}
    assert {path: other[path] for path in one} == one
    assert one["network.blocks.0.0"] == one["network.blocks.1.0"] != one["network.blocks.0.1"]
    wide = {block.path: block.signature for block in cut(_student("ds_cnn", blocks=2, width=2))}
    assert not {*wide.values()} & {*one.values()} - {one["frontend"]}
    fewer = cut(_student("ds_cnn", SOUND, LogMelOptions(mels=20)))
    more = cut(_student("ds_cnn", SOUND, LogMelOptions(mels=24)))
    assert fewer[0].path == more[0].path == "frontend"
    assert fewer[0].signature != more[0].signature


def _masked_attention() -> Block:
    torch.manual_seed(0)
    x, visible = torch.zeros(1, 5, 16), torch.tensor([[True, True, True, False, False]])
    return Block("attention", EncoderBlock(16, 1, 32).eval(), (x, visible), "")


def test_exported_blocks_compute_what_their_modules_do(tmp_path):
    """Attention reads a mask beside its input."""
    blocks = [*cut(_student("bc_resnet"))[1:3], _masked_attention(), overhead()]
    for block, variant in zip(blocks, export_blocks(blocks, tmp_path), strict=True):
        session = onnxruntime.InferenceSession(variant.model)
        assert variant.input.shape == tuple(block.inputs[0].shape[1:])
        x = np.random.default_rng(0).normal(size=block.inputs[0].shape).astype(np.float32)
        with torch.no_grad():
            expected = block.module(torch.from_numpy(x), *block.inputs[1:]).flatten(1)
        (found,) = session.run(None, {variant.input.name: x})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_a_table_measures_each_block_once_and_adds_up():
    recipe = Recipe(name="x", dataset={"name": "av_digits"}, student={"modality": "audio"})
    (bench,) = benches(recipe)
    said: list[str] = []
    table = BlockTable(bench, said.append)
    small, large = (_student("mlp", VECTOR, width=width) for width in (0.25, 0.5))
    predicted = table.predict([small, large])
    costs = table.costs_ms
    assert len(costs) == 1 + 1 + 2 * 3  # nothing, the front end, and three layers of each
    for student, ms in zip((small, large), predicted, strict=True):
        parts = [overhead(), *cut(student)]
        assert ms == pytest.approx(sum(costs[block.signature] for block in parts))
    assert all(cost >= 0 for cost in costs.values())
    assert costs[overhead().signature] > 0
    kept = [entry.depends_on["block"] for entry in entries(cache_root(), [KIND])]
    assert {*costs} <= {*kept}
    said.clear()
    assert BlockTable(bench, said.append).predict([large, small]) == predicted[::-1]
    assert not said, "a block was measured again"


def test_how_far_goals_are_missed_is_summed_over_them_and_a_lower_percentile_bounds_a_higher_one():
    goals = Goals(latency=LatencyGoal(p50_ms=2.0, p90_ms=4.0), max_size_mb=1.0)
    assert excess(goals, 1.0, 2.0) == excess(goals, 0.1, 1.0, 4.0, 90.0) == 0
    assert excess(goals, 1.5, 3.0) == pytest.approx(0.5 + 0.5)
    assert excess(goals, 1.0, 5.0) == pytest.approx(1.5 + 0.25)
    assert excess(Goals(), 1e9, 1e9) == 0
