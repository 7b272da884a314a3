"""What the doctor says of machines with NVIDIA chips: recorded outputs behind programs on PATH, files in a tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from mst_edge.doctor import nvidia_facts, report
from mst_edge.doctor.nvidia import JETPACKS, jetpack_of, judge
from mst_edge.doctor.nvidia_facts import (
    Facts,
    parse_driver_cuda,
    parse_gpus,
    parse_packages,
    parse_release,
    read_facts,
    version,
)
from tests.apps.board import recorded
from tests.conftest import ROOT

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)
PACKAGES = """\
nvidia-jetpack ii  6.2+b77
libnvinfer10 ii  10.3.0.30-1+cuda12.5
python3-libnvinfer ii  10.3.0.30-1+cuda12.5
libcudnn9-cuda-12 ii  9.3.0.75-1
libnvinfer8 un
"""
SMI_TABLE = """\
Mon Feb 26 10:30:45 2024
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.127.05             Driver Version: 550.127.05     CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""
JETSON = Facts(
    "aarch64",
    (3, 11, 9),
    (3, 10, 12),
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    (36, 4, 3),
    parse_packages(PACKAGES),
    (10, 3, 0),
)
HOST = Facts(
    "x86_64",
    (3, 12, 3),
    (3, 12, 3),
    gpus=(("NVIDIA A40", "550.127.05", "8.6"),),
    driver_cuda=(12, 4),
    wheels=(("torch", "2.13.0"), ("onnxruntime-gpu", "1.22.0"), ("tensorrt-cu12", "10.13.3.9")),
    torch_cuda="12.6",
    onnxruntime_cuda="12.8",
)


def said(facts, *names):
    found = {finding.name: finding for finding in judge(facts)}
    return tuple((found[name].state, found[name].text, found[name].fix) for name in names if name in found)


