"""The doctor: what works is proved, what is missing comes with its command, what is broken with its words."""

from __future__ import annotations

import json
import os

import pytest

from mst_edge.core.extras import EXTRA_OF
from mst_edge.core.machine import Machine
from mst_edge.doctor import checks
from mst_edge.doctor.findings import Ward
from quantize.schemes.base import SCHEMES
from targets.target import get_target
from tests.conftest import mst_edge
from tests.targets.test_proof import shaky_board  # noqa: F401


@pytest.fixture(scope="module")
def report():
    done = mst_edge("doctor", "--target", "cpu", "--json")
    return done, {check["name"]: check["findings"] for check in json.loads(done.out)["checks"]}


def test_every_runtime_and_precision_of_a_target_is_proved(report):
    done, found = report
    assert done.code == (0 if json.loads(done.out)["healthy"] else 1)
    runtimes = [get_target("cpu").runtime(name) for name in get_target("cpu").runtime_classes]
    wanted = [f"cpu/{one.name}/{precision}" for one in runtimes for precision in one.probe().precisions]
    works = [finding["name"] for finding in found["targets"] if finding["state"] == "works"]
    assert sorted(works) == sorted(wanted)


def test_every_scheme_is_listed_with_where_it_runs(report):
    schemes = {finding["name"]: finding for finding in report[1]["schemes"]}
    assert sorted(schemes) == sorted(["fp32", *SCHEMES.names()])
    assert "int8" in schemes["int8-static"]["facts"]["runs"]["cpu/onnxruntime"]


def test_every_extra_is_listed_with_its_version(report):
    assert [finding["facts"]["extra"] for finding in report[1]["packages"]] == list(EXTRA_OF.values())
    torch = next(finding for finding in report[1]["packages"] if finding["name"] == "torch")
    assert (torch["state"], torch["fix"]) == ("works", "")
    assert torch["facts"]["version"]


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(checks, "_version", lambda distribution: "")
    found = {finding.name: finding for finding in checks.look_at_packages(Ward(()))}
    assert {finding.state for finding in found.values()} == {"missing"}
    assert found["scikit-learn"].fix == "pip install 'mst-edge[train]'"
    nncf = next(finding for finding in checks.look_at_schemes(Ward(())) if finding.name == "int8-nncf")
    assert (nncf.state, nncf.text, nncf.fix) == (
        "missing",
        "made by nncf, which takes nncf",
        "pip install 'mst-edge[quantize]'",
    )


def test_a_package_that_cannot_be_imported_is_broken(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise OSError('libavcodec.so: no such file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(checks, "_version", lambda distribution: "18.1" if distribution == "av" else "")
    av = next(finding for finding in checks.look_at_packages(Ward(())) if finding.name == "av")
    assert av.state == "broken"
    assert av.text == "18.1, cannot be imported: OSError: libavcodec.so: no such file"


def test_a_cpu_without_vnni_is_said_to_use_seven_bits(monkeypatch):
    monkeypatch.setattr(checks, "this_machine", lambda: Machine("", "x86_64", "", ("avx2",), 2, 1 << 30, "powersave"))
    found = {finding.name: finding for finding in checks.look_at_cpu(Ward(()))}
    assert "7-bit weights" in found["saturation"].text
    assert found["governor"].fix == "sudo cpupower frequency-set -g performance"


def test_a_target_with_faults_is_broken_and_says_which(shaky_board):  # noqa: F811
    found = {finding.name: finding for finding in checks.look_at_targets(Ward(("shaky_board",)))}
    assert [name for name, finding in found.items() if finding.state == "works"] == ["shaky_board/shaky/fp32"]
    assert found["shaky_board/shaky/w8"].text == "the process died of SIGILL"


def test_a_person_reads_lines_and_an_unknown_target_is_refused():
    done = mst_edge("doctor", "--target", "cup")
    assert done.code == 2
    assert "unknown target 'cup'; did you mean 'cpu'" in done.err
