"""From data to the student: the recipe's method, and the methods that it is compared with, in one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.lab import MULTIMODAL, UNIMODAL, Epochs, Lab, OptimizerChoice, teacher_key
from distill.methods.base import METHODS, Method
from distill.networks.registry import Model, NetworkChoice
from distill.student import Student, StudentSpec, save_student
from distill.tasks import Task, balanced_class_weights, task_for
from distill.teachers import TeacherFile, open_teacher, save_teacher
from distill.training.features import FeatureStore
from distill.training.parallel import ALONE, Processes
from distill.training.phase import Reporter, Session
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, read_json, sha256_file, write_json
from mst_edge.core.scoring import Predictions
from mst_edge.derived import begin_with
from mst_edge.recipe import DistillSection, NetworkSection, Recipe, StudentSection, TeacherSection, parse_options
from mst_edge.run_folder import TRAINING, RunFolder
from mst_edge.stages.data import Data
from mst_edge.stages.teachers import memorised, seen_and_unseen

STAGE = TRAINING
LOGITS, ANSWERS = "student_logits.npy", "student_answers.npy"


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where it works, else the CPU.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "CUDA is not available here", where="--device", fix="use --device cpu, or install a CUDA build of torch"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make_lab(
    recipe: Recipe,
    data: Data,
    folder: Path,
    device: torch.device,
    reporter: Reporter,
    processes: Processes = ALONE,
) -> Lab:
    """Everything that methods need, as the recipe says; training keeps its state in ``folder``.

    Raises:
        UserError: a batch has too few samples for all its parts.
    """
    said = recipe.distill
    require_samples_for_all(said, processes)
    task = make_task(recipe, data)
    teachers, pretrained = _teachers(recipe, data, task)
    return Lab(
        store=FeatureStore(data.dataset, data.splits, data.frontends, data.augmentations),
        task=task,
        session=Session(
            folder,
            device,
            recipe.seed,
            said.batch_size,
            bf16=said.precision == "bf16",
            reporter=reporter,
            processes=processes,
            accumulate=said.accumulate,
            checkpoint_minutes=said.checkpoint_minutes,
        ),
        student_modality=recipe.student.modality,
        student=_choice(recipe.student),
        teachers=teachers,
        pretrained=pretrained,
        optimizer=OptimizerChoice(**said.optimizer.model_dump()),
        epochs=Epochs(**said.epochs.model_dump()),
        keep_gb=said.keep_gb,
    )


def make_task(recipe: Recipe, data: Data) -> Task:
    """The data's task, its loss weighing classes where the recipe and their counts say so."""
    train, weights = data.splits["train"], None
    if data.balances_classes(recipe.distill.class_balance):
        weights = balanced_class_weights(torch.from_numpy(data.dataset.class_counts(train)))
    return task_for(data.dataset, train, weights)


def _teachers(
    recipe: Recipe, data: Data, task: Task
) -> tuple[dict[str, tuple[tuple[str, ...], NetworkChoice]], dict[str, TeacherFile]]:
    """Every teacher's modalities and network, and those that come trained, once they fit the data.

    Front ends standardise as trained teachers expect.
    """
    teachers, pretrained = {}, {}
    for name, (reads, section) in _teacher_sections(recipe, tuple(data.dataset.modalities)).items():
        choice = _choice(section)
        if section.weights is not None:
            where = f"{teacher_key(name)}.weights"
            file = pretrained[name] = open_teacher(section.weights, where)
            file.require_fit(reads, task.output.names, choice, where)
            file.require_same_scale(task.answer_state(), where)
            file.pin(data.frontends, data.frontend_options, where)
            choice = file.choice(choice)
        teachers[name] = (reads, choice)
    return teachers, pretrained


def _teacher_sections(recipe: Recipe, modalities: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], TeacherSection]]:
    """Name to what a teacher reads and what the recipe says of it, the main one first."""
    said = recipe.teachers
    if len(modalities) == 1:
        return {} if said.unimodal is None else {UNIMODAL: (modalities, said.unimodal)}
    crossing = [name for name in modalities if name != recipe.student.modality]
    return {
        MULTIMODAL: (modalities, said.multimodal),
        **{name: ((name,), said.cross_modal.get(name, TeacherSection())) for name in crossing},
    }


