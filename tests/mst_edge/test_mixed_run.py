"""A run that searches for mixed precision on its target."""

from __future__ import annotations

import json

from mst_edge.core.files import read_json
from tests.conftest import mst_edge, write_arrays, write_small_recipe


def test_a_run_searches_on_its_target_and_builds_what_it_found(tmp_path):
    recipe = write_small_recipe(
        tmp_path / "r.yaml",
        write_arrays(tmp_path / "data"),
        distill={"method": "lone", "compare": [], "epochs": {"collaborate": 1, "distill": 1}},
        quantize={
            "schemes": ["int8-static", "int8-mixed"],
            "calibration": {"samples": 32},
            "mixed": {"trials": 3, "minutes": 5, "samples": 30},
        },
    )
    done = mst_edge("run", recipe, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    record = read_json(tmp_path / "out" / "variants" / "search" / "cpu" / "search.json")
    assert record["ended"].startswith("the trials are spent")
    assert {b["build"] for t in record["trials"] for b in t["builds"]} >= {"onnxruntime-int8", "openvino-int8"}
    (variant,) = [row for row in result["variants"] if row["scheme"] == "int8-mixed"]
    assert variant["target"] == "cpu"
    assert variant["facts"]["chosen"] == record["chosen"]
    builds = {row["id"]: row for row in result["targets"][0]["builds"]}
    assert {"onnxruntime-mixed-cpu", "openvino-mixed-cpu"} <= set(builds)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Mixed precision" in page
    assert "the median latency of the float network" in page
