"""What methods share that learn from one frozen, lone-trained teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from distill.lab import Lab
from distill.methods.from_teachers import FromTeachers
from mst_edge.core.errors import unknown_name


@dataclass(frozen=True)
class TeacherOptions:
    """For a method that learns from one lone-trained teacher.

    Attributes:
        teacher: ``multimodal``, the modality that a cross-modal teacher reads, or ``unimodal``; empty takes the
            main one, ``multimodal`` unless the data has one modality.
    """

    teacher: str = ""


class SingleTeacher(FromTeachers):
    """A subclass writes ``loss``; one that needs more than logits writes ``train``.

    Attributes:
        teacher: name of the teacher that the options choose.

    Raises:
        UserError: the lab has no such teacher, or none at all.
    """

    Options: ClassVar[type] = TeacherOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        self.teacher: str = options.teacher or lab.main_teacher
        if self.teacher not in lab.teachers:
            raise unknown_name("teacher", self.teacher, lab.teachers, where="distill.options.teacher")

    @property
    def listened(self) -> Sequence[str]:
        return (self.teacher,)
