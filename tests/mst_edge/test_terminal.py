"""What a person reads at the end of a run, where that is more than a record's words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mst_edge.report.table import print_verdict


def _row(name, noise, p90_ms, rounds):
    latency = {"noise": noise, "p50_ms": 1.0, "p90_ms": p90_ms, "rounds_p50_ms": rounds}
    return {"id": name, "verdict": {"reason": f"of {name}"}, "measurement": {"latency": latency, "conditions": None}}


@pytest.mark.parametrize(
    ("noisy", "said"),
    [
        ((), None),
        (("b",), "noisy: b; p90 up to 1.50 x p50, medians of rounds differ by up to 40%"),
        (("a", "b"), "noisy: all builds; p90 up to 1.70 x p50, medians of rounds differ by up to 40%"),
    ],
)
def test_noise_is_one_line_with_the_worst_of_it(noisy, said, tmp_path):
    rows = [_row("a", "noisy" if "a" in noisy else "", 1.7, [1.0, 1.1])]
    rows += [_row("b", "noisy" if "b" in noisy else "", 1.5, [0.8, 1.2])]
    target = {"gate": "passed", "chosen": "a", "builds": rows, "tuning": [], "skipped": [], "bundle": "cpu"}
    out = io.StringIO()
    print_verdict(Console(file=out, width=200), target, tmp_path)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[1:3] == ["a: of a", "b: of b"]
    assert [line for line in lines if line.startswith("noisy")] == ([said] if said else [])
