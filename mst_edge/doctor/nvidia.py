"""JetPack, driver, CUDA, TensorRT, Python and wheels: does what is installed fit together? Facts decide; the tables
say what was to be expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apps.runtime import BundleError
from apps.runtime.board import dialect
from mst_edge.doctor.findings import Finding, Ward
from mst_edge.doctor.nvidia_facts import Facts, Version, read_facts, version

_FLASH = "flash JetPack 6.1 or newer: https://developer.nvidia.com/embedded/jetpack"
_DRIVERS = "https://www.nvidia.com/drivers"
_OPSET = 18  # of the students that we export
_LEAST_PYTHON = (3, 10)  # of what a bundle carries along
# The first driver of each CUDA (CUDA Compatibility, minor version compatibility:
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
_DRIVER_OF = {11: 450, 12: 525, 13: 580}
_TORCH_INDEX = {12: "https://download.pytorch.org/whl/cu126", 13: "https://download.pytorch.org/whl/cu130"}
_REINSTALL = "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"
_LEAST_SM = (7, 5)  # of TensorRT 10 and later


@dataclass(frozen=True)
class JetPack:
    """What a release of JetPack brings (its release notes; docs/jetson.md).

    Attributes:
        l4t: how its Jetson Linux begins.
        wheels: index of pip wheels that are built for it.
    """

    name: str
    l4t: Version
    cuda: Version
    tensorrt: Version
    python: Version
    wheels: str


_JP6, _SBSA = "https://pypi.jetson-ai-lab.io/jp6/cu126", "https://pypi.jetson-ai-lab.io/sbsa/cu130"
JETPACKS = (
    JetPack("5.1", (35,), (11, 4), (8, 5), (3, 8), ""),
    JetPack("6.0", (36, 3), (12, 2), (8, 6), (3, 10), ""),
    JetPack("6.1", (36, 4, 0), (12, 6), (10, 3), (3, 10), _JP6),
    JetPack("6.2", (36, 4), (12, 6), (10, 3), (3, 10), _JP6),
    JetPack("6.2.2", (36, 5), (12, 6), (10, 3), (3, 10), _JP6),
    JetPack("7.0", (38, 2), (13, 0), (10, 13), (3, 12), _SBSA),
    JetPack("7.1", (38, 4), (13, 0), (10, 13), (3, 12), _SBSA),
    JetPack("7.2", (39,), (13, 2), (10, 16), (3, 12), _SBSA),
)


def look_at_nvidia(ward: Ward) -> Iterator[Finding]:
    """What is installed for an NVIDIA chip, and what of it does not fit; nothing where only CPUs are asked about."""
    if any(name == "cuda" or name.startswith("jetson") for name in ward.targets):
        yield from judge(read_facts())


def judge(facts: Facts) -> Iterator[Finding]:
    """Findings about facts: a mismatch is one line with what mends it."""
    if facts.l4t is not None:
        yield from _jetson(facts, facts.l4t)
    elif facts.gpus:
        yield from _host(facts)
    else:
        yield Finding("nvidia", "note", "neither a Jetson nor a GPU with a driver was found", facts=facts.to_dict())


def jetpack_of(l4t: Version) -> JetPack | None:
    """The JetPack that a release of Jetson Linux belongs to."""
    fitting = [one for one in JETPACKS if l4t[: len(one.l4t)] == one.l4t]
    return max(fitting, key=lambda one: len(one.l4t), default=None)


def _jetson(facts: Facts, l4t: Version) -> Iterator[Finding]:
    pack, said = jetpack_of(l4t), facts.to_dict()
    if pack is None:
        text = f"L4T {_text(l4t)} is in no table here: what follows is judged by what is installed"
        yield Finding("jetpack", "note", text, facts=said)
    else:
        text = (
            f"L4T {_text(l4t)} is JetPack {pack.name}, which brings CUDA {_text(pack.cuda)}, "
            f"TensorRT {_text(pack.tensorrt)} and Python {_text(pack.python)}"
        )
        yield Finding("jetpack", "note", f"{facts.board or 'a Jetson'}: {text}", facts=said)
    if "nvidia-jetpack" not in dict(facts.packages):
        fix = "sudo apt update && sudo apt install nvidia-jetpack"
        yield Finding("nvidia-jetpack", "missing", "the package that brings CUDA and TensorRT is not installed", fix)
    yield from _jetson_tensorrt(facts, pack)
    yield from _jetson_python(facts, pack)
    yield from _jetson_wheels(facts, pack)


def _jetson_tensorrt(facts: Facts, pack: JetPack | None) -> Iterator[Finding]:
    library = next((version(said) for name, said in facts.packages if name.startswith("libnvinfer")), None)
    if library is None and facts.trtexec is None:
        yield Finding("tensorrt", "missing", "neither libnvinfer nor trtexec is here", "sudo apt install tensorrt")
        return
    if facts.trtexec is None:
        fix = "sudo apt install libnvinfer-bin"
        yield Finding("trtexec", "missing", "libnvinfer is here, trtexec, which builds engines, is not", fix)
    elif library is not None and library[:2] != facts.trtexec[:2]:
        text = f"trtexec is of TensorRT {_text(facts.trtexec)}, libnvinfer is {_text(library[:3])}"
        yield Finding("trtexec", "broken", text, "sudo apt install --reinstall libnvinfer-bin tensorrt")
    found = facts.trtexec or library or ()
    yield _takes_models(dialect.Version(*(*found, 0, 0)[:3]))
    if pack is not None and found[:2] != pack.tensorrt:
        brings = f"JetPack {pack.name} brings {_text(pack.tensorrt)}"
        text = f"TensorRT {_text(found[:2])} is here, {brings}: what is here counts"
        yield Finding("tensorrt/expected", "note", text)


def _takes_models(found: dialect.Version) -> Finding:
    try:
        spoken = dialect.dialect_of(found)
        dialect.require_opset(found, _OPSET)
    except BundleError as error:
        return Finding("tensorrt", "broken", str(error).partition(";")[0], _FLASH)
    return Finding("tensorrt", "works", f"{found}: flags as for {spoken.name}, reads ONNX opset {_OPSET}")


def _jetson_python(facts: Facts, pack: JetPack | None) -> Iterator[Finding]:
    if "python3-libnvinfer" not in dict(facts.packages):
        fix = "sudo apt install python3-libnvinfer"
        yield Finding("python3-libnvinfer", "missing", "the binding that check.py and bench.py run engines with", fix)
    python = facts.system_python
    if python is None or python < _LEAST_PYTHON:
        text = f"python3 is {_text(python) if python else 'not here'}; bundles need {_text(_LEAST_PYTHON)}"
        yield Finding("python3", "broken", text, _FLASH)
    elif pack is not None and python[:2] != pack.python:
        text = f"python3 is {_text(python)}, JetPack's binding of TensorRT is for {_text(pack.python)}"
        yield Finding("python3", "broken", text, f"run bundles with python{_text(pack.python)}")
    else:
        yield Finding("python3", "works", _text(python))


def _jetson_wheels(facts: Facts, pack: JetPack | None) -> Iterator[Finding]:
    """The public index has CUDA builds for aarch64 servers, not for Orin; bundles need neither of these."""
    if pack is None or not pack.wheels:
        return
    python, wheels = f"python{_text(pack.python)}", dict(facts.wheels)
    if "torch" in wheels and not facts.torch_cuda:
        fix = f"{python} -m pip install --force-reinstall torch --index-url {pack.wheels}"
        yield Finding("torch", "note", f"{wheels['torch']} is a build for the CPU (bundles do not need it)", fix)
    if "onnxruntime" in wheels and "onnxruntime-gpu" not in wheels:
        fix = f"{python} -m pip install onnxruntime-gpu --index-url {pack.wheels}"
        yield Finding("onnxruntime", "note", "is a build for the CPU (bundles do not need it)", fix)


def _host(facts: Facts) -> Iterator[Finding]:
    for number, (name, driver, sm) in enumerate(facts.gpus):
        runs = f", which runs CUDA up to {_text(facts.driver_cuda)}" if facts.driver_cuda else ""
        yield Finding(f"gpu {number}", "works", f"{name}, SM {sm}, driver {driver}{runs}", facts=facts.to_dict())
    yield from _built_for(facts)
    yield from _host_torch(facts)
    yield from _host_onnxruntime(facts)
    yield from _host_tensorrt(facts)


def _built_for(facts: Facts) -> Iterator[Finding]:
    """Whether the driver runs the CUDA that each package was built for."""
    driver, wheels = version(facts.gpus[0][1]), dict(facts.wheels)
    cuda_of_tensorrt = next((name[-2:] for name in wheels if name.startswith("tensorrt-cu")), "")
    built = {"torch": facts.torch_cuda, "onnxruntime": facts.onnxruntime_cuda, "tensorrt": cuda_of_tensorrt}
    for name, cuda in built.items():
        major = version(cuda)[0] if cuda else 0
        least = _DRIVER_OF.get(major, 0)
        if driver[0] < least:
            text = f"was built for CUDA {cuda}, which takes driver {least} or newer; here is {facts.gpus[0][1]}"
            yield Finding(f"{name}/cuda", "broken", text, _older_cuda(name, driver[0], least))


def _older_cuda(package: str, driver: int, least: int) -> str:
    """A newer driver, or a build for a CUDA that this one runs."""
    newer = f"install driver {least} or newer ({_DRIVERS})"
    major = max((cuda for cuda, first in _DRIVER_OF.items() if first <= driver), default=0)
    if package == "torch" and major in _TORCH_INDEX:
        return f"{newer}, or: pip install --force-reinstall torch --index-url {_TORCH_INDEX[major]}"
    if package == "tensorrt" and major:
        return f"{newer}, or: pip uninstall -y tensorrt-cu{major + 1} && pip install tensorrt-cu{major}"
    return newer


def _host_torch(facts: Facts) -> Iterator[Finding]:
    if "torch" in dict(facts.wheels) and not facts.torch_cuda:
        index = _TORCH_INDEX.get((facts.driver_cuda or (0,))[0])
        fix = f"pip install --force-reinstall torch --index-url {index}" if index else f"a newer driver, {_DRIVERS}"
        yield Finding("torch", "note", "is a build for the CPU: training does not use the GPU", fix)


def _host_onnxruntime(facts: Facts) -> Iterator[Finding]:
    wheels = dict(facts.wheels)
    if {"onnxruntime", "onnxruntime-gpu"} <= wheels.keys():
        text = "onnxruntime and onnxruntime-gpu lie in one folder: which one is imported is chance"
        yield Finding("onnxruntime", "broken", text, f"pip uninstall -y onnxruntime onnxruntime-gpu && {_REINSTALL}")
    elif "onnxruntime" in wheels:
        text = "is a build for the CPU: target cuda has TensorRT alone"
        yield Finding("onnxruntime", "note", text, f"pip uninstall -y onnxruntime && {_REINSTALL}")
    if facts.onnxruntime_cuda and not _has_cudnn_9(facts):
        fix = f"pip install nvidia-cudnn-cu{version(facts.onnxruntime_cuda)[0]}"
        yield Finding("cudnn", "missing", "ONNX Runtime 1.19 and later take cuDNN 9, which was not found", fix)


def _has_cudnn_9(facts: Facts) -> bool:
    found = [name for name, _ in facts.packages if name.startswith("libcudnn9")]
    found += [name for name, said in facts.wheels if name.startswith("nvidia-cudnn") and version(said)[0] == 9]
    return bool(found) or bool(facts.torch_cuda)  # which brings its own


def _host_tensorrt(facts: Facts) -> Iterator[Finding]:
    said = next((said for name, said in facts.wheels if name.startswith("tensorrt")), "")
    if not said:
        fix = f"pip install tensorrt-cu{(facts.driver_cuda or (12,))[0]}"
        yield Finding("tensorrt", "missing", "its Python package is not here", fix)
        return
    for name, _, sm in facts.gpus:
        if version(sm) < _LEAST_SM and version(said)[0] >= 10:
            text = f"{said} is for SM {_text(_LEAST_SM)} and newer; {name} has {sm}"
            yield Finding("tensorrt", "broken", text, "use target cpu, or a newer GPU")
            return
    yield Finding("tensorrt", "works", said)


def _text(numbers: Version) -> str:
    return ".".join(str(number) for number in numbers)
