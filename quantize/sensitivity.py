"""Which layers lose what int8 loses: one layer at a time, and all but the most sensitive ones."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.assignment import Assignable
from quantize.layers import Layer
from quantize.qdq import rounded_name
from quantize.ranges import Probe, float_tensors

_MOST_BYTES, _MOST_SAMPLES, _LEAST_SAMPLES = 256 << 20, 64, 2
_EXACT_DB = 120.0  # more than float32 holds
# Noise of a tenth of the signal: the answers are the same but for the closest calls.
ENOUGH_DB = 20.0


@dataclass(frozen=True)
class LayerSensitivity:
    """What int8 does to one layer, and that to the network. All decibels are signal to quantization noise (SQNR).

    Attributes:
        alone_db: of the network's output where this layer alone is int8.
        own_db: of the layer's own output then.
        without_db: of the network's output where this layer and all more sensitive ones stay in float.
        low, high: range of the layer's output, by calibration.
        saturated: share of the output's values beyond that range, on samples that did not calibrate.
        used: share of the range that the middle 99.9 % of values take; little where outliers stretch it.
    """

    name: str
    op: str
    alone_db: float
    own_db: float
    without_db: float
    low: float
    high: float
    saturated: float
    used: float


@dataclass(frozen=True)
class Sensitivity:
    """The report.

    Attributes:
        all_db: SQNR of the network's output with all layers in int8.
        layers: the most sensitive first; of equals, the one that runs first.
        exclude: names of layers to leave in float, ready for ``quantize.exclude``; empty where int8 is close enough.
        samples: how many it was judged on.
    """

    all_db: float
    layers: tuple[LayerSensitivity, ...]
    exclude: tuple[str, ...]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def find_sensitivity(assignable: Assignable, input_name: str, samples: NDArray[Any]) -> Sensitivity:
    """Quantizes one layer at a time, then all but the most sensitive ones.

    Args:
        samples: ``(n, *shape)`` real ones that did not calibrate; as many of them as fit in memory are run.
    """
    judge = _Judge(assignable, input_name, samples)
    layers = assignable.layers
    names = [layer.name for layer in layers]
    alone = [judge.alone(layer) for layer in layers]
    order = sorted(range(len(layers)), key=lambda number: alone[number][0])
    ranked = [names[number] for number in order]
    all_db = judge.output_db(())
    without = [judge.output_db(ranked[: k + 1]) for k in range(len(ranked))]
    rows = [
        _row(layers[number], alone[number], db, judge.reference[layers[number].output], assignable)
        for number, db in zip(order, without, strict=True)
    ]
    chosen = ranked[: enough([all_db, *without])]
    return Sensitivity(all_db, tuple(rows), tuple(chosen), len(judge.samples))


def output_sqnr_db(assignable: Assignable, input_name: str, samples: NDArray[Any]) -> float:
    """SQNR of the network's output on ``samples`` ``(n, *shape)`` with all layers in int8."""
    return _Judge(assignable, input_name, samples).output_db(())


def enough(without_db: Sequence[float]) -> int:
    """How many of the most sensitive layers to leave in float.

    As few as bring the network to ``ENOUGH_DB``; where half of the layers do not, as many as end with the largest
    single gain.

    Args:
        without_db: SQNR with none, one, two ... of them in float.
    """
    half = len(without_db) // 2 + 1
    reached = (count for count, db in enumerate(without_db[:half]) if db >= ENOUGH_DB)
    return next(reached, int(np.argmax(np.diff(without_db[:half]))) + 1 if half > 1 else 0)


def sqnr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """10 log10 of the signal's power over the noise's; the signal is what differs between samples (first axis)."""
    exact = reference.astype(np.float64)
    signal = np.square(exact - exact.mean(axis=0)).sum()
    noise = np.square(other.astype(np.float64) - exact).sum()
    if noise == 0:
        return _EXACT_DB
    return float(min(_EXACT_DB, 10 * np.log10(max(signal, 1e-300) / noise)))


def used_share(values: NDArray[Any], low: float, high: float) -> float:
    """Share of ``low`` to ``high`` that the middle 99.9 % of values take."""
    inner = np.quantile(values, [0.0005, 0.9995])
    return float(min(1.0, np.ptp(inner) / max(high - low, 1e-30)))


class _Judge:
    """Runs graphs on the same samples.

    Attributes:
        reference: values of the layers' outputs and of the network's output in fp32.
    """

    def __init__(self, assignable: Assignable, input_name: str, samples: NDArray[Any]) -> None:
        self._assignable, self._input = assignable, input_name
        self._output = assignable.model.graph.output[0].name
        kinds = float_tensors(assignable.model)
        taps = {name: kinds[name] for name in {*(layer.output for layer in assignable.layers), self._output}}
        probe = Probe(assignable.model, input_name, taps)
        held = sum(array.nbytes for array in probe.one(np.ascontiguousarray(samples[:1])).values())
        count = int(np.clip(_MOST_BYTES // max(1, held), _LEAST_SAMPLES, _MOST_SAMPLES))
        self.samples = np.ascontiguousarray(samples[:count])
        self.reference = self._run(assignable.model, taps)

    def alone(self, layer: Layer) -> tuple[float, float]:
        """SQNR of the network's output and of the layer's own, this layer alone in int8."""
        others = [other.name for other in self._assignable.layers if other is not layer]
        found = self._quantized(others, {layer.output, self._output})
        return tuple(sqnr_db(self.reference[name], found[name]) for name in (self._output, layer.output))  # type: ignore[return-value]

    def output_db(self, in_float: Collection[str]) -> float:
        """SQNR of the network's output with all layers but ``in_float`` in int8."""
        return sqnr_db(self.reference[self._output], self._quantized(in_float, {self._output})[self._output])

    def _quantized(self, in_float: Collection[str], tensors: Collection[str]) -> dict[str, NDArray[Any]]:
        with tempfile.TemporaryDirectory() as folder:
            self._assignable.write(Path(folder) / "model.onnx", in_float)
            model = onnx.load(Path(folder) / "model.onnx")
        rounded = {name: rounded_name(model, name) for name in tensors}
        taps = dict.fromkeys(rounded.values(), onnx.TensorProto.FLOAT)
        found = self._run(model, taps)
        return {name: found[rounded[name]] for name in tensors}

    def _run(self, model: onnx.ModelProto, taps: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        probe = Probe(model, self._input, taps)
        parts = [probe.one(sample) for sample in self._batches(probe)]
        return {name: np.concatenate([part[name] for part in parts]) for name in taps}

    def _batches(self, probe: Probe) -> list[NDArray[Any]]:
        size = probe.batch or len(self.samples)
        return [self.samples[start : start + size] for start in range(0, len(self.samples) // size * size, size)]


def _row(
    layer: Layer, alone: tuple[float, float], without_db: float, values: NDArray[Any], assignable: Assignable
) -> LayerSensitivity:
    found = assignable.ranges[layer.output]
    return LayerSensitivity(
        name=layer.name,
        op=layer.op,
        alone_db=alone[0],
        own_db=alone[1],
        without_db=without_db,
        low=found.low,
        high=found.high,
        saturated=float(((values < found.low) | (values > found.high)).mean()),
        used=used_share(values, found.low, found.high),
    )
