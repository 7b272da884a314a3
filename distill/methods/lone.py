"""No distillation: the student learns from labels alone. The yardstick of every method."""

from __future__ import annotations

from distill.methods.base import METHODS, Method, Workload
from distill.networks.registry import Model


@METHODS.register("lone")
class Lone(Method):
    """The student alone."""

    name = "lone"

    def workload(self) -> list[Workload]:
        return [Workload("lone_student", self.lab.epochs.student, trained=["student"])]

    def train(self) -> Model:
        return self.lab.lone_student()