def require_samples_for_all(said: DistillSection, processes: Processes) -> None:
    """Refuses a batch that cannot be cut into parts of two samples, which batch norm needs.

    Raises:
        UserError: says how large it must be.
    """
    parts = said.accumulate * processes.size
    if said.batch_size < 2 * parts:
        raise UserError(
            f"{said.batch_size} samples cannot be cut into {parts} parts of two or more "
            f"(accumulate {said.accumulate}, {processes.size} processes)",
            where="distill.batch_size",
            fix=f"raise it to {2 * parts}, lower distill.accumulate or start fewer processes",
        )


def method_options(name: str, preset: str, said: dict[str, Any], asked_by: str = "distill.preset") -> Any:
    """A method's options: its preset, overridden by what the recipe says.

    Args:
        asked_by: the key or flag that named the preset.

    Raises:
        UserError: unknown method, preset or option.
    """
    cls = METHODS.get(name)
    presets = getattr(cls, "presets", {})
    if preset and preset not in presets:
        known = ", ".join(presets) or "none"
        raise UserError(f"{name} has no preset {preset!r}", where=asked_by, fix=f"presets: {known}")
    return parse_options(cls.Options, {**presets.get(preset, {}), **said}, where="distill.options")


def make_method(recipe: Recipe, lab: Lab, name: str) -> Method:
    """A method as the recipe says: its own with its preset and options, any other with its defaults.

    Raises:
        UserError: unknown method, preset or option, or options that contradict each other.
    """
    mine = name == recipe.distill.method
    cls = METHODS.get(name, where="distill.method" if mine else "distill.compare")
    options = method_options(name, recipe.distill.preset if mine else "", recipe.distill.options if mine else {})
    return cls(lab, options)


def checked_methods(recipe: Recipe, lab: Lab) -> dict[str, Method]:
    """The run's methods by name, the recipe's own last, once every network that they need could be built.

    Raises:
        UserError: an unknown method, preset, option, network or layer, or one that does not fit the data.
    """
    methods: dict[str, Method] = {}
    for name in dict.fromkeys([*recipe.distill.compare, recipe.distill.method]):
        methods[name] = make_method(recipe, lab, name)
    lab.new_student()
    if needs_teachers(methods):
        for teacher in lab.teachers:
            lab.new_teacher(teacher)
        for teacher in lab.pretrained:
            lab.trained_teacher(teacher)
    for method in methods.values():
        method.check()
    return methods


def needs_teachers(methods: Iterable[str]) -> bool:
    """Whether any of the methods distils."""
    return any(name != "lone" for name in methods)


