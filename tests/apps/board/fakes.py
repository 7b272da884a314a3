"""A board of paper: JetPack's programs as scripts on PATH, its ``tensorrt`` module, and a libcudart of malloc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.apps.board import recorded
from tests.conftest import Finished

# An "engine" is the version that built it, a line feed, and the ONNX file: what runs is ONNX Runtime.
_TRTEXEC = """\
import json, os, sys
given = sys.argv[1:]
number = int(os.environ["FAKE_TENSORRT"])
print({banner!r}.format(number=number, arguments=" ".join(given)))
flags = {{flag.partition("=")[0]: flag.partition("=")[2] for flag in given}}
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(given) + "\\n")
if "--help" in flags:
    sys.exit(0)
step = 1000 if number < 10000 else 10000
version = (number // step, number % step // 100)
known = {{"--onnx", "--saveEngine", "--timingCacheFile", "--memPoolSize", "--builderOptimizationLevel",
         "--profilingVerbosity", "--skipInference", "--loadEngine", "--warmUp", "--duration", "--percentile",
         "--exportTimes", "--shapes", "--minShapes", "--optShapes", "--maxShapes"}}
known |= {{"--fp16", "--int8"}} if version < (11, 0) else set()
known |= {{"--stronglyTyped"}} if (9, 0) < version < (11, 0) else set()
for flag in flags:
    if flag not in known:
        print("[E] Unknown option: " + flag)
        sys.exit(1)
if "--saveEngine" in flags:
    if os.environ.get("FAKE_FAILS", "nothing") in flags["--onnx"]:
        print("[E] Error[2]: [virtualMemoryBuffer.cpp] OutOfMemory (Requested size was 1073741824 bytes.)")
        sys.exit(1)
    if os.environ.get("FAKE_KILLED", "nothing") in flags["--onnx"]:
        os.kill(os.getpid(), 9)
    model = open(flags["--onnx"], "rb").read()
    open(flags["--saveEngine"], "wb").write(str(number).encode() + b"\\n" + model)
if "--exportTimes" in flags:
    rows = [{{"startComputeMs": 10.0 * k, "endComputeMs": 10.0 * k + 0.25, "latencyMs": 0.5}} for k in range(8)]
    json.dump(rows, open(flags["--exportTimes"], "w"))
"""
TENSORRT = """\
import ctypes, enum, os
import numpy as np
import onnxruntime

_number = int(os.environ["FAKE_TENSORRT"])
_step = 1000 if _number < 10000 else 10000
__version__ = f"{_number // _step}.{_number % _step // 100}.{_number % 100}.1"

class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2

class Logger:
    ERROR = 1
    def __init__(self, level): pass

def nptype(dtype):
    return dtype

_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}

class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan):
        number, _, model = plan.partition(b"\\n")
        return Engine(model) if int(number) == _number else None

class Engine:
    def __init__(self, model):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.values = {v.name: v for v in [*self.session.get_inputs(), *self.session.get_outputs()[:1]]}
        self.num_io_tensors = len(self.values)
    def get_tensor_name(self, number):
        return list(self.values)[number]
    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == self.session.get_inputs()[0].name else TensorIOMode.OUTPUT
    def get_tensor_dtype(self, name):
        return _TYPES[self.values[name].type]
    def create_execution_context(self):
        return Context(self)

class Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}
    def set_input_shape(self, name, shape):
        self.input, self.shape = name, tuple(shape)
        dims = self.engine.values[name].shape
        return len(dims) == len(shape) and all(isinstance(d, (str, type(None))) or d == s for d, s in zip(dims, shape))
    def get_tensor_shape(self, name):
        dtype = self.engine.get_tensor_dtype(self.input)
        return self.engine.session.run([name], {self.input: np.zeros(self.shape, dtype)})[0].shape
    def set_tensor_address(self, name, address):
        self.addresses[name] = address
    def execute_async_v3(self, stream):
        (output,) = [name for name in self.addresses if name != self.input]
        dtype = np.dtype(self.engine.get_tensor_dtype(self.input))
        size = int(np.prod(self.shape)) * dtype.itemsize
        given = np.frombuffer(ctypes.string_at(self.addresses[self.input], size), dtype).reshape(self.shape)
        said = np.ascontiguousarray(self.engine.session.run([output], {self.input: given})[0])
        said = said + np.float32(os.environ.get("FAKE_ERROR", "0"))
        ctypes.memmove(self.addresses[output], said.ctypes.data, said.nbytes)
        return True
