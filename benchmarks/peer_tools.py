"""What a user gets from other quantization tools, each with its documented defaults.

    PYTHON peer_tools.py TOOL MODEL.onnx SAMPLES.npy OUT.onnx|OUT.xml '["name of a node to leave in float"]'

A program of its own, so that a tool can live in an environment of its own: it imports numpy, onnx and the tool, and
nothing of mst-edge. The last line that it prints is JSON: ``version`` and ``seconds`` from the loaded model to the
written file, or ``absent``, why the tool cannot be imported. Samples are ``(count, *input)``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


class Rows:
    """Calibration samples as rows of a dataset, by the name of the model's input."""

    info = None  # optimum asks a dataset for it

    def __init__(self, samples: Any, name: str) -> None:
        self.samples, self.name, self.num_rows = samples, name, len(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({self.name: np.array(row)} for row in self.samples)

    def __getitem__(self, number: int) -> tuple[dict[str, Any], int]:
        return {self.name: np.array(self.samples[number])}, 0


def optimum(model: Path, rows: Rows, out: Path, keep: list[str]) -> None:
    """ORTQuantizer, static, with the configuration for this CPU and min-max ranges."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    make = getattr(AutoQuantizationConfig, _optimum_configuration())
    config = make(is_static=True, nodes_to_exclude=keep)
    quantizer = ORTQuantizer(model)
    with tempfile.TemporaryDirectory() as scratch:
        ranges = quantizer.fit(
            rows,
            CalibrationConfig("calibration", "none", "train", len(rows), CalibrationMethod.MinMax),
            onnx_augmented_model_name=f"{scratch}/augmented.onnx",
            operators_to_quantize=config.operators_to_quantize,
        )
        quantizer.quantize(config, scratch, file_suffix="int8", calibration_tensors_range=ranges)
        shutil.move(f"{scratch}/{model.stem}_int8.onnx", out)


def _optimum_configuration() -> str:
    """Its name for the best that this CPU has."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(encoding="utf-8").split()) if info.is_file() else set()
    for name, wanted in (("avx512_vnni", "avx512_vnni"), ("avx512", "avx512f"), ("avx2", "avx2")):
        if wanted in flags:
            return name
    return "arm64"


def olive(model: Path, rows: Rows, out: Path, keep: list[str]) -> None:
    """The OnnxStaticQuantization pass."""
    from olive import run
    from olive.data.registry import Registry

    Registry.register_dataset("peer_rows")(lambda **_: rows)
    with tempfile.TemporaryDirectory() as scratch:
        accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        dataloader = {"type": "default_dataloader", "params": {"batch_size": 1}}
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(model)},
                "systems": {"local": {"type": "LocalSystem", "accelerators": [accelerator]}},
                "data_configs": [
                    {
                        "name": "calibration",
                        "type": "DataContainer",
                        "load_dataset_config": {"type": "peer_rows"},
                        "dataloader_config": dataloader,
                    }
                ],
                "passes": {
                    "static": {
                        "type": "OnnxStaticQuantization",
                        "data_config": "calibration",
                        "nodes_to_exclude": keep or None,
                    }
                },
                "host": "local",
                "target": "local",
                "output_dir": scratch,
                "cache_dir": f"{scratch}/cache",
            }
        )
        shutil.move(f"{scratch}/model.onnx", out)


def nncf_onnx(model: Path, rows: Rows, out: Path, keep: list[str]) -> None:
    """``nncf.quantize`` of the ONNX model."""
    import nncf
    import onnx

    scope = nncf.IgnoredScope(names=keep, validate=False) if keep else None
    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(_batches(rows)), ignored_scope=scope), out)


def nncf_openvino(model: Path, rows: Rows, out: Path, keep: list[str]) -> None:
    """``nncf.quantize`` of the OpenVINO model."""
    import nncf
    import openvino

    scope = nncf.IgnoredScope(names=keep, validate=False) if keep else None
    exact = openvino.Core().read_model(model)
    openvino.save_model(nncf.quantize(exact, nncf.Dataset(_batches(rows)), ignored_scope=scope), out)


def _batches(rows: Rows) -> list[dict[str, Any]]:
    return [{name: array[None] for name, array in row.items()} for row in rows]


# Tool: what pip calls it, a module to import, how it quantizes.
TOOLS: dict[str, tuple[str, str, Callable[[Path, Rows, Path, list[str]], None]]] = {
    "optimum": ("optimum-onnx", "optimum.onnxruntime", optimum),
    "olive": ("olive-ai", "olive", olive),
    "nncf-onnx": ("nncf", "nncf", nncf_onnx),
    "nncf-openvino": ("nncf", "nncf", nncf_openvino),
}


def main(tool: str, model: str, samples: str, out: str, keep: str) -> dict[str, Any]:
    """Quantizes; returns what is printed."""
    # torchvision beside a torch of another build fails to register detection operators, which nothing here needs.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    distribution, module, quantize = TOOLS[tool]
    try:
        importlib.import_module(module)
        import onnx
    except Exception as error:
        return {"absent": f"{type(error).__name__}: {error}"}
    name = onnx.load(model).graph.input[0].name
    rows = Rows(np.load(samples, mmap_mode="r", allow_pickle=False), name)
    start = time.perf_counter()
    quantize(Path(model), rows, Path(out), json.loads(keep))
    return {"version": metadata.version(distribution), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a tool prints must not mix with the answer
    print(json.dumps(main(*sys.argv[1:])), file=answers)