def run_distill(recipe: Recipe, data: Data, run: RunFolder, lab: Lab, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Trains everything that is not trained yet; writes the student and the stage's record.

    Raises:
        UserError: the loss is no longer finite, or a trained teacher changed since {file.parent} was begun.
    """
    keep_identity(lab, run.distill / "pretrained.json")
    models: list[dict[str, Any]] = []
    statistics: dict[str, NDArray[np.float64]] = {}
    insights: dict[str, Any] = {}
    chosen: Model | None = None
    if needs_teachers(methods):
        teacher = lab.trained_teacher(lab.main_teacher)
        statistics["teacher"] = lab.statistics(teacher, "test")
        models.append(_row(lab, "lone", "teacher", teacher, statistics["teacher"], lab.lone_phases(teacher.name)))
    for name, method in methods.items():
        student = method.train()
        statistics[name] = lab.statistics(student, "test")
        phases = [work.phase for work in method.workload() if "student" in work.trained]
        models.append(_row(lab, name, "student", student, statistics[name], phases))
        if method.insights:
            insights[name] = method.insights
        if name == recipe.distill.method:
            chosen = student
    assert chosen is not None
    teachers = seen_and_unseen(lab, insights)
    record = {
        "method": recipe.distill.method,
        "preset": recipe.distill.preset,
        "scoring": lab.task.scoring.describe(),
        "certainty": lab.task.certainty[0],
        "device": str(lab.session.device),
        "precision": recipe.distill.precision,
        "student_epochs": lab.epochs.student,
        "class_weights": None if lab.task.class_weights is None else lab.task.class_weights.tolist(),
        "models": models,
        "insights": insights,
        "teachers": teachers,
        "diagnoses": [
            *diagnose(lab, recipe.distill.method, statistics, data.origin()),
            *memorised(teachers, lab.task.certainty),
            *(note for insight in insights.values() for note in insight.get("notes", [])),
        ],
    }
    companions = methods[recipe.distill.method].companions
    rows = {name: _companion_row(lab, recipe.distill.method, model) for name, model in companions.items()}
    if lab.session.processes.first:
        _save(recipe, data, run, lab, chosen)
        for name, model in companions.items():
            beside = deployable(model, data, lab, _facts(recipe))
            said = {**record, "models": [rows[name]], "diagnoses": [_trained_beside(run, recipe)]}
            begin_with(beside, _of_companion(recipe, model), said, lab.histories, run.path / name)
        run.finish_stage(STAGE, record)
    return record


def _companion_row(lab: Lab, method: str, model: Model) -> dict[str, Any]:
    """As ``_row``; histories of training tell of the student alone."""
    return _row(lab, method, "student", model, lab.statistics(model, "test"), [])


def _of_companion(recipe: Recipe, model: Model) -> Recipe:
    """The recipe whose student is the companion, and whose companion is the student."""
    (modality,), own = model.reads, recipe.student
    crossing = {name: said for name, said in recipe.teachers.cross_modal.items() if name != modality}
    crossing[own.modality] = TeacherSection(network=own.network, options=own.options)
    options = {**recipe.distill.options, "partner": own.modality}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-{modality}",
            "student": StudentSection(modality=modality, network=model.network, options=dict(model.options)),
            "search": None,
            "teachers": recipe.teachers.model_copy(update={"cross_modal": crossing}),
            "distill": recipe.distill.model_copy(update={"options": options, "compare": ()}),
        }
    )


def _trained_beside(run: RunFolder, recipe: Recipe) -> dict[str, str]:
    text = f"trained beside the student of {run.path.name}, which reads {recipe.student.modality}; see its report"
    return {"level": "note", "text": text}


def keep_identity(lab: Lab, file: Path) -> None:
    """Remembers which trained teachers a run or comparison was begun with, and refuses to go on with others."""
    now = {name: sha256_file(teacher.weights) for name, teacher in lab.pretrained.items()}
    for name, sha256 in (read_json(file) if file.is_file() else {}).items():
        if now[name] != sha256:
            raise UserError(
                f"{lab.pretrained[name].weights} changed since {file.parent} was begun",
                where=f"{teacher_key(name)}.weights",
                fix="put the old file back, or use another --out",
            )
    if now and lab.session.processes.first:
        write_json(file, now)
    lab.session.processes.wait()


def _save(recipe: Recipe, data: Data, run: RunFolder, lab: Lab, model: Model) -> None:
    save_student(run.distill, deployable(model, data, lab, _facts(recipe)))
    for name, teacher in lab.lone_teachers().items():
        frontends = {modality: data.frontends[modality] for modality in teacher.reads}
        save_teacher(
            run.distill / "teachers" / f"{name}.safetensors",
            teacher.module,
            frontends,
            data.frontend_options,
            classes=list(lab.task.output.names),
            **{name: values.tolist() for name, values in lab.task.answer_state().items()},
            network=asdict(NetworkChoice(teacher.network, dict(teacher.options))),
            trained_on=data.origin(),
        )
    write_json(run.histories_file, lab.histories)


def _facts(recipe: Recipe) -> dict[str, Any]:
    """What a student's file says of its training."""
    return {"method": recipe.distill.method, "preset": recipe.distill.preset, "seed": recipe.seed}


def deployable(model: Model, data: Data, lab: Lab, facts: dict[str, Any]) -> Student:
    """A network of one modality with its front end before it and its units behind it, in eval mode, on the CPU."""
    model = model.deployed()
    (modality,) = model.reads
    spec = StudentSpec(
        modality=data.dataset.modalities[modality],
        frontend=data.frontend_options[modality],
        network=NetworkChoice(model.network, dict(model.options)),
        output=lab.task.output,
        map_size=lab.task.map_size,
        facts=facts,
        tokenizer=data.frontends[modality].tokenizer,
    )
    student = Student(spec)
    student.frontend.load_state_dict(data.frontends[modality].state_dict())
    student.network.load_state_dict(model.module.to("cpu").state_dict())
    student.answer.load_state_dict(lab.task.answer_state())
    return student.eval()


def _row(
    lab: Lab, method: str, role: str, model: Model, statistics: NDArray[np.float64], phases: list[str]
) -> dict[str, Any]:
    """What the result says of a trained model; ``phases`` name the histories of its training, in order."""
    interval = lab.task.scoring.interval(statistics)
    return {
        "method": method,
        "role": role,
        "reads": list(model.reads),
        "parameters": model.parameters,
        "phases": phases,
        "val": lab.evaluate(model, "val"),
        "test": lab.evaluate(model, "test"),
        "test_interval": [interval.low, interval.high],
    }


def diagnose(
    lab: Lab, method: str, statistics: dict[str, NDArray[np.float64]], origin: Mapping[str, str]
) -> list[dict[str, str]]:
    """What the user should hear about teachers and student, with the reason and what to try.

    Args:
        statistics: of test samples, by method; those of the multimodal teacher by ``teacher``.
        origin: ``Data.origin`` of the data at hand.
    """
    said: list[dict[str, str]] = []
    scoring = lab.task.scoring
    teacher, lone = statistics.get("teacher"), statistics.get("lone")
    if teacher is not None and lone is not None and scoring.gain(lone, teacher) <= 0:
        text = (
            f"the {lab.main_teacher} teacher is no better than the lone student "
            f"({scoring.value(teacher) - scoring.value(lone):+.1%} {scoring.label}): it has "
            "nothing to teach. Train it longer, give it a wider network, or check that its modalities are paired"
        )
        said.append({"level": "warning", "text": text})
    for name, file in lab.pretrained.items():
        if file.saw_other_split(**origin):
            text = (
                f"the {name} teacher comes from {file.weights}, trained on another split of this dataset: it may have "
                "seen samples of this test split, so accuracies here say too much"
            )
            said.append({"level": "warning", "text": text})
    if lone is not None and method != "lone":
        drop = scoring.drop(lone, statistics[method])
        sign = -1 if scoring.higher_is_better else 1
        low, high = sorted((sign * drop.low, sign * drop.high))
        verdict = "better than" if drop.high < 0 else "worse than" if drop.low > 0 else "not clearly different from"
        text = (
            f"the {method} student is {verdict} the lone student on the test split: "
            f"{sign * drop.estimate:+.1%} {scoring.label}, 95 % interval {low:+.1%} to {high:+.1%}"
        )
        said.append({"level": "note" if drop.estimate < 0 else "warning", "text": text})
    return said


def save_predictions(run: RunFolder, said: Predictions) -> None:
    """Keeps what the fp32 torch student says of the test split."""
    for name, array in ((LOGITS, said.outputs), (ANSWERS, said.answers)):
        with atomic_path(run.evaluation / name) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)


def load_predictions(run: RunFolder) -> Predictions:
    """What ``save_predictions`` kept."""
    answers, outputs = (np.load(run.evaluation / name, allow_pickle=False) for name in (ANSWERS, LOGITS))
    return Predictions(answers, outputs)


def _choice(section: NetworkSection) -> NetworkChoice:
    return NetworkChoice(section.network, section.options)
