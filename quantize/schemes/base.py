"""What a scheme is: a name, a library that does the work, and one method that writes an ONNX file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import onnx
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules
from mst_edge.core.files import atomic_path
from mst_edge.core.registry import Registry
from quantize.calibration import Calibration
from quantize.layers import Layer, layers_of, nodes_of
from quantize.qdq import in_float, require_float
from quantize.ranges import CalibratorChoice
from quantize.variant import MODEL, Variant

if TYPE_CHECKING:
    from distill.student import Student
    from quantize.mixed import Search


Found = TypeVar("Found")
# Takes the scheme's name and a fake-quantized student, whose network it trains; returns how it did that.
Teach = Callable[[str, "Student"], dict[str, Any]]


@dataclass(frozen=True)
class Material:
    """What schemes work from.

    Attributes:
        source: the fp32 variant.
        calibration: real samples, or loudly marked random ones.
        calibrator: how ONNX Runtime's static scheme turns what it sees into ranges; ``auto`` tries.
        exclude: names of layers that stay in float.
        student: the torch student, in float, that the graph was exported from; None where there is only a graph.
        teach: trains the student further, from who has its data; None where there is none.
        raw: ``(samples, ...)`` the run's first test samples as the graph takes them; None where there is no run.
        search: for schemes that measure on a target; None where there is none.
        known: what was found out about source and calibration already, by all that it depends on: several schemes
            and reports start from the same calibration.
    """

    source: Variant
    calibration: Calibration
    calibrator: CalibratorChoice = "minmax"
    exclude: tuple[str, ...] = ()
    student: Student | None = None
    teach: Teach | None = None
    raw: NDArray[Any] | None = None
    search: Search | None = None
    known: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def model(self) -> onnx.ModelProto:
        """The source's graph."""
        return onnx.load(self.source.model)

    def once(self, what: Hashable, find: Callable[[], Found]) -> Found:
        """What ``find`` finds out about source and calibration; found out once.

        Args:
            what: names it, with all that it depends on besides these two.
        """
        key = (self.source.model, self.source.float_nodes, self.calibration.folder, what)
        if key not in self.known:
            self.known[key] = find()
        found: Found = self.known[key]
        return found

    def layers(self, model: onnx.ModelProto) -> list[Layer]:
        """Layers of the graph, by the names that ``exclude`` uses."""
        return layers_of(model, self.source.modules, self.source.float_nodes)

    def kept(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Nodes that stay in float: front end, answer, and the excluded layers.

        Raises:
            UserError: an excluded layer that is not there.
        """
        return (*self.source.float_nodes, *self.excluded(model))

    def excluded(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Nodes of the excluded layers.

        Raises:
            UserError: a layer that is not there.
        """
        return nodes_of(self.layers(model), self.exclude, "quantize.exclude")


class UnfitError(UserError):
    """A scheme that does nothing for a model; the message says why."""


class Scheme(ABC):
    """One way to make a smaller or faster variant of an fp32 graph.

    Attributes:
        precision: what the network's arithmetic is done in, and ``w4`` or ``w8`` where weights alone are integers.
        backend: the library that does the work.
        modules: importable names that it needs beyond the ``quantize`` extra's own.
        uses_samples: whether it looks at calibration samples.
        per_target: whether it measures, and makes a variant for one target alone.
        program: whose int8 kernels the torch program is for that it writes beside the graph; empty: it writes none.
        summary: for tables: what it does.
        folder: name of its variant's folder.
    """

    name: ClassVar[str]
    precision: ClassVar[str]
    backend: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    uses_samples: ClassVar[bool] = True
    per_target: ClassVar[bool] = False
    program: ClassVar[str] = ""
    summary: ClassVar[str]
    folder: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "folder" not in vars(cls) and "name" in vars(cls):
            cls.folder = cls.name

    def make(self, material: Material, folder: Path) -> Variant:
        """Writes the variant into ``folder``.

        Raises:
            UnfitError: the model has nothing that this scheme works on.
            UserError: a library is missing, or an excluded layer is not there.
        """
        require_modules(*self.modules)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            facts, source = self._made(material, temporary / MODEL)
            # What comes after the network reads what the network has in eight bits; it computes in float.
            made = onnx.load(temporary / MODEL)
            onnx.checker.check_model(made)
            require_float(made, set(source.float_nodes) - set(source.answer_nodes))
            if self.uses_samples:
                facts = {**facts, "calibration_samples": len(material.calibration), "real": material.calibration.real}
            if material.exclude:
                facts = {**facts, "exclude": list(material.exclude)}
            variant = replace(
                source,
                name=folder.name,
                scheme=self.name,
                precision=self.precision,
                backend=self.backend,
                folder=temporary,
                in_float=tuple(in_float(made)),
                target=material.search.target if self.per_target and material.search else "",
                program=self.program,
                facts=facts,
            )
            variant.save()
        return replace(variant, folder=folder)

    def _made(self, material: Material, out: Path) -> tuple[dict[str, Any], Variant]:
        """Writes the ONNX file ``out``; returns how it was made, and the source with the names of ``out``'s nodes."""
        return self._write(material, out), material.source

    @abstractmethod
    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        """Writes the ONNX file ``out``; returns how it was made."""


SCHEMES: Registry[Scheme] = Registry("scheme", "quantize.schemes", "mst_edge.schemes")


def require_schemes(names: Sequence[str]) -> None:
    """Makes sure, before anything is trained, that schemes are known and can be made.

    Raises:
        UserError: an unknown scheme, or a library that is missing.
    """
    require_modules("onnx", "onnxscript")
    for name in names:
        require_modules(*SCHEMES.get(name, where="quantize.schemes").modules)


def require_types(model: onnx.ModelProto, types: Collection[str], scheme: str) -> None:
    """The graph must hold an operator that the scheme works on.

    Raises:
        UnfitError: it holds none.
    """
    if not any(node.op_type in types for node in model.graph.node):
        raise UnfitError(f"{scheme} quantizes {', '.join(sorted(types))}, of which the model has none")
