"""Several processes train one network together: who computes what, and what they tell each other.

The optimiser of every process sees the gradient of the same global batch that one process alone would see. Each
process takes its share of the batch's samples; gradients are averaged once per step, terms that couple the samples
of a batch gather them (``Batch.gather``), and batch norm shares its sums. Gradients are averaged here and not by
``DistributedDataParallel``, since that counts on one ``forward`` of one module per step: methods here train several
networks at once, read layers inside them, run parts of them, and call some of them twice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mst_edge.core.errors import UserError

# Others wait for the first process while it builds a dataset; a launcher ends them where it dies.
_PATIENCE = timedelta(days=1)
_TOLD_BY_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Part:
    """What a process computes at once of a global batch.

    Attributes:
        start, end: the process's own samples, by their places in the epoch's order.
        weight: factor on their mean loss; its sum over a batch's parts, averaged over processes, is 1.
        rows: samples of each process in this part of the batch; empty where they are not shared out.
        ends_step: whether the batch ends here.
    """

    start: int
    end: int
    weight: float
    rows: tuple[int, ...]
    ends_step: bool


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def parts(self, start: int, end: int, accumulate: int) -> Iterator[Part]:
        """What this process computes of the global batch ``start .. end``, one after another.

        The batch is cut into ``accumulate`` pieces in order, and each piece is shared out over the processes. A
        piece that would leave a process fewer than two samples, which batch norm needs, is computed whole by all.
        """
        samples = end - start
        for size in _shares(samples, max(1, min(accumulate, samples // 2))):
            rows = () if self.size == 1 or size < 2 * self.size else _shares(size, self.size)
            before, mine = (sum(rows[: self.rank]), rows[self.rank]) if rows else (0, size)
            weight = mine * max(1, len(rows)) / samples
            yield Part(start + before, start + before + mine, weight, rows, start + size == end)
            start += size

    def average(self, parameters: Sequence[nn.Parameter], scalars: Tensor) -> Tensor:
        """Averages gradients over processes, in place, and returns the average of ``scalars``.

        A parameter that no process used keeps no gradient, so that optimisers go on leaving it alone.
        """
        if self.size == 1:
            return scalars
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=scalars.device)
        gradients = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([scalars, used, *(gradient.flatten() for gradient in gradients)])
        distributed.all_reduce(flat)
        flat /= self.size
        sizes = [len(scalars), len(used), *(p.numel() for p in parameters)]
        averaged, used, *rest = torch.split(flat, sizes)
        for parameter, share, values in zip(parameters, used.tolist(), rest, strict=True):
            parameter.grad = values.reshape(parameter.shape).clone() if share else None
        return averaged

    def agree(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """The first process's values, for all: they must decide alike which epoch was best."""
        if self.size == 1:
            return dict(scalars)
        values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=_place(torch.device("cpu")))
        distributed.broadcast(values, 0)
        return dict(zip(scalars, values.tolist(), strict=True))

    def wait(self) -> None:
        """Returns when every process got here."""
        if self.size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs what is inside while the others wait, then they do: caches are filled once."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


ALONE = Processes()


def launched() -> int:
    """How many processes a launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def connect(device: torch.device) -> Processes:
    """Joins the processes that ``torchrun`` or ``accelerate launch`` started; alone where neither did.

    On CUDA, each process takes the GPU of its local number.

    Raises:
        UserError: the launcher did not say all that is needed, or there are fewer GPUs than processes.
    """
    size = launched()
    if size == 1:
        return ALONE
    missing = [name for name in _TOLD_BY_LAUNCHER if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} not set",
            where="environment",
            fix="start with torchrun or accelerate launch (docs/scale.md), or unset WORLD_SIZE",
        )
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} there)",
                where="--device",
                fix="start fewer processes, or use --device cpu",
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return Processes(distributed.get_rank(), size)


def disconnect(processes: Processes) -> None:
    """Leaves the others, in good order."""
    if processes.size > 1:
        distributed.destroy_process_group()


def gather_rows(mine: Tensor, rows: Sequence[int]) -> Tensor:
    """``(sum of rows, ...)`` on every process from its own ``(rows[rank], ...)``, in the order of ranks.

    The gradient of a sample goes back to its process, summed over what all processes made of it: with the weights
    of ``Part`` and gradients averaged, a loss that every process computes of all samples counts once.
    """
    gathered: Tensor = _Gather.apply(mine, tuple(rows))  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, rows: tuple[int, ...]) -> Tensor:
        ctx.rows = rows
        padded = mine.new_zeros(max(rows), *mine.shape[1:], device=_place(mine.device))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in rows]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]).to(mine.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        rank = distributed.get_rank()
        return torch.split(total, ctx.rows)[rank], None


class _Sum(torch.autograd.Function):
    """Sum over processes; so is its gradient, and the gradient of that."""

    @staticmethod
    def forward(_ctx: Any, mine: Tensor) -> Tensor:
        total = mine.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


class SharedStatistics(TorchFunctionMode):
    """While open, batch norm in train mode takes its statistics over the samples of all processes.

    Takes the place of ``batch_norm`` inside whatever network runs; PyTorch's ``SyncBatchNorm`` knows GPUs only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is functional.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``functional.batch_norm``, over the samples of all processes where it trains."""
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    values = x.float()
    own = torch.cat([values.sum(axes), values.new_tensor([x.numel() / x.shape[1]])])
    total, count = torch.split(sum_over_processes(own), [x.shape[1], 1])
    mean = total / count
    centred = values - mean.reshape(shape)
    variance = sum_over_processes(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    scaled = centred * (variance + eps).rsqrt().reshape(shape)
    if weight is not None and bias is not None:
        scaled = scaled * weight.reshape(shape) + bias.reshape(shape)
    return scaled.to(x.dtype)


def _shares(samples: int, parts: int) -> tuple[int, ...]:
    """Sizes that differ by one at most and sum to ``samples``, the larger ones first."""
    each, more = divmod(samples, parts)
    return tuple(each + (part < more) for part in range(parts))


def sum_over_processes(mine: Tensor) -> Tensor:
    """The sum of what all processes have, on each of them. Gradients flow back to every process, also second ones."""
    total: Tensor = _Sum.apply(mine)  # type: ignore[no-untyped-call]
    return total


def _place(device: torch.device) -> torch.device:
    """Where tensors must lie to be sent."""
    return torch.device("cuda") if distributed.get_backend() == "nccl" else device
