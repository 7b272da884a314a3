"""Tasks: what a network is asked to do. Each owns its loss, its metrics and the reduction of distillation."""

from distill.tasks.base import Meter, Task
from distill.tasks.choose import balanced_class_weights, task_for
from distill.tasks.classification import Classification
from distill.tasks.regression import Regression
from distill.tasks.segmentation import Segmentation

__all__ = ["Classification", "Meter", "Regression", "Segmentation", "Task", "balanced_class_weights", "task_for"]
