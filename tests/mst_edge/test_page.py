"""What the report says, where that takes more than a run to see."""

from __future__ import annotations

import re

import pytest

from mst_edge.core.files import read_json, write_json
from mst_edge.report.page import _headline, write_report
from mst_edge.run_folder import RunFolder


@pytest.mark.parametrize(
    ("conditions", "note"),
    [
        (None, "p50 1.000 ms, 1 thread(s), batch 1"),
        ({"problems": []}, "p50 1.000 ms, 1 thread(s), batch 1"),
        ({"problems": ["throttled: hot"]}, "p50 1.000 ms, 1 thread(s), batch 1; invalid, throttled: hot"),
    ],
)
def test_the_tile_of_latency_says_where_it_is_invalid(conditions, note):
    measured = {
        "latency": {"p50_ms": 1.0, "p90_ms": 2.0, "threads": 1},
        "size_bytes": 10,
        "peak_memory_mb": 1.0,
        "load_ms": 1.0,
        "conditions": conditions,
    }
    row = {
        "id": "a",
        "measurement": measured,
        "accuracy": {"value": 0.5, "relative_drop": {"estimate": 0.0}},
        "verdict": {"chosen": True},
    }
    scoring = {"higher_is_better": True, "label": "accuracy"}
    target = {"target": "cpu", "on_host": True, "builds": [row], "chosen": "a", "scoring": scoring}
    (tile,) = (tile for tile in _headline({"targets": [target]}) if tile["name"].startswith("latency"))
    assert tile["note"] == note


def test_the_report_shows_how_loyal_a_student_is_to_each_teacher_and_to_their_mean(finished_run, tmp_path):
    result, run = read_json(finished_run / "result.json"), RunFolder(tmp_path)
    rows = [("multimodal", 0.25, 0.9, 0.8125, 0.75), ("mean of the teachers", 1.0, 0.91, 0.84, 0.777)]
    keys = ("name", "weight", "accuracy", "label", "probability")
    result["distill"]["insights"]["multi_teacher"] = {"loyalty": [dict(zip(keys, row, strict=True)) for row in rows]}
    write_json(run.result_file, result)
    write_json(run.distill / "histories.json", read_json(finished_run / "distill" / "histories.json"))
    page = write_report(run).read_text(encoding="utf-8")
    shown = re.search(r"How loyal the multi_teacher student is to its teachers.*?</table>", page, re.DOTALL)
    assert shown
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in shown[0].split("<tr>")[2:]]
    assert cells == [
        ["multimodal", "0.25", "90.0%", "81.2%", "75.0%"],
        ["mean of the teachers", "", "91.0%", "84.0%", "77.7%"],
    ]
