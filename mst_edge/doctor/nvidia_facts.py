"""What a machine with an NVIDIA chip has installed: asked of its own programs and files, never assumed."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from apps.runtime import BundleError
from apps.runtime.board.dialect import parse_version

Version = tuple[int, ...]
_SECONDS = 20.0
_TRTEXEC = "usr/src/tensorrt/bin/trtexec"
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_CUDA = re.compile(r"CUDA Version:\s*(\d+)\.(\d+)")
_SMI = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
_PACKAGES = (
    "nvidia-jetpack",
    "libnvinfer8",
    "libnvinfer10",
    "libnvinfer11",
    "python3-libnvinfer",
    "libcudnn8",
    "libcudnn9-cuda-12",
    "libcudnn9-cuda-13",
)
_DPKG = ["dpkg-query", "-W", "-f=${Package} ${db:Status-Abbrev} ${Version}\\n"]
_WHEELS = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)


@dataclass(frozen=True)
class Facts:
    """What was found; None or empty: nothing.

    Attributes:
        board: name of a Jetson, as its device tree has it.
        l4t: release of Jetson Linux, ``(36, 4, 3)``.
        packages: Debian packages of JetPack's that are installed, with their versions.
        trtexec: version of the TensorRT that ``trtexec`` belongs to.
        gpus: name, driver and compute capability of each, by nvidia-smi.
        driver_cuda: the newest CUDA that the driver runs.
        wheels: Python packages, with their versions.
        torch_cuda: the CUDA that torch was built for; empty where for none.
        onnxruntime_cuda: the CUDA that ONNX Runtime was built for; empty where for none.
        python: of this process; ``system_python``: of ``python3``, which JetPack's bindings are for.
    """

    arch: str
    python: Version
    system_python: Version | None = None
    board: str = ""
    l4t: Version | None = None
    packages: tuple[tuple[str, str], ...] = ()
    trtexec: Version | None = None
    gpus: tuple[tuple[str, str, str], ...] = ()
    driver_cuda: Version | None = None
    wheels: tuple[tuple[str, str], ...] = ()
    torch_cuda: str | None = None
    onnxruntime_cuda: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def read_facts(root: Path = Path("/")) -> Facts:
    """Of this machine; ``root`` is that of the file system that holds ``etc``, ``proc`` and ``usr``."""
    smi = _ask(_SMI)
    return Facts(
        arch=platform.machine(),
        python=sys.version_info[:3],
        system_python=parse_python(_ask(["python3", "--version"])),
        board=_line(root / "proc/device-tree/model"),
        l4t=parse_release(_line(root / "etc/nv_tegra_release")),
        packages=parse_packages(_ask([*_DPKG, *_PACKAGES])),
        trtexec=_trtexec(root),
        gpus=parse_gpus(smi),
        driver_cuda=parse_driver_cuda(_ask(["nvidia-smi"]) if smi else ""),
        wheels=tuple((name, version) for name in _WHEELS if (version := _wheel(name))),
        torch_cuda=_said_in("torch", "version.py", "cuda"),
        onnxruntime_cuda=_said_in("onnxruntime", "capi/build_and_package_info.py", "cuda_version"),
    )


def parse_release(line: str) -> Version | None:
    """``# R36 (release), REVISION: 4.3, GCID: ...`` is 36.4.3."""
    found = _RELEASE.search(line)
    return None if found is None else version(f"{found[1]}.{found[2]}")


def parse_packages(text: str) -> tuple[tuple[str, str], ...]:
    """Lines of ``package status version``, as ``dpkg-query`` is asked for them; only what is installed."""
    rows = (line.split() for line in text.splitlines())
    return tuple((row[0], row[2]) for row in rows if len(row) == 3 and row[1].startswith("ii"))


def parse_gpus(text: str) -> tuple[tuple[str, str, str], ...]:
    """``NVIDIA L4, 570.86.15, 8.9`` per GPU; what nvidia-smi says where it does not work is no GPU."""
    rows = (tuple(part.strip() for part in line.split(",")) for line in text.splitlines())
    return tuple((row[0], row[1], row[2]) for row in rows if len(row) == 3 and re.fullmatch(r"\d+\.\d+", row[2]))


def parse_driver_cuda(text: str) -> Version | None:
    """The head of ``nvidia-smi``'s table: ``CUDA Version: 12.8``."""
    found = _CUDA.search(text)
    return None if found is None else (int(found[1]), int(found[2]))


def parse_python(text: str) -> Version | None:
    """``Python 3.10.12``."""
    found = re.search(r"Python (\d+\.\d+\.\d+)", text)
    return None if found is None else version(found[1])


def version(text: str) -> Version:
    """The numbers that a version begins with: ``10.3.0.30-1+cuda12.5`` is 10.3.0.30."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _trtexec(root: Path) -> Version | None:
    for program in ("trtexec", str(root / _TRTEXEC)):
        try:
            found = parse_version(_ask([program, "--help"]))
        except BundleError:
            continue
        return found.major, found.minor, found.patch
    return None


def _ask(command: list[str]) -> str:
    """What a program prints; empty where there is none, or where it does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _wheel(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _said_in(package: str, file: str, name: str) -> str | None:
    """A string that a package's own file assigns, without importing it; None where the package is not there."""
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    if not places:
        return None
    try:
        text = (Path(next(iter(places))) / file).read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else ""


def _line(path: Path) -> str:
    """A file's first line; device tree strings end with a zero byte."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return (text.replace("\0", "").splitlines() or [""])[0].strip()
