"""Which range of values every tensor of a graph takes on real samples: streamed, in bounded memory.

ONNX Runtime's own calibrators hold every activation of every sample (microsoft/onnxruntime#10503). Here two passes
over the samples keep a histogram per tensor.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from quantize.calibration import Calibration
from quantize.variant import ROUNDS_WEIGHTS

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
CalibratorChoice = Literal["auto", Calibrator]
_BINS = 2048
_PERCENTILE = 99.99
_QUANTIZED_BINS = 128  # of the entropy method: TensorRT's choice for int8
_SHRUNK = np.linspace(0.2, 1.0, 81)  # shares of the seen range that the mse method tries
_MOST_BYTES, _MOST_SAMPLES = 64 << 20, 64  # activations held at once, and samples run at once


@dataclass(frozen=True)
class Range:
    """Values of one tensor.

    Attributes:
        low, high: what eight bits will span.
        seen_low, seen_high: smallest and largest value on calibration samples.
        saturated: share of the values that lie outside ``low`` to ``high``.
    """

    low: float
    high: float
    seen_low: float
    seen_high: float
    saturated: float


def find_ranges(
    model: onnx.ModelProto, input_name: str, calibration: Calibration, method: Calibrator, skip: Collection[str] = ()
) -> dict[str, Range]:
    """The range of every float tensor that nodes other than ``skip`` read or write.

    Methods: ``minmax`` takes all that was seen; ``percentile`` cuts 0.01 % in all; ``entropy`` minimises the
    Kullback-Leibler divergence to 128 levels (Migacz, GTC 2017, by ONNX Runtime's implementation); ``mse`` shrinks the
    seen range until the expected squared error of rounding to 256 levels and clipping is least.

    Raises:
        UserError: an activation is not a number, or infinite.
    """
    probe = Probe(model, input_name, float_tensors(model, skip))
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for values in probe.run(calibration):
        for name, array in values.items():
            low, high = float(array.min()), float(array.max())
            if not np.isfinite([low, high]).all():
                raise UserError(
                    f"tensor {name} is not finite on a calibration sample ({low} to {high})",
                    where=calibration.folder,
                    fix="look for broken samples, or for NaN in the model's weights",
                )
            lows[name], highs[name] = min(low, lows.get(name, low)), max(high, highs.get(name, high))
    seen = {name: (lows[name], highs[name]) for name in lows}
    if method == "minmax":
        return {name: Range(low, high, low, high, 0.0) for name, (low, high) in seen.items()}
    return _cut(_histograms(probe, calibration, seen), seen, _METHODS[method])


class Probe:
    """A session whose outputs are chosen tensors of a graph."""

    def __init__(self, model: onnx.ModelProto, input_name: str, tensors: Mapping[str, int]) -> None:
        import onnxruntime

        self._input, self.tensors = input_name, list(tensors)
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        present = {value.name for value in tapped.graph.output}
        tapped.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, kind, None)
            for name, kind in tensors.items()
            if name not in present
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            tapped.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[ROUNDS_WEIGHTS],
        )
        batch = self._session.get_inputs()[0].shape[0]
        self.batch = batch if isinstance(batch, int) else 0

    def one(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Values of the tensors for one batch."""
        return dict(zip(self.tensors, self._session.run(self.tensors, {self._input: inputs}), strict=True))

    def run(self, calibration: Calibration) -> Iterator[dict[str, NDArray[Any]]]:
        """Values for all samples, in portions that hold at most 64 MB of activations where one sample does."""
        size = self.batch or self._fitting(calibration)
        for batch in calibration.batches(size):
            if self.batch and len(batch) < self.batch:
                return  # a graph of fixed batch cannot take what is left over
            yield self.one(batch)

    def _fitting(self, calibration: Calibration) -> int:
        held = sum(array.nbytes for array in self.one(calibration.inputs[:1]).values())
        return int(np.clip(_MOST_BYTES // max(1, held), 1, _MOST_SAMPLES))


def float_tensors(model: onnx.ModelProto, skip: Collection[str] = ()) -> dict[str, int]:
    """Names and element types of float activations that nodes other than ``skip`` read or write."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    constants = {tensor.name for tensor in model.graph.initializer}
    touched = {
        name
        for node in model.graph.node
        if node.name not in skip and node.op_type != "Constant"
        for name in (*node.input, *node.output)
    }
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return {name: kinds[name] for name in sorted(touched - constants) if kinds.get(name) in floats}


Histograms = dict[str, NDArray[np.int64]]


def _histograms(probe: Probe, calibration: Calibration, seen: Mapping[str, tuple[float, float]]) -> Histograms:
    """Counts in ``_BINS`` bins from -t to t, ``t`` the largest absolute value."""
    counts = {name: np.zeros(_BINS, np.int64) for name in seen}
    for values in probe.run(calibration):
        for name, array in values.items():
            top = _top(seen[name])
            bins = ((array.reshape(-1).astype(np.float64) + top) * (_BINS / (2 * top))).astype(np.int64)
            counts[name] += np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)
    return counts


def _top(seen: tuple[float, float]) -> float:
    return max(abs(seen[0]), abs(seen[1]), 1e-30)


def _cut(
    counts: Histograms, seen: Mapping[str, tuple[float, float]], method: Callable[..., tuple[float, float]]
) -> dict[str, Range]:
    ranges = {}
    for name, histogram in counts.items():
        top = _top(seen[name])
        low, high = method(histogram, np.linspace(-top, top, _BINS + 1), seen[name])
        low, high = max(low, seen[name][0]), min(high, seen[name][1])
        centres = (np.arange(_BINS) + 0.5) * (2 * top / _BINS) - top
        outside = histogram[(centres < low) | (centres > high)].sum() / histogram.sum()
        ranges[name] = Range(low, high, *seen[name], float(outside))
    return ranges


def _percentile(
    histogram: NDArray[np.int64], edges: NDArray[np.float64], _: tuple[float, float]
) -> tuple[float, float]:
    share = np.cumsum(histogram) / histogram.sum()
    tail = (100 - _PERCENTILE) / 200
    return float(edges[np.searchsorted(share, tail)]), float(edges[np.searchsorted(share, 1 - tail) + 1])


def _entropy(
    histogram: NDArray[np.int64], edges: NDArray[np.float64], seen: tuple[float, float]
) -> tuple[float, float]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("entropy", False, _BINS, _QUANTIZED_BINS, _PERCENTILE, "same")
    known = (histogram, edges.astype(np.float32), *(np.float32(value) for value in (*seen, edges[-1])))
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        low, high = collector.get_entropy_threshold(known, _QUANTIZED_BINS)[:2]
    return float(low), float(high)


def _mse(histogram: NDArray[np.int64], edges: NDArray[np.float64], seen: tuple[float, float]) -> tuple[float, float]:
    """argmin over shares s of sum_x p(x) (x - q_s(x))^2, q_s rounding to 256 levels between s low and s high."""
    centres = (edges[:-1] + edges[1:]) / 2
    low, high = (_SHRUNK * min(0.0, seen[0]))[:, None], (_SHRUNK * max(0.0, seen[1]))[:, None]
    step = np.maximum((high - low) / 255, 1e-30)
    rounded = np.clip(np.round((centres - low) / step), 0, 255) * step + low
    errors = (histogram * np.square(centres - rounded)).sum(axis=1)
    best = int(errors.argmin())
    return float(low[best, 0]), float(high[best, 0])


_METHODS: Mapping[str, Callable[..., tuple[float, float]]] = {
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
