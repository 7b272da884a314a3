"""The app that a bundle carries: chosen by what its student takes in, copied with all that it imports of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from mst_edge.core.scoring import OutputSpec
from quantize.variant import InputSpec

_RUNTIME = "runtime"  # which every bundle carries
_EMOTIONS = {"angry", "disgust", "fearful", "happy", "sad", "surprised"}


@dataclass(frozen=True)
class App:
    """An app as a bundle carries it.

    Attributes:
        name: of its module in ``apps``.
        example: arguments for a person who tries it.
        service: arguments as a service; None for an app that answers once and ends.
        reads_lines: whether the service reads its standard input.
        devices: what a service opens of the device, as systemd's ``DeviceAllow`` names it.
        groups: who may.
    """

    name: str
    example: str
    service: str | None = None
    reads_lines: bool = False
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


_SOUND = {
    "example": "examples/*.wav",
    "service": "--microphone --json",
    "devices": ("char-alsa",),
    "groups": ("audio",),
}
_PREDICT = App("predict", "examples/*")
_EMOTION = App("emotion", **_SOUND)  # type: ignore[arg-type]
_BY_KIND = {
    "audio": App("spoken_digits", **_SOUND),  # type: ignore[arg-type]
    "image": App("digits_camera", "examples/*", "--camera 0 --json", False, ("char-video4linux",), ("video",)),
    "text": App("triage", "examples/*", "- --json", reads_lines=True),
    "video": App("watch", "examples/*", "--camera 0 --json", False, ("char-video4linux",), ("video",)),
    "sequence": App("activity", "examples/*", "- --json", reads_lines=True),
}


def app_of(output: OutputSpec, given: InputSpec) -> App:
    """The app for a student; ``predict`` where none is made for its task and input."""
    if output.task != "classification" and (output.task, given.kind) != ("regression", "text"):
        return _PREDICT
    app = _BY_KIND.get(given.kind, _PREDICT)
    if given.kind == "audio" and _EMOTIONS & set(output.names):
        app = _EMOTION
    if given.kind == "image" and (given.dtype != "uint8" or len(given.shape) != 2):
        app = _PREDICT  # that one looks for ink in grey pictures
    if given.kind == "video" and (given.dtype != "uint8" or given.shape[-1] not in (1, 3)):
        app = _PREDICT  # that one reads frames of cameras, not maps of features
    return app if _part(app.name) is not None else _PREDICT


def app_files(app: App) -> Mapping[str, Path]:
    """By path in the bundle: the app, and every module or package of ``apps`` that it needs, as they lie there."""
    found: dict[str, Path] = {"apps/__init__.py": Path(str(resources.files("apps") / "__init__.py"))}
    waiting, seen = [app.name], {_RUNTIME}
    while waiting:
        name = waiting.pop()
        part = _part(name)
        if part is None or name in seen:
            continue
        seen.add(name)
        for path, entry in _files(part, f"apps/{part.name}"):
            found[path] = Path(str(entry))
            if path.endswith(".py"):
                waiting += _needs(entry.read_text(encoding="utf-8"))
    return found


def _part(name: str) -> Traversable | None:
    """A module or package of ``apps``."""
    folder = resources.files("apps")
    return next((part for part in (folder / f"{name}.py", folder / name) if part.is_file() or part.is_dir()), None)


def _files(part: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    """All that is in a package: pages and pictures, too."""
    if part.is_file():
        yield path, part
        return
    for entry in part.iterdir():
        if entry.name != "__pycache__":
            yield from _files(entry, f"{path}/{entry.name}")


def _needs(source: str) -> set[str]:
    """Names of modules and packages in ``apps`` that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue  # relative imports stay in a package, and that is carried whole
        found |= {name.split(".")[1] for name in names if name.startswith("apps.")}
    return found
