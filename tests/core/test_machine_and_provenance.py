from __future__ import annotations

import json

from mst_edge.core.machine import this_machine, usable_cores
from mst_edge.core.provenance import provenance


def test_machine_says_what_results_depend_on():
    machine = this_machine()
    assert machine.cpu != "unknown"
    assert machine.cores == usable_cores() >= 1
    assert machine.memory_bytes > 1 << 28
    assert set(machine.isa) <= {
        *("avx2", "avx512", "vnni", "bf16", "amx", "amx_int8", "amx_bf16"),
        *("dotprod", "i8mm", "fp16", "sve"),
    }


def test_provenance_is_json_with_tools_machine_and_the_callers_facts():
    record = json.loads(json.dumps(provenance(seed=3)))
    assert record["seed"] == 3
    assert {"python", "numpy", "onnxruntime"} <= set(record["tools"])
    assert record["machine"]["cores"] >= 1
