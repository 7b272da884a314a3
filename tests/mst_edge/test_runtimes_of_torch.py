"""A run's student on runtimes that take torch: measured and judged beside the others, and in no bundle."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

from apps.runtime.manifest import read_manifest
from mst_edge.core.errors import UserError
from targets.target import Skipped, get_target, require_runtimes
from tests.conftest import mst_edge


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")
def test_executorch_is_measured_and_not_packed(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    command = ["deploy", run, "--target", "cpu", "--runtime", "executorch", "--runtime", "onnxruntime", "--json"]
    done = mst_edge(*command)
    assert done.code == 0, done.err
    (target,) = json.loads(done.out)["targets"]
    rows = {row["id"]: row for row in target["builds"]}
    assert {row["runtime"] for row in rows.values()} == {"onnxruntime", "executorch"}
    found = rows["executorch-fp32"]
    assert (found["deployable"], found["verdict"]["passed"], found["verdict"]["chosen"]) == (False, True, False)
    assert found["measurement"]["latency"]["p50_ms"] > 0
    assert found["parity"] < 1e-3
    manifest = read_manifest(run / target["bundle"])
    assert {build.runtime for build in manifest.builds} == {"onnxruntime"}
    assert (run / "builds" / "cpu" / "executorch-fp32" / "model.pte").is_file()


def test_a_file_has_no_torch_program(finished_run, tmp_path):
    """Nor has a variant that was made of the graph."""
    from quantize.variant import load_variant

    target = get_target("cpu")
    graphs = [load_variant(finished_run / "variants" / "int8")]
    for name in ("executorch", "aotinductor"):
        if not target.runtime(name).probe().available:
            continue
        (said,) = target.build_all(graphs, 1, tmp_path, runtimes=[name])
        assert said == Skipped(name, "not applicable: compiles the torch program of a run's student, and there is none")


def test_runtimes_are_checked_before_anything_runs():
    require_runtimes(["cpu", "jetson-thor"], ["openvino", "executorch"], "--runtime")
    with pytest.raises(UserError, match="measure.runtimes: unknown runtime 'openvin'; did you mean 'openvino'"):
        require_runtimes(["cpu"], ["onnxruntime", "openvin"], "measure.runtimes")
    with pytest.raises(UserError, match="unknown target 'cup'"):
        require_runtimes(["cup"], [], "--runtime")


def test_by_default_a_target_builds_with_what_bundles_run_with():
    target = get_target("cpu")
    assert all(target.runtime(name).deployable for name in target.chosen_runtimes(()))
    assert target.chosen_runtimes(["aotinductor", "onnxruntime", "tensorrt"]) == ("onnxruntime", "aotinductor")
