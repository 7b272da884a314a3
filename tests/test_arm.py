"""A run's bundle and builds on an Arm CPU: real aarch64 wheels, emulated. Accuracy alone; times would mean nothing."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import arm
from mst_edge.core.errors import UserError
from mst_edge.run_folder import RunFolder

NEEDED = (arm.QEMU, "apt-get", "dpkg")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install qemu-user-static)")
    return arm.arm(tmp_path_factory.mktemp("arm"))


def test_an_arm_cpu_gives_the_answers_of_this_one(system, finished_run):
    bundle, rows = arm.compare(RunFolder(finished_run), system, 30)
    assert bundle["machine"] == "aarch64"
    assert {row.build for row in rows} >= {"onnxruntime-fp32", "onnxruntime-int8"}
    for row in rows:
        assert row.alike >= 0.95, row
        assert row.largest_difference < (1e-3 if row.build.endswith("fp32") else 0.5), row


def test_without_the_emulator_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(UserError, match=f"needs {arm.QEMU}; .*qemu-user-static"):
        arm.arm(tmp_path)
    assert not any(tmp_path.iterdir())
