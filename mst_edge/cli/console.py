"""Progress on a terminal, and the same numbers as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mst_edge.core.scoring import HEADLINES


class ConsoleWatcher:
    """Progress bars on standard error; TensorBoard files in ``folder`` where one is given and tensorboard installed."""

    def __init__(self, folder: Path | None, *, quiet: bool = False) -> None:
        self._folder = folder
        self._console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("  {task.description:<15}"),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[said]}"),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._busy: Any = None
        self._writer: Any = None
        self._told_no_tensorboard = False

    def __enter__(self) -> ConsoleWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._busy is not None:
            self._progress.remove_task(self._busy)
        if self._progress.live.is_started:  # stopping prints an empty line even where nothing was begun
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def stage(self, title: str) -> None:
        self._progress.console.print(f"[bold]{title}[/bold]")

    def step(self, text: str) -> None:
        self._progress.console.print(f"  {text}", highlight=False)

    def busy(self, text: str) -> None:
        self._progress.start()
        if self._busy is None:
            self._busy = self._progress.add_task("measuring", total=None, said="")
        self._progress.update(self._busy, said=text)

    def begin(self, phase: str, epochs: int, done: int) -> None:
        self._progress.start()
        self._tasks[phase] = self._progress.add_task(phase, total=epochs, completed=done, said="")

    def epoch(self, phase: str, epoch: int, scalars: Mapping[str, float]) -> None:
        said = _headline(scalars)
        self._progress.update(self._tasks[phase], completed=epoch + 1, said=said)
        writer = self._tensorboard()
        if writer is not None:
            for name, value in scalars.items():
                writer.add_scalar(f"{phase}/{name}", value, epoch)

    def _tensorboard(self) -> Any:
        if self._folder is not None and self._writer is None and not self._told_no_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._told_no_tensorboard = True
                self.step("[yellow]note:[/yellow] tensorboard is not installed: its scalars are not written")
                return None
            self._writer = SummaryWriter(self._folder)
        return self._writer


def _headline(scalars: Mapping[str, float]) -> str:
    judged = next((scalars[f"val_{metric}"] for metric in HEADLINES if f"val_{metric}" in scalars), None)
    return f"loss {scalars['loss']:.3f}" + ("" if judged is None else f", val {judged:.1%}")