"""
CUDART = """\
#include <stdlib.h>
#include <string.h>
#include <time.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p ? 0 : 2; }
int cudaFree(void *p) { free(p); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) { memcpy(to, from, n); return 0; }
int cudaStreamCreate(void **stream) { *stream = (void *)1; return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaStreamDestroy(void *stream) { return 0; }
int cudaEventCreate(void **event) { *event = malloc(sizeof(struct timespec)); return 0; }
int cudaEventRecord(void *event, void *stream) { return clock_gettime(CLOCK_MONOTONIC, event); }
int cudaEventElapsedTime(float *ms, struct timespec *a, struct timespec *b) {
  *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f; return 0; }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  const char *sm = getenv("FAKE_SM"); sm = sm ? sm : "8.7";
  *value = atoi(attribute == 75 ? sm : strchr(sm, '.') + 1); return 0; }
const char *cudaGetErrorString(int code) { return "out of memory"; }
"""
# Loaded before all others: a disk that is full for files whose path holds $FAKE_FULL, a clock that jumps decades, and
# the file $FAKE_MODEL as the name of the board.
_FAULTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static int full(const char *path, int flags) {
  const char *name = getenv("FAKE_FULL");
  return name && *name && (flags & (O_WRONLY | O_RDWR)) && strstr(path, name);
}
#define OPEN(NAME) \
int NAME(const char *path, int flags, ...) { \
  va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
  if (full(path, flags)) { errno = ENOSPC; return -1; } \
  if (getenv("FAKE_MODEL") && !strcmp(path, "/proc/device-tree/model")) path = getenv("FAKE_MODEL"); \
  return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #NAME))(path, flags, mode); \
}
OPEN(open)
OPEN(open64)
int clock_gettime(clockid_t clock, struct timespec *now) {
  static long asked;
  int said = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(clock, now);
  if (clock == CLOCK_REALTIME && getenv("FAKE_CLOCK_JUMPS")) now->tv_sec += ++asked % 2 ? 900000000 : -900000000;
  return said;
}
"""
_TEGRASTATS = """\
#!/bin/sh
if [ -n "$FAKE_TEGRASTATS_DIES" ]; then echo "$FAKE_TEGRASTATS"; exit 3; fi
while true; do echo "$FAKE_TEGRASTATS"; sleep 0.02; done
"""


@dataclass(frozen=True)
class PaperBoard:
    """Programs in ``folder``; ``run`` starts one of a bundle's scripts as a person on the board would."""

    folder: Path
    python: str = sys.executable

    def environment(self) -> dict[str, str]:
        """What a shell on the board has set."""
        return {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "PYTHONPATH": str(self.folder),
            "LD_LIBRARY_PATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "FAKE_TENSORRT": "100300",
            "FAKE_LOG": str(self.folder / "log.jsonl"),
            "FAKE_TEGRASTATS": recorded.ORIN_NANO,
            "FAKE_CLOCKS": recorded.CLOCKS_LOCKED,
        }

    def run(self, bundle: Path, *command: str, tensorrt: str = "100300", **environment: str) -> Finished:
        """``python3 check.py``, say, in the bundle's folder."""
        programs = {"python3": self.python}
        done = subprocess.run(
            [programs.get(command[0], command[0]), *command[1:]],
            capture_output=True,
            text=True,
            cwd=bundle,
            check=False,
            env={**self.environment(), "FAKE_TENSORRT": tensorrt, **environment},
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def paper_board(folder: Path, *, python: str = sys.executable) -> PaperBoard:
    """Writes the programs; needs a C compiler for libcudart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt.py").write_text(TENSORRT)
    compiler = shutil.which("cc")
    assert compiler is not None
    for name, text in (("cudart", CUDART), ("faults", _FAULTS)):
        source, library = folder / f"{name}.c", folder / f"lib{name}.so"
        source.write_text(text)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    _program(folder / "trtexec", f"#!{python}\n{_TRTEXEC.format(banner=recorded.BANNER)}")
    _program(folder / "tegrastats", _TEGRASTATS)
    _program(folder / "nvpmodel", f"#!/bin/sh\ncat <<'END'\n{recorded.POWER_MODE}END\n")
    _program(folder / "jetson_clocks", '#!/bin/sh\necho "$FAKE_CLOCKS"\n')
    _program(folder / "python3", f'#!/bin/sh\nexec {python} "$@"\n')
    return PaperBoard(folder, python)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    os.chmod(path, 0o755)  # noqa: PTH101
