"""The task of a dataset."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.datasets.spec import Dataset
from distill.datasets.target import REGRESSION, SEGMENTATION
from distill.tasks.base import Task
from distill.tasks.classification import Classification
from distill.tasks.regression import Regression
from distill.tasks.segmentation import Segmentation


def task_for(dataset: Dataset, train: NDArray[np.int64], class_weights: Tensor | None = None) -> Task:
    """What networks are asked to do with a dataset.

    Args:
        train: samples that statistics may be taken of.
        class_weights: ``(classes,)`` of the training loss; None in regression.
    """
    truth, classes = dataset.truth, dataset.classes
    if dataset.task == REGRESSION:
        mean, deviation = dataset.target_statistics(train)
        shift, scale = torch.from_numpy(mean), torch.from_numpy(deviation)
        return Regression(shift, scale, truth.names, truth.units, truth.ordinal)
    if dataset.task == SEGMENTATION:
        height, width = dataset.target.shape[1:]
        return Segmentation(len(classes), (height, width), class_weights, truth.ignore_label, classes)
    return Classification(len(classes), class_weights, classes)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """``(classes,)`` weights inverse to the class counts, scaled to mean 1 over the samples counted.

    A class without samples weighs nothing.
    """
    values = torch.as_tensor(counts, dtype=torch.float32)
    present = values > 0
    return torch.where(present, values.sum() / (present.sum() * values.clamp_min(1)), 0.0)
