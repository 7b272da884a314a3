"""One contender on one seed: trained, tested, timed. Runs in a process of its own.

A process each, because the peak memory of a process never shrinks: in a shared one, every method would be
charged for the hungriest before it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apps.runtime.bundle import memory_mb
from distill.lab import Lab, TeacherNeededError
from distill.methods.base import METHODS
from distill.networks.registry import Model
from distill.training.phase import Reporter
from mst_edge.cli.console import ConsoleWatcher
from mst_edge.compare.contenders import Contender
from mst_edge.core.border import parse
from mst_edge.core.errors import ExitCode, UserError
from mst_edge.core.files import atomic_path, read_json, write_json
from mst_edge.recipe import Recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import make_lab, pick_device

_RECORD, _STATISTICS, _COST = "trial.json", "statistics.npy", "cost.json"


@dataclass(frozen=True)
class Trial:
    """What a trained contender reached on one seed: a JSON-able record, and what the task's scoring keeps of each
    test sample, ``(samples, n)``."""

    record: dict[str, Any]
    statistics: NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """What to train: a contender, on the seed that ``recipe`` says twice (initialisation and split).

    Attributes:
        folder: of the seed; lone-trained networks lie in ``alone``, each contender has a folder of its own.
    """

    recipe: Mapping[str, Any]
    contender: Contender
    folder: Path
    data_root: Path | None
    device: str
    quiet: bool

    @property
    def own_folder(self) -> Path:
        """The contender's folder."""
        return self.folder / self.contender.slug

    def to_json(self) -> str:
        """As the process takes it."""
        root = None if self.data_root is None else str(self.data_root)
        return json.dumps({**asdict(self), "folder": str(self.folder), "data_root": root})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """What ``to_json`` wrote."""
        said = json.loads(text)
        root = None if said["data_root"] is None else Path(said["data_root"])
        return cls(
            **{
                **said,
                "contender": Contender(**said["contender"]),
                "folder": Path(said["folder"]),
                "data_root": root,
            }
        )

    def finished(self) -> Trial | None:
        """What an earlier process found out; None where it did not finish."""
        if not (self.own_folder / _RECORD).is_file():
            return None
        return Trial(read_json(self.own_folder / _RECORD), np.load(self.own_folder / _STATISTICS, allow_pickle=False))


class Costs(Reporter):
    """Counts time and memory over all processes that worked on one trial, and hands progress on.

    Kept after every epoch, so that a resumed trial says what all its epochs took; only an epoch that was cut
    off is not counted.
    """

    def __init__(self, file: Path, listener: Reporter, device: torch.device) -> None:
        self._file, self._listener, self._gpu = file, listener, device.type == "cuda"
        self._earlier = read_json(file) if file.is_file() else {}
        self._start = time.perf_counter_ns()

    def begin(self, phase: str, epochs: int, done: int) -> None:
        self._listener.begin(phase, epochs, done)

    def epoch(self, phase: str, epoch: int, scalars: Mapping[str, float]) -> None:
        write_json(self._file, self.now())
        self._listener.epoch(phase, epoch, scalars)

    def now(self) -> dict[str, float | None]:
        """Seconds of training, and peak memory in MB of process and GPU; None where the system does not tell."""
        gpu = torch.cuda.max_memory_allocated() / (1 << 20) if self._gpu else None
        seconds = (time.perf_counter_ns() - self._start) / 1e9 + self._earlier.get("seconds", 0.0)
        return {
            "seconds": seconds,
            "peak_memory_mb": self._most("peak_memory_mb", memory_mb().get("peak")),
            "peak_gpu_memory_mb": self._most("peak_gpu_memory_mb", gpu),
        }

    def _most(self, key: str, value: float | None) -> float | None:
        return max((v for v in (value, self._earlier.get(key)) if v is not None), default=None)


def train(request: Request, listener: Reporter) -> None:
    """Trains the contender and writes its record; continues where an earlier process stopped.

    Raises:
        TeacherNeededError: the method wants a teacher that is not trained yet.
        UserError: what is wrong with recipe or data.
    """
    recipe = parse(Recipe, request.recipe, where="recipe")
    data = prepare(recipe, request.data_root)
    lab = make_lab(recipe, data, request.folder / "alone", pick_device(request.device), listener)
    # What is the same for every contender counts for none: data, and what the first optimiser of a process imports.
    lab.optimizer.build([nn.Linear(1, 1)])
    costs = Costs(request.own_folder / _COST, listener, lab.session.device)
    lab = replace(lab, session=replace(lab.session, reporter=costs))
    model, insights, lab = _trained(lab, request)
    spent = costs.now()
    with atomic_path(request.own_folder / _STATISTICS) as temporary, temporary.open("wb") as file:
        np.save(file, lab.statistics(model, "test"), allow_pickle=False)
    record = {
        "contender": asdict(request.contender),
        "seed": recipe.seed,
        "reads": list(model.reads),
        "parameters": model.parameters,
        "output": asdict(lab.task.output),
        "test": lab.evaluate(model, "test"),
        "val": lab.evaluate(model, "val"),
        **spent,
        "borrowed": [name for name in lab.teachers if f"lone_{name}" in lab.histories],
        "samples": {name: len(ids) for name, ids in data.splits.items()},
        "data_sha256": data.dataset.fingerprint,
        "insights": insights,
    }
    # Last: its presence says that the trial is finished.
    write_json(request.own_folder / _RECORD, record)


def _trained(lab: Lab, request: Request) -> tuple[Model, dict[str, Any], Lab]:
    contender = request.contender
    if contender.role == "teacher":
        return lab.trained_teacher(contender.method), {}, lab
    own = lab.borrower(request.own_folder)
    method = METHODS.get(contender.method)(own, contender.parsed_options())
    return method.train(), method.insights, own


def main() -> None:
    """Trains what the only argument asks for; the answer is one line of JSON on standard output."""
    # Whatever a network or a method prints must not mix with the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = Request.from_json(sys.argv[1])
    answer: dict[str, Any] = {}
    try:
        with ConsoleWatcher(None, quiet=request.quiet) as watcher:
            train(request, watcher)
    except TeacherNeededError as needed:
        answer = {"needs": needed.name}
    except UserError as error:
        answer = {"error": [error.problem, error.where, error.fix]}
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:
        answer = {"bug": traceback.format_exc()}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _end_with_parent() -> None:
    """Ends this process when the parent does, even if that was killed: two must never train in one folder."""
    os.read(0, 1)  # the parent writes nothing; this returns when its end of the pipe closes
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
