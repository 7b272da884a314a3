"""What every runtime on an NVIDIA GPU asks of the machine, and writes down of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from targets.nvml import this_gpu
from targets.runtimes.engine import EngineRuntime
from targets.spec import Build, Probe

_DRIVER = "install the driver of the GPU, https://www.nvidia.com/drivers"
# From which compute capability on a chip has units for a type (CUDA C++ Programming Guide, compute capabilities).
TF32 = BF16 = ("SM 8.0 or newer",)
_SINCE = {"SM 8.0 or newer": (8, 0)}


class GpuRuntime(EngineRuntime):
    """Runs on the first GPU that CUDA sees; subclasses write ``_lacks`` and ``_build``.

    ``tf32`` is a way to run an fp32 file: products in TF32, 10 bits of mantissa, sums in fp32.
    """

    also: ClassVar[Mapping[str, tuple[str, ...]]] = {"fp32": ("tf32",)}
    device: ClassVar[str] = "GPU"

    def _lacks(self) -> Iterator[tuple[str, str]]:
        """What is missing here beside GPU and driver, and what mends it."""
        yield from ()

    def _probe(self) -> Probe:
        missing = [*gpu_lacks(), *self._lacks()]
        return absent(missing) if missing else Probe(True, self._version(), self.supported_here())

    @classmethod
    def features(cls) -> frozenset[str]:
        try:
            sm = this_gpu().sm
        except OSError:
            return frozenset()
        return frozenset(name for name, since in _SINCE.items() if sm >= since)

    def hardware(self) -> dict[str, Any]:
        return {**super().hardware(), **gpu_hardware()}

    def _facts(self, build: Build) -> Mapping[str, Any]:
        return {"gpu": this_gpu().to_dict()}


def absent(missing: Sequence[tuple[str, str]]) -> Probe:
    """What a runtime says that lacks these: causes with what mends them."""
    causes, fixes = zip(*missing, strict=True)
    return Probe(False, reason=f"{'; '.join(causes)} ({'; then '.join(fixes)})")


def gpu_hardware() -> dict[str, Any]:
    """What of the GPU a build depends on."""
    gpu = this_gpu().to_dict()
    return {name: gpu[name] for name in ("name", "sm", "driver")}


def gpu_lacks() -> Iterator[tuple[str, str]]:
    """The GPU or its driver, where it does not answer, and what mends that."""
    try:
        this_gpu()
    except OSError as error:
        yield f"no NVIDIA GPU answers here, {error}", _DRIVER
