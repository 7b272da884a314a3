"""Work for processes of their own, forked from one server that has imported torch: starting one takes no time."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.base import METHODS
from distill.methods.tgeo import Controller
from distill.networks.registry import Model, NetworkChoice
from distill.tasks import Classification, task_for
from distill.training.features import Batch, FeatureStore
from distill.training.parallel import SharedStatistics, connect
from distill.training.phase import Session

OptimizerChoice().build([nn.Linear(1, 1)])  # the first optimiser of a process imports for a second
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "distill.methods.mst", "distill.networks.fusion"])


def run(work: Callable[..., None], *arguments: object, **more: object) -> int:
    """Exit code of a process that did the work; negative where a signal ended it."""
    (code,) = run_together(1, work, *arguments, **more)
    return code


def run_together(processes: int, work: Callable[..., None], *arguments: object, **more: object) -> list[int]:
    """Exit codes of processes that did the work, told of each other as a launcher does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        told = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = _CONTEXT.Process(target=_work, args=(told, work, arguments, more))
        process.start()
        started.append(process)
    for process in started:
        process.join(120)
        process.kill()  # which does nothing to one that has ended
    return [process.exitcode or 0 for process in started]


def _work(
    told: dict[str, object], work: Callable[..., None], arguments: tuple[object, ...], more: dict[str, object]
) -> None:
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(1)
    work(*arguments, **more)


def vectors_lab(data: Path, folder: Path, *, dropout: float = 0.0, **session: object) -> Lab:
    """A lab on a folder of vectors, with networks that have no batch norm."""
    dataset = open_arrays(data)
    frontends = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    names = tuple(dataset.modalities)
    encoders = {name: {"network": "mlp"} for name in names}
    splits = split_dataset(dataset, SplitRule())
    return Lab(
        store=FeatureStore(dataset, splits, frontends),
        task=task_for(dataset, splits["train"]),
        session=Session(folder, torch.device("cpu"), 0, **{"batch_size": 32, **session}),
        student_modality=names[0],
        student=NetworkChoice("mlp", {"dropout": dropout}),
        teachers={
            "multimodal": (names, NetworkChoice("fusion", {"hidden": 16, "dropout": dropout, "encoders": encoders})),
            **{name: ((name,), NetworkChoice("mlp")) for name in names[1:]},
        },
        # Not Adam: it makes a step of full size from a gradient that is mere rounding.
        optimizer=OptimizerChoice(name="sgd", lr=0.03),
        epochs=Epochs(2, 1, 2),
    )


def train(data: Path, folder: Path, methods: dict[str, dict[str, object]], **session: object) -> None:
    """Trains students by several methods, together with whoever was started together."""
    lab = vectors_lab(data, folder, processes=connect(torch.device("cpu")), **session)
    for name, options in methods.items():
        cls = METHODS.get(name)
        cls(lab, cls.Options(**options)).train()


def train_mst_until(
    data: Path, folder: Path, last: list[object] | None, checkpoint_minutes: float, dropout: float = 0.2
) -> None:
    """Trains with MST-Distill and lists its steps; kills itself, as the kernel would, before step ``last``."""
    processes = connect(torch.device("cpu"))
    lab = vectors_lab(data, folder, dropout=dropout, checkpoint_minutes=checkpoint_minutes, processes=processes)
    plain, steps = lab.store.shuffled, []

    def shuffled(split, batch_size, seed, modalities, device, **more):
        for number, batch in enumerate(plain(split, batch_size, seed, modalities, device, **more), more["skip"]):
            steps.append([*seed, number])
            if steps[-1] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    lab.store.shuffled = shuffled
    method = METHODS.get("mst")
    method(lab, method.Options()).train()
    (folder / "steps.json").write_text(json.dumps(steps))


class Coupled(nn.Module):
    """Batch norm over maps and over vectors, and a loss between samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.last = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, affine=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))


def compare_gradients(samples: int) -> None:
    """Loss, gradients and running statistics of this process's share, against those of the whole batch."""
    processes = connect(torch.device("cpu"))
    torch.manual_seed(0)
    alone, x, target = Coupled(), torch.randn(samples, 2, 6, 6), torch.randn(samples, 5)
    shared = copy.deepcopy(alone)

    def loss(z: Tensor, wanted: Tensor, all_z: Tensor) -> Tensor:
        return functional.mse_loss(z, wanted) + (all_z @ all_z.T).tanh().sum()

    z = alone(x)
    whole = loss(z, target, z)
    whole.backward()
    (part,) = processes.parts(0, samples, 1)
    batch = Batch(torch.arange(samples), {}, target, rows=part.rows)
    with SharedStatistics():
        z = shared(x[part.start : part.end])
        mine = part.weight * loss(z, target[part.start : part.end], batch.gather(z))
    mine.backward()
    (total,) = processes.average(list(shared.parameters()), mine.detach()[None])
    assert torch.allclose(total, whole, rtol=1e-5, atol=1e-4), (total, whole)
    for (name, expected), parameter in zip(alone.named_parameters(), shared.parameters(), strict=True):
        if expected.grad is None:
            assert parameter.grad is None, name
        else:
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-4, atol=1e-5), name
    for name, expected in alone.named_buffers():
        assert torch.allclose(shared.get_buffer(name).float(), expected.float(), rtol=1e-5, atol=1e-6), name


def compare_outer_gradients(data: Path, folder: Path, samples: int) -> None:
    """What this process adds to the controller of TGeo-KD, averaged, against what the whole batch gives alone; the
    student has batch norm, whose statistics are shared."""
    processes = connect(torch.device("cpu"))
    lab = replace(vectors_lab(data, folder, processes=processes), task=Classification(5))
    method = METHODS.get("tgeo")(lab, METHODS.get("tgeo").Options(virtual_lr=0.5))
    torch.manual_seed(0)
    student = Model("student", "coupled", Coupled(), ("x",), False)
    controller, again = (Controller(torch.softmax(torch.eye(5), dim=1)) for _ in range(2))
    again.load_state_dict(controller.state_dict())
    x, told, target = torch.randn(samples, 2, 6, 6), torch.randn(samples, 5), torch.arange(samples) % 5
    held = Batch(torch.arange(9), {"x": torch.randn(9, 2, 6, 6)}, torch.arange(9) % 5)

    def outer(judge: Controller, batch: Batch, teacher: Tensor) -> Tensor:
        z = student(batch.inputs)
        sides = method._sides(z, teacher, batch.target)
        return method.outer(student, judge(z, teacher, batch.target), sides, batch, held)

    outer(controller, Batch(torch.arange(samples), {"x": x}, target), told).backward()
    (part,) = processes.parts(0, samples, 1)
    mine = slice(part.start, part.end)
    with SharedStatistics():
        batch = Batch(torch.arange(samples)[mine], {"x": x[mine]}, target[mine], part.weight, part.rows)
        value = part.weight * outer(again, batch, told[mine])
    value.backward()
    processes.average(list(again.parameters()), value.detach()[None])
    for (name, expected), parameter in zip(controller.named_parameters(), again.parameters(), strict=True):
        assert expected.grad is not None
        assert expected.grad.abs().max() > 1e-6, name
        assert torch.allclose(parameter.grad, expected.grad, rtol=1e-3, atol=1e-7), (name, parameter.grad)
