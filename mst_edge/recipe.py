"""The recipe: one YAML file that says everything about a run. Parsed once, frozen afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mst_edge.core.border import parse, read_yaml
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import sha256_json

S = TypeVar("S", bound="Section")
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSection(Section):
    """How the data is parted; its seed is apart from the seed of initialisation. See ``SplitRule``."""

    seed: int = Field(0, ge=0)
    fractions: tuple[Share, Share, Share] = (0.6, 0.2, 0.2)
    by: str = ""
    folds: int = Field(0, ge=0)


class DatasetSection(Section):
    """A built-in dataset by ``name``; or by ``path`` a folder of arrays, class folders, or a CSV."""

    name: str = ""
    path: Path | None = None
    options: dict[str, Any] = {}
    split: SplitSection = SplitSection()

    @model_validator(mode="after")
    def _one_of(self) -> DatasetSection:
        if bool(self.name) == (self.path is not None):
            raise UserError("give either name or path", where="dataset")
        return self


class NetworkSection(Section):
    """A network by name, ``auto``, or ``pkg.mod:Class``."""

    network: str = "auto"
    options: dict[str, Any] = {}


class StudentSection(NetworkSection):
    """What is deployed: it reads one modality.

    ``hop``: of a stream, a window begins so many samples (of a sequence, rows) after the last; a tenth of its length
    where it is null.
    """

    modality: str
    hop: Count | None = None


class TeacherSection(NetworkSection):
    """A teacher; with ``weights``, a safetensors file, it is loaded and not trained."""

    weights: Path | None = None


class TeachersSection(Section):
    """``multimodal`` reads everything; ``cross_modal`` holds one teacher per modality that the student lacks.

    ``unimodal`` is for data of one modality: an ordinary teacher, larger than the student.
    """

    multimodal: TeacherSection = TeacherSection()
    cross_modal: dict[str, TeacherSection] = {}
    unimodal: TeacherSection | None = None


class EpochsSection(Section):
    """Every method's student gets ``collaborate + distill`` epochs."""

    collaborate: Count = 10
    masks: Count = 5
    distill: Count = 20


class OptimizerSection(Section):
    """One optimiser for everything that learns; ``pretrained_lr`` for layers that start with weights of files."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-3
    pretrained_lr: Positive | None = None
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"


class ProveSection(Section):
    """Candidates that are really trained: how many, by which method, for how many epochs. 0 trains none."""

    candidates: int = Field(12, ge=0)
    method: str = "kd"
    epochs: int = Field(6, ge=2)


class SearchSection(Section):
    """Students to choose from before the chosen one is trained.

    ``networks`` holds by name of a network its options, ``features`` options of the student's front end, each with the
    value or the list of values that it may have. ``candidates`` and ``minutes`` end an evolution. Limits of latency and
    size are those of ``goals``.
    """

    networks: dict[str, dict[str, Any]] = Field(min_length=1)
    features: dict[str, Any] = {}
    strategy: Literal["auto", "exhaustive", "evolution"] = "auto"
    similarity: Literal["classes", "channels"] = "classes"
    initialisations: Count = 3
    samples: int = Field(64, ge=2)
    candidates: Count = 100
    minutes: Positive = 30.0
    finalists: Count = 4
    prove: ProveSection = ProveSection()


class DistillSection(Section):
    """The method and its budget.

    ``compare`` names methods trained beside it for comparison; ``options`` override the preset. ``accumulate``
    cuts every batch into parts that are computed one after another, ``checkpoint_minutes`` is the training between
    two checkpoints inside an epoch, ``keep_gb`` limits what the cache keeps of frozen networks.
    """

    method: str = "mst"
    preset: str = ""
    options: dict[str, Any] = {}
    compare: tuple[str, ...] = ("lone", "kd")
    epochs: EpochsSection = EpochsSection()
    batch_size: int = Field(64, ge=2)
    accumulate: Count = 1
    optimizer: OptimizerSection = OptimizerSection()
    precision: Literal["fp32", "bf16"] = "fp32"
    class_balance: Literal["auto", "none", "weights"] = "auto"
    checkpoint_minutes: float = Field(10.0, ge=0)
    keep_gb: float = Field(8.0, ge=0)


class CalibrationSection(Section):
    """Which samples set the int8 ranges, and how."""

    samples: Count = 256
    calibrator: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"


class QatSection(Section):
    """How ``int8-qat`` and ``int8-qad`` train the student with int8's rounding."""

    epochs: Count = 5
    lr: Positive = 1e-4


class MixedSection(Section):
    """How far ``int8-mixed`` searches: until trials or minutes are spent. ``samples`` of the validation split judge."""

    trials: Count = 40
    minutes: Positive = 10.0
    samples: Count = 1000


class QuantizeSection(Section):
    """Schemes to make beside fp32; layers named in ``exclude`` stay in float in all of them. ``sensitivity`` asks what
    int8 does to each layer."""

    schemes: tuple[str, ...] = ("int8-static", "int8-nncf")
    exclude: tuple[str, ...] = ()
    sensitivity: bool = True
    calibration: CalibrationSection = CalibrationSection()
    qat: QatSection = QatSection()
    mixed: MixedSection = MixedSection()


class AccuracySection(Section):
    """Limits on the task's headline metric; drops are relative to the fp32 student."""

    min: Share | None = None
    max: Positive | None = None
    max_relative_drop_percent: float | None = Field(None, ge=0)
    max_drop_points: float | None = Field(None, ge=0)
    confident: bool = False


class LatencySection(Section):
    """Upper limits per percentile."""

    p50_ms: Positive | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None


