"""How right outputs are, by task: the formulas of ``mst_edge.core.scoring``, which a bundle cannot carry along."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest import Manifest

METRICS = {"classification": "accuracy", "segmentation": "miou", "regression": "nrmse"}


def score(outputs: NDArray[np.float32], target: NDArray[Any], manifest: Manifest) -> float:
    """The task's headline metric of outputs ``(samples, names, ...)``: share of right labels, mean intersection over
    union, or root of the mean squared error in units of each number's deviation."""
    if manifest.task == "regression":
        error = (outputs.astype(np.float64) - target) / np.array(manifest.scale)
        return float(np.sqrt(np.square(error).mean(axis=1).mean()))
    said = outputs.argmax(axis=1)
    if manifest.task == "classification":
        return float((said == target).mean())
    return _mean_iou(said, target, len(manifest.labels), manifest.ignore_label)


def _mean_iou(said: NDArray[np.int64], target: NDArray[Any], classes: int, ignored: int | None) -> float:
    """Over classes that occur; pixels labelled ``ignored`` do not count, what is taken for it counts as wrong."""
    labelled = target != ignored
    true, taken = target[labelled].astype(np.int64), said[labelled]
    shares = []
    for label in range(classes):
        union = int(((true == label) | (taken == label)).sum())
        if label != ignored and union:
            shares.append(int(((true == label) & (taken == label)).sum()) / union)
    return float(np.mean(shares)) if shares else 0.0