def program(folder, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


def show(text):
    return f"cat <<'END'\n{text}\nEND\n"


# Facts ----------------------------------------------------------------------------------------------------------------


def test_a_jetson_is_read_from_its_files_and_programs(tmp_path, monkeypatch):
    root, programs = tmp_path / "root", tmp_path / "bin"
    for path, text in {
        "etc/nv_tegra_release": RELEASE + "\n# KERNEL_VARIANT: oot\n",
        "proc/device-tree/model": JETSON.board + "\0",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    programs.mkdir()
    program(programs, "dpkg-query", f'[ "$1" = -W ] || exit 2\n{show(PACKAGES)}exit 1\n')
    program(programs, "python3", "echo Python 3.10.12\n")
    (root / "usr/src/tensorrt/bin").mkdir(parents=True)
    program(root / "usr/src/tensorrt/bin", "trtexec", show(recorded.BANNER.format(number="100300", arguments="--help")))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/bin{os.pathsep}/usr/bin")
    facts = read_facts(root)
    assert (
        replace(facts, arch=JETSON.arch, python=JETSON.python, wheels=(), torch_cuda=None, onnxruntime_cuda=None)
        == JETSON
    )


def test_a_host_is_read_through_nvidia_smi(tmp_path, monkeypatch):
    program(
        tmp_path,
        "nvidia-smi",
        f'if [ "$1" ]; then echo "NVIDIA A40, 550.127.05, 8.6"; else {show(SMI_TABLE)}fi\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    facts = read_facts(tmp_path)
    assert (facts.gpus, facts.driver_cuda, facts.l4t) == (HOST.gpus, (12, 4), None)


def test_parsers_take_what_is_there_and_nothing_else():
    assert parse_release(RELEASE) == (36, 4, 3)
    assert parse_release("# R39 (release), REVISION: 2.0, GCID: 1") == (39, 2, 0)
    assert parse_release("Ubuntu 22.04") is None
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver, sorry.\n") == ()
    assert parse_gpus("Orin (nvgpu), N/A, N/A\n") == ()
    assert parse_driver_cuda("no table") is None
    assert version("10.3.0.30-1+cuda12.5") == (10, 3, 0, 30)
    assert dict(parse_packages(PACKAGES)) == {
        "nvidia-jetpack": "6.2+b77",
        "libnvinfer10": "10.3.0.30-1+cuda12.5",
        "python3-libnvinfer": "10.3.0.30-1+cuda12.5",
        "libcudnn9-cuda-12": "9.3.0.75-1",
    }


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg-query here")
def test_the_real_dpkg_query_understands_how_it_is_asked():
    done = subprocess.run([*nvidia_facts._DPKG, "dpkg", "no-such-package"], capture_output=True, text=True, check=False)
    ((name, number),) = parse_packages(done.stdout)
    assert name == "dpkg"
    assert version(number) > (1,)


def test_what_a_wheel_was_built_for_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "some_wheel").mkdir()
    (tmp_path / "some_wheel" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for line, cuda in [("cuda: Optional[str] = '12.6'", "12.6"), ("cuda: Optional[str] = None", "")]:
        (tmp_path / "some_wheel" / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = '9.9'\n")
        assert nvidia_facts._said_in("some_wheel", "version.py", "cuda") == cuda
    assert nvidia_facts._said_in("no_such_package", "version.py", "cuda") is None


# Jetsons --------------------------------------------------------------------------------------------------------------


def test_a_jetson_as_it_was_flashed_is_fine():
    assert [finding.name for finding in judge(JETSON) if finding.fix] == []
    assert said(JETSON, "tensorrt", "python3") == (
        ("works", "10.3.0: flags as for 8.6 to 10.11, reads ONNX opset 18", ""),
        ("works", "3.10.12", ""),
    )
    ((state, text, _),) = said(JETSON, "jetpack")
    assert state == "note"
    assert text.endswith("L4T 36.4.3 is JetPack 6.2, which brings CUDA 12.6, TensorRT 10.3 and Python 3.10")


@pytest.mark.parametrize(
    ("l4t", "name"),
    [
        ((35, 6, 2), "5.1"),
        ((36, 3, 0), "6.0"),
        ((36, 4, 0), "6.1"),
        ((36, 4, 7), "6.2"),
        ((36, 5, 0), "6.2.2"),
        ((38, 2, 1), "7.0"),
        ((38, 4, 0), "7.1"),
        ((39, 2, 0), "7.2"),
    ],
)
def test_which_jetpack_a_release_is(l4t, name):
    assert jetpack_of(l4t).name == name


def test_a_release_that_no_table_knows_is_judged_by_what_is_there():
    later = replace(
        JETSON, l4t=(40, 1, 0), trtexec=(11, 5, 0), packages=(("nvidia-jetpack", "8"), ("python3-libnvinfer", "11"))
    )
    ((state, text, _),) = said(later, "jetpack")
    assert (state, "in no table" in text) == ("note", True)
    assert said(later, "tensorrt") == (("works", "11.5.0: flags as for 11, reads ONNX opset 18", ""),)
    assert jetpack_of((40, 1, 0)) is None
    assert len({one.name for one in JETPACKS}) == len(JETPACKS)


def test_what_is_missing_on_a_jetson_comes_with_its_apt_command():
    bare = replace(JETSON, packages=(), trtexec=None)
    assert [row[::2] for row in said(bare, "nvidia-jetpack", "tensorrt", "python3-libnvinfer")] == [
        ("missing", "sudo apt update && sudo apt install nvidia-jetpack"),
        ("missing", "sudo apt install tensorrt"),
        ("missing", "sudo apt install python3-libnvinfer"),
    ]
    no_program = replace(JETSON, trtexec=None)
    assert said(no_program, "trtexec")[0][::2] == ("missing", "sudo apt install libnvinfer-bin")
    assert said(no_program, "tensorrt")[0][0] == "works"


def test_a_tensorrt_that_is_too_old_for_our_files_is_broken():
    flash = "flash JetPack 6.1 or newer: https://developer.nvidia.com/embedded/jetpack"
    old = replace(JETSON, l4t=(36, 3, 0), trtexec=(8, 6, 2), packages=(("libnvinfer8", "8.6.2.3-1+cuda12.2"),))
    text = "TensorRT: 8.6.2 reads ONNX opset 17 at most, the model is of 18"
    assert said(old, "tensorrt") == (("broken", text, flash),)
    older = replace(old, l4t=(35, 4, 1), trtexec=(8, 5, 2), packages=(), system_python=(3, 8, 10))
    assert said(older, "tensorrt", "python3") == (
        ("broken", "TensorRT: is 8.5.2; 8.6 is the oldest that is known".partition(";")[0], flash),
        ("broken", "python3 is 3.8.10; bundles need 3.10", flash),
    )


def test_parts_of_a_jetson_that_do_not_belong_together():
    mixed = replace(JETSON, trtexec=(10, 7, 0), system_python=(3, 12, 1))
    assert said(mixed, "trtexec", "tensorrt/expected", "python3") == (
        (
            "broken",
            "trtexec is of TensorRT 10.7.0, libnvinfer is 10.3.0",
            "sudo apt install --reinstall libnvinfer-bin tensorrt",
        ),
        ("note", "TensorRT 10.7 is here, JetPack 6.2 brings 10.3: what is here counts", ""),
        ("broken", "python3 is 3.12.1, JetPack's binding of TensorRT is for 3.10", "run bundles with python3.10"),
    )


def test_wheels_for_the_cpu_on_a_jetson_are_said_with_the_index_that_has_others():
    plain = replace(JETSON, wheels=(("torch", "2.8.0+cpu"), ("onnxruntime", "1.22.0")), torch_cuda="")
    assert [row[::2] for row in said(plain, "torch", "onnxruntime")] == [
        (
            "note",
            "python3.10 -m pip install --force-reinstall torch --index-url https://pypi.jetson-ai-lab.io/jp6/cu126",
        ),
        ("note", "python3.10 -m pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"),
    ]
    built = replace(plain, wheels=(("torch", "2.8.0"),), torch_cuda="12.6")
    assert said(built, "torch", "onnxruntime") == ()


# Hosts ----------------------------------------------------------------------------------------------------------------


def test_a_host_that_fits_together():
    assert [finding.name for finding in judge(HOST) if finding.fix] == []
    ((state, text, _),) = said(HOST, "gpu 0")
    assert (state, text) == ("works", "NVIDIA A40, SM 8.6, driver 550.127.05, which runs CUDA up to 12.4")


def test_packages_for_a_newer_cuda_than_the_driver_runs():
    """Of one major CUDA, any driver since its first runs all; so 12.8 is fine on a driver of 12.4."""
    newer = replace(
        HOST,
        torch_cuda="13.0",
        onnxruntime_cuda="13.0",
        wheels=(("torch", "2.13.0"), ("onnxruntime-gpu", "1.30.0"), ("tensorrt-cu13", "11.4.0.106")),
    )
    driver = "install driver 580 or newer (https://www.nvidia.com/drivers)"
    index = "https://download.pytorch.org/whl/cu126"
    text = "was built for CUDA 13.0, which takes driver 580 or newer; here is 550.127.05"
    assert said(newer, "torch/cuda", "onnxruntime/cuda", "tensorrt/cuda") == (
        ("broken", text, f"{driver}, or: pip install --force-reinstall torch --index-url {index}"),
        ("broken", text, driver),
        (
            "broken",
            text.replace("13.0", "13"),
            f"{driver}, or: pip uninstall -y tensorrt-cu13 && pip install tensorrt-cu12",
        ),
    )
    assert said(replace(newer, gpus=(("NVIDIA A40", "580.65.06", "8.6"),)), "torch/cuda", "tensorrt/cuda") == ()


def test_two_onnxruntimes_in_one_folder_are_broken():
    both = replace(HOST, wheels=(*HOST.wheels, ("onnxruntime", "1.31.1")))
    ((state, _, fix),) = said(both, "onnxruntime")
    assert state == "broken"
    assert fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_builds_for_the_cpu_and_what_is_missing_on_a_host():
    bare = replace(
        HOST, wheels=(("torch", "2.13.0+cpu"), ("onnxruntime", "1.31.1")), torch_cuda="", onnxruntime_cuda=""
    )
    assert [row[::2] for row in said(bare, "torch", "onnxruntime", "tensorrt")] == [
        ("note", "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"),
        ("note", "pip uninstall -y onnxruntime && pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"),
        ("missing", "pip install tensorrt-cu12"),
    ]
    no_cudnn = replace(HOST, torch_cuda=None, wheels=HOST.wheels[1:])
    assert said(no_cudnn, "cudnn")[0][::2] == ("missing", "pip install nvidia-cudnn-cu12")
    assert said(replace(no_cudnn, packages=(("libcudnn9-cuda-12", "9.3"),)), "cudnn") == ()


def test_a_chip_that_tensorrt_no_longer_takes():
    volta = replace(HOST, gpus=(("Tesla V100", "550.127.05", "7.0"),))
    assert said(volta, "tensorrt") == (
        ("broken", "10.13.3.9 is for SM 7.5 and newer; Tesla V100 has 7.0", "use target cpu, or a newer GPU"),
    )


# The command ----------------------------------------------------------------------------------------------------------


def test_the_report_has_the_facts_for_machines(tmp_path, monkeypatch, capsys):
    program(
        tmp_path,
        "nvidia-smi",
        f'if [ "$1" ]; then echo "NVIDIA A40, 550.127.05, 8.6"; else {show(SMI_TABLE)}fi\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(report, "CHECKS", [check for check in report.CHECKS if check.name == "nvidia"])
    assert report.examine(["cpu"], as_json=True)
    assert json.loads(capsys.readouterr().out)["checks"][0]["findings"] == []
    assert report.examine(["jetson-thor"], as_json=True)  # nothing is broken: TensorRT is missing
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    found = {finding["name"]: finding for finding in check["findings"]}
    assert found["gpu 0"]["facts"]["gpus"] == [["NVIDIA A40", "550.127.05", "8.6"]]
    assert found["tensorrt"]["fix"] == "pip install tensorrt-cu12"


def test_all_targets_are_healthy_without_a_gpu_and_one_that_was_named_is_not(monkeypatch):
    from mst_edge.doctor import checks
    from mst_edge.doctor.findings import Ward
    from targets import nvml

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(nvml.ctypes, "CDLL", absent)
    for asked, state in [(False, "note"), (True, "broken")]:
        found = {finding.name: finding for finding in checks.look_at_targets(Ward(("cuda",), asked=asked))}
        assert found["cuda"].state == state
        assert found["cuda/tensorrt"].state == "missing"
        assert found["cuda/tensorrt"].fix.startswith("install the driver of the GPU")


def test_the_page_has_the_table_of_jetpacks():
    page = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    for one in JETPACKS:
        cells = (".".join(map(str, numbers)) for numbers in (one.l4t, one.cuda, one.tensorrt, one.python))
        assert f"| {one.name} | {' | '.join(cells)} |" in page