class TargetGoalsSection(Section):
    """Goals of one target; what is null or false is as for all."""

    accuracy: AccuracySection = AccuracySection()
    latency: LatencySection = LatencySection()
    max_size_mb: Positive | None = None
    max_memory_mb: Positive | None = None
    min_speedup: Positive | None = None
    min_int8_speedup: float | None = Field(None, ge=0)


class GoalsSection(Section):
    """What the deployed build must reach; ``targets`` says by name where one target is held to something else."""

    accuracy: AccuracySection = AccuracySection(max_relative_drop_percent=1.0)
    latency: LatencySection = LatencySection()
    max_size_mb: Positive | None = None
    max_memory_mb: Positive | None = None
    min_speedup: Positive | None = None
    min_int8_speedup: float = Field(1.1, ge=0)
    targets: dict[str, TargetGoalsSection] = {}


class MeasureSection(Section):
    """How latency is measured: until both minima are reached for every build, and those of the protocol.

    ``runtimes`` names those that build, each on the targets that have it; by default those that bundles run with.
    ``tune`` asks for threads and other settings of the builds that pass, tried for ``tune_minutes`` at most.
    """

    runtimes: tuple[str, ...] = ()
    protocol: Literal["quick", "mlperf"] = "quick"
    threads: Count = 1
    tune: bool = False
    tune_minutes: Positive = 10.0
    min_runs: Count = 100
    min_seconds: Positive = 3.0


class Recipe(Section):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: int = Field(0, ge=0)
    dataset: DatasetSection
    modalities: dict[str, dict[str, Any]] = {}
    student: StudentSection
    search: SearchSection | None = None
    teachers: TeachersSection = TeachersSection()
    distill: DistillSection = DistillSection()
    quantize: QuantizeSection = QuantizeSection()
    targets: tuple[str, ...] = Field(("cpu",), min_length=1)
    goals: GoalsSection = GoalsSection()
    measure: MeasureSection = MeasureSection()

    def to_dict(self) -> dict[str, Any]:
        """JSON form, every default spelt out."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Hash over everything the recipe says."""
        return sha256_json(self.to_dict())

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_recipe(path: Path, overrides: Sequence[str] = (), targets: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe file.

    Args:
        overrides: ``a.b=value`` settings, values in YAML.
        targets: replace the recipe's targets where given.

    Raises:
        UserError: the file or an override is wrong; names the key.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError("expected keys and values", where=path)
    for override in overrides:
        _apply(raw, override)
    if targets:
        raw["targets"] = list(targets)
    return _with_absolute_paths(parse(Recipe, _with_absolute_models(raw, path.parent), where=path), path.parent)


def _with_absolute_models(said: Any, beside: Path) -> Any:
    """What a recipe says, ``hf:folder`` made absolute wherever there is such a folder beside its file."""
    if isinstance(said, dict):
        return {key: _with_absolute_models(value, beside) for key, value in said.items()}
    if isinstance(said, list):
        return [_with_absolute_models(value, beside) for value in said]
    if isinstance(said, str) and said.startswith("hf:") and (beside / said.removeprefix("hf:")).is_dir():
        return f"hf:{(beside / said.removeprefix('hf:')).resolve()}"
    return said


def _with_absolute_paths(recipe: Recipe, beside: Path) -> Recipe:
    """The recipe with its relative paths, which start at its file, made absolute."""

    def resolved(section: S, key: str) -> S:
        path = getattr(section, key)
        return section if path is None else section.model_copy(update={key: (beside / path).resolve()})

    teachers = recipe.teachers
    cross_modal = {name: resolved(teacher, "weights") for name, teacher in teachers.cross_modal.items()}
    multimodal = resolved(teachers.multimodal, "weights")
    return recipe.model_copy(
        update={
            "dataset": resolved(recipe.dataset, "path"),
            "teachers": teachers.model_copy(update={"multimodal": multimodal, "cross_modal": cross_modal}),
        }
    )


def find_recipe(name: str) -> Path:
    """A recipe file by path, or one that ships with us by its bare name.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in _shipped_folder().glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise UserError("no such recipe file", where=name, fix=f"shipped recipes: {', '.join(sorted(shipped))}")
    raise unknown_name("recipe", name, shipped)


def _shipped_folder() -> Path:
    """``recipes/`` of a source checkout, or the copy that the wheel carries."""
    beside = Path(__file__).resolve().parent
    carried = beside / "recipes"
    return carried if carried.is_dir() else beside.parent / "recipes"


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"expected key.path=value, received {override!r}", where="--set")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise UserError(f"{parent} in {key} holds a value, not keys", where="--set")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"value of {key} is not valid YAML ({error})", where="--set") from None


def parse_options(cls: type, said: Mapping[str, Any], *, where: str) -> Any:
    """Options of a plug-in: an instance of its frozen dataclass ``cls``.

    Raises:
        UserError: an unknown or ill-typed option; names it and the closest known one.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for key in said:
        if key not in known:
            raise unknown_name("option", key, known, where=where)
    try:
        return TypeAdapter(cls).validate_python(dict(said))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{problem['msg']}; received {problem['input']!r}", where=f"{where}.{key}") from None


def require_same(recipe: Recipe, earlier: Mapping[str, Any], where: object) -> None:
    """Refuses to continue a run that another recipe began.

    Raises:
        UserError: names the first key that differs.
    """
    difference = _first_difference(recipe.to_dict(), earlier, "")
    if difference:
        raise UserError(
            f"the run was begun by another recipe: {difference}",
            where=where,
            fix="use the same recipe, or another --out",
        )


def _first_difference(ours: Any, theirs: Any, path: str) -> str:
    if isinstance(ours, dict) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            found = _first_difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if ours == theirs else f"{path} is {ours!r}, was {theirs!r}"
