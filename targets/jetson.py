"""NVIDIA Jetson boards: ONNX files that TensorRT reads, and the scripts that do on the board what only it can.

Which TensorRT a board has, and with it the flags of a build, is found out there: see ``apps.runtime.board``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import onnx

from mst_edge.core.files import atomic_path
from quantize.variant import MODEL, Variant
from targets.board import BoardTarget
from targets.dla import forecast
from targets.pack import script
from targets.service import Needs
from targets.spec import Build, TargetSpec, load_build
from targets.target import Skipped
from targets.tensorrt_file import take, unfit

RUNTIME = "tensorrt"
_PRECISIONS = ("fp32", "fp16", "int8")
_DLA = (
    "A forecast from NVIDIA's tables, nothing was built. Nodes that quantize are no layers; TensorRT up to 10.7 wants "
    "a calibration table in their place."
)
_BUILD = """\
#!/bin/sh
# Compiles the models of this bundle with the TensorRT that is installed here. Options: ./build.sh --help
exec python3 -B "$(dirname "$0")/build.py" "$@"
"""


class JetsonTarget(BoardTarget):
    """A Jetson with JetPack: TensorRT, its Python binding, numpy and python3, nothing to install.

    Attributes:
        dla: which TensorRT drives the board's deep-learning accelerator; empty where the board has none.
    """

    dla: ClassVar[str] = ""
    schemes: ClassVar = ("fp16", "int8-symmetric")
    steps: ClassVar = {
        "build": ("build.py",),
        "check": ("check.py", "--resume"),
        "bench": ("bench.py", "--resume"),
    }
    finds: ClassVar = ("models/{build}/build.log",)
    # /dev/nvmap is root:video, 0440 (NVIDIA/nvidia-container-toolkit#1631); CUDA takes render nodes, too.
    needs: ClassVar = Needs(
        memory_mb=2048,
        devices=("/dev/nvmap", "/dev/nvsciipc", "char-drm", "char-host1x*", "char-nv*"),
        groups=("render", "video"),
    )

    def prepare(self, variants: list[Variant], folder: Path) -> Iterator[Build | Skipped]:
        for variant in variants:
            build_id = f"{RUNTIME}-{variant.name}"
            if variant.precision not in _PRECISIONS:
                yield Skipped(build_id, f"TensorRT's explicit precision has no {variant.precision} of this kind")
                continue
            model = onnx.load(variant.model)
            problem = unfit(model)
            yield Skipped(build_id, problem) if problem else _staged(self.spec.name, variant, model, folder / build_id)

    def carried(self) -> Mapping[str, Path | str]:
        tools = {
            f"apps/runtime/board/{entry.name}": Path(str(entry))
            for entry in resources.files("apps.runtime.board").iterdir()
            if entry.name.endswith(".py")
        }
        return {
            **tools,
            "build.sh": _BUILD,
            "build.py": script("board.build", "Compiles the models of this bundle"),
            "check.py": script("board.check", "Proves that what was compiled here computes what it should"),
            "bench.py": script("board.bench", "Measures latency and energy of what was compiled here"),
        }

    def forecasts(self, builds: Sequence[Build], shape: Sequence[int]) -> Mapping[str, Any]:
        if not self.dla:
            return {}
        models = {build.id: onnx.load(build.folder / build.model) for build in builds}
        found = {build.id: forecast(models[build.id], build.precision, shape) for build in builds}
        return {"dla": {"takes": self.dla, "about": _DLA, "builds": found}}

    def guide(self) -> str:
        return f"""On the board, a {self.spec.summary}, with JetPack 6.1 or newer as it was flashed:

    sh build.sh                  # compiles an engine per model, with the flags of the TensorRT that is there
    python3 check.py             # numerics against the reference, then accuracy on samples with labels
    python3 bench.py             # latency, energy per inference, clocks, throttling; chooses a build
    python3 run.py examples/*    # answers, from the chosen build

Each writes what it found to `result.json`. Bring that file and the folder `outputs` home into this bundle's folder;
`mst-edge check` of the folder then says what the gate says.
"""


class OrinNano(JetsonTarget):
    """Jetson Orin Nano."""

    spec = TargetSpec("jetson-orin-nano", "Jetson Orin Nano", (), on_host=False)


class OrinNx(JetsonTarget):
    """Jetson Orin NX."""

    spec = TargetSpec("jetson-orin-nx", "Jetson Orin NX", (), on_host=False)
    dla: ClassVar = "TensorRT up to 10.7 (JetPack 6)"


class AgxOrin(JetsonTarget):
    """Jetson AGX Orin."""

    spec = TargetSpec("jetson-agx-orin", "Jetson AGX Orin", (), on_host=False)
    dla: ClassVar = "TensorRT up to 10.7 (JetPack 6), or 11.4.1 (JetPack 7.2.2)"


class Thor(JetsonTarget):
    """Jetson AGX Thor, and T5000 and T4000 modules."""

    spec = TargetSpec("jetson-thor", "Jetson Thor", (), on_host=False)


def _staged(target: str, variant: Variant, model: onnx.ModelProto, folder: Path) -> Build:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    free = [not dim.HasField("dim_value") for dim in model.graph.input[0].type.tensor_type.shape.dim]
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        take(model, temporary / MODEL)
        Build(
            id=folder.name,
            target=target,
            runtime=RUNTIME,
            precision=variant.precision,
            variant=variant.name,
            folder=temporary,
            model=MODEL,
            options={"opset": opset, "free_axes": any(free)},
            facts={"scheme": variant.scheme},
        ).save()
    return load_build(folder)
