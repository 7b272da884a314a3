"""A GPU of paper: NVIDIA's management library and CUDA's runtime as a few lines of C, and a ``tensorrt`` that builds.

It stands in for what cannot be here, a chip and the library that compiles for it; what runs is ONNX Runtime on the CPU,
through the real ctypes calls of our own code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.apps.board import fakes
from tests.conftest import ROOT, Finished

_NVML = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static const char *said(const char *name, const char *other) { const char *s = getenv(name); return s ? s : other; }
int nvmlInit_v2(void) { return atoi(said("FAKE_NVML_CODE", "0")); }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned k, void **handle) { *handle = (void *)1; return k ? 6 : 0; }
int nvmlDeviceGetName(void *h, char *name, unsigned n) {
  snprintf(name, n, "%s", said("FAKE_GPU", "Paper L4")); return 0; }
int nvmlSystemGetDriverVersion(char *v, unsigned n) {
  snprintf(v, n, "%s", said("FAKE_DRIVER", "570.86.15")); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12080; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) {
  const char *sm = said("FAKE_SM", "8.9"); *a = atoi(sm); *b = atoi(strchr(sm, '.') + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  *mj = 30000ull * t.tv_sec + 30 * (t.tv_nsec / 1000000); return 0; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *mhz) { *mhz = kind == 1 ? 2040 : 0; return 0; }
int nvmlDeviceGetTemperature(void *h, int kind, unsigned *c) { *c = 61; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *bits) {
  *bits = atoi(said("FAKE_REASONS", "0")); return 0; }
"""
# What of the builder's API this project calls, with what each version lacks.
_BUILDER = """
import json

_version = (_number // _step, _number % _step // 100)

class ILogger:
    def __init__(self): pass
Logger.INTERNAL_ERROR = 0

class NetworkDefinitionCreationFlag(enum.IntEnum):
    if _version < (11, 0):
        EXPLICIT_BATCH = 0
    if _version >= (9, 0):
        STRONGLY_TYPED = 1

class BuilderFlag(enum.Enum):
    TF32 = "tf32"
    if _version < (11, 0):
        FP16, INT8 = "fp16", "int8"
    if (10, 0) <= _version < (11, 0):
        BF16 = "bf16"

class MemoryPoolType(enum.Enum):
    WORKSPACE = 0

class ProfilingVerbosity(enum.Enum):
    DETAILED = 2

class _Memory(bytes):
    pass

class _TimingCache:
    def __init__(self, held): self.held = bytes(held)
    def serialize(self): return _Memory(self.held + b"t")

class _Config:
    def __init__(self): self.set, self.profiles, self.cache = {BuilderFlag.TF32}, [], None
    def set_memory_pool_limit(self, pool, size): self.workspace = size
    def set_flag(self, flag): self.set.add(flag)
    def clear_flag(self, flag): self.set.remove(flag)
    def create_timing_cache(self, held): return _TimingCache(held)
    def set_timing_cache(self, cache, ignore_mismatch): self.cache = cache; return True
    def get_timing_cache(self): return self.cache
    def add_optimization_profile(self, profile): self.profiles.append(profile); return 0

class _Profile:
    def __init__(self): self.shapes = {}
    def set_shape(self, name, least, best, most): self.shapes[name] = [list(least), list(best), list(most)]

class _Error:
    def __init__(self, text): self.text = text
    def desc(self): return self.text

class OnnxParser:
    def __init__(self, network, log): self.network, self.num_errors = network, 0
    def parse_from_file(self, path):
        with open(path, "rb") as file:
            self.network.model = file.read()
        self.num_errors = 1 if os.environ.get("FAKE_UNREADABLE") else 0
        return not self.num_errors
    def get_error(self, number): return _Error("In node 3 with name: conv: UNSUPPORTED_NODE")

class Network:
    pass

class Builder:
    def __init__(self, log): self.log = log
    def create_network(self, flags):
        network = Network()
        network.flags = [flag.name for flag in NetworkDefinitionCreationFlag if flags & 1 << flag]
        assert flags < 4
        return network
    def create_builder_config(self): return _Config()
    def create_optimization_profile(self): return _Profile()
    def build_serialized_network(self, network, config):
        said = {
            "network": network.flags, "flags": sorted(flag.value for flag in config.set),
            "timing": len(config.cache.held), "profiles": [profile.shapes for profile in config.profiles],
            "level": config.builder_optimization_level, "workspace": config.workspace,
            "verbosity": config.profiling_verbosity.name,
        }
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(json.dumps(said) + "\\n")
        if os.environ.get("FAKE_FAILS"):
            self.log.log(Logger.ERROR, "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)")
            return None
        return _Memory(str(_number).encode() + b"\\n" + _runnable(network.model))

def _runnable(model):
    # What is bf16 keeps its values and becomes float: ONNX Runtime has no bf16 kernels on the CPU.
    import onnx
    from onnx import TensorProto, numpy_helper
    made = onnx.load_from_string(model)
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for attribute in (a for node in made.graph.node if node.op_type == "Cast" for a in node.attribute):
        attribute.i = TensorProto.FLOAT if attribute.i == TensorProto.BFLOAT16 else attribute.i
    del made.graph.value_info[:]
    return made.SerializeToString()
"""


@dataclass(frozen=True)
class PaperGpu:
    """Libraries and modules in ``folder``; ``run`` starts Python as on a machine that has the GPU."""

    folder: Path

    def run(self, *arguments: str, tensorrt: str = "101300", **environment: str) -> Finished:
        """``python ARGUMENTS`` in the repository."""
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
                "LD_LIBRARY_PATH": str(self.folder),
                "MST_EDGE_CACHE": str(self.folder / "cache"),
                "FAKE_TENSORRT": tensorrt,
                "FAKE_SM": "8.9",
                "FAKE_LOG": str(self.folder / "log.jsonl"),
                **environment,
            },
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def paper_gpu(folder: Path) -> PaperGpu:
    """Writes and compiles them; needs a C compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt.py").write_text(fakes.TENSORRT + _BUILDER)
    compiler = shutil.which("cc")
    assert compiler is not None
    for name, code in (("libcudart.so", fakes.CUDART), ("libnvidia-ml.so.1", _NVML)):
        source = folder / f"{name}.c"
        source.write_text(code)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / name), str(source)], check=True)
    return PaperGpu(folder)
