"""What the report's first lines say of a measurement that does not count."""

from __future__ import annotations

import pytest

from mst_edge.report.page import _headline


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
