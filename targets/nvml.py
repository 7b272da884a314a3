"""NVIDIA's management library, which comes with the driver: which GPUs are here, and what they are doing.

Functions and constants are those of the NVML API reference (docs.nvidia.com/deploy/nvml-api).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_SM_CLOCK, _GPU_SENSOR = 1, 0  # NVML_CLOCK_SM, NVML_TEMPERATURE_GPU
_OLD_NAME = "nvmlDeviceGetCurrentClocksThrottleReasons"  # before driver 535
# nvmlClocksEventReason*: what holds the clock down against its owner's will.
SLOWDOWNS = {
    0x08: "the hardware slowed the clock down",
    0x20: "the driver slowed the clock down for heat",
    0x40: "the hardware slowed the clock down for heat",
    0x80: "the power supply braked the clock",
}
POWER_CAP = 0x04


@dataclass(frozen=True)
class Gpu:
    """One GPU, as far as builds depend on it.

    Attributes:
        sm: compute capability, ``(8, 9)`` say.
        cuda: the newest CUDA that the driver runs, ``(12, 8)`` say.
    """

    index: int
    name: str
    sm: tuple[int, int]
    driver: str
    cuda: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "sm": f"{self.sm[0]}.{self.sm[1]}", "cuda": f"{self.cuda[0]}.{self.cuda[1]}"}


@dataclass(frozen=True)
class State:
    """What a GPU does at the moment; None: it does not say.

    Attributes:
        reasons: bits of ``nvmlClocksEventReason*``.
    """

    clock_mhz: int | None
    temperature_c: int | None
    reasons: int | None


class Nvml:
    """The driver's library, opened.

    Raises:
        OSError: there is none, or it refuses.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise OSError("NVML: none here") from None
        self._call("nvmlInit_v2")

    def count(self) -> int:
        """How many GPUs there are."""
        return int(self._number(ctypes.c_uint, "nvmlDeviceGetCount_v2"))

    def handle(self, index: int) -> Any:
        """What calls about the GPU of that number take."""
        device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
        return device

    def energy_mj(self, handle: Any) -> int:
        """Since the driver was loaded, in mJ (Volta and later)."""
        return int(self._number(ctypes.c_ulonglong, "nvmlDeviceGetTotalEnergyConsumption", handle))

    def gpu(self, index: int) -> Gpu:
        """What the GPU of that number is."""
        handle, name = self.handle(index), ctypes.create_string_buffer(_NAME_BYTES)
        self._call("nvmlDeviceGetName", handle, name, _NAME_BYTES)
        driver = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("nvmlSystemGetDriverVersion", driver, _NAME_BYTES)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        cuda = int(self._number(ctypes.c_int, "nvmlSystemGetCudaDriverVersion_v2"))  # 12080 is 12.8
        return Gpu(
            index,
            name.value.decode(errors="replace"),
            (major.value, minor.value),
            driver.value.decode(errors="replace"),
            (cuda // 1000, cuda % 1000 // 10),
        )

    def state(self, handle: Any) -> State:
        """What the GPU does now."""
        reasons = self._said(ctypes.c_ulonglong, "nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            reasons = self._said(ctypes.c_ulonglong, _OLD_NAME, handle)
        return State(
            self._said(ctypes.c_uint, "nvmlDeviceGetClockInfo", handle, _SM_CLOCK),
            self._said(ctypes.c_uint, "nvmlDeviceGetTemperature", handle, _GPU_SENSOR),
            reasons,
        )

    def _said(self, kind: Any, name: str, *arguments: Any) -> int | None:
        try:
            return int(self._number(kind, name, *arguments))
        except (OSError, AttributeError):  # not every GPU and driver tells
            return None

    def _number(self, kind: Any, name: str, *arguments: Any) -> int:
        value = kind()
        self._call(name, *arguments, ctypes.byref(value))
        return int(value.value)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise OSError(f"NVML: error {code}")


def cuda_index() -> int:
    """NVML's number of the GPU that CUDA calls 0: ``CUDA_VISIBLE_DEVICES`` may hide those before it.

    Raises:
        OSError: it hides them all.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return 0
    first = said.split(",")[0].strip()
    if first.isdigit():
        return int(first)
    if not first or first == "-1":
        raise OSError("CUDA_VISIBLE_DEVICES hides every GPU")
    raise OSError(f"CUDA_VISIBLE_DEVICES names {first}; a number is understood")


def this_gpu() -> Gpu:
    """The GPU that builds run on here: CUDA's first.

    Raises:
        OSError: there is none, or its driver does not answer.
    """
    library = Nvml()
    index = cuda_index()
    if index >= library.count():
        raise OSError("NVML: the driver sees no such GPU")
    return library.gpu(index)
