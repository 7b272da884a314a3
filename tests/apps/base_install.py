"""A virtual environment of the base install alone: what ``dependencies`` of pyproject.toml bring, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import ROOT


def base_install(folder: Path) -> Path:
    """Makes the environment out of links to this one's packages, so nothing is downloaded; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in _closure(project["project"]["dependencies"]):
        _link(metadata.distribution(name), site)
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        (site / package).symlink_to(ROOT / package)
    return folder / "bin" / "python"


def _closure(requirements: list[str]) -> set[str]:
    """Names of all distributions that pip would install."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            waiting += [(Requirement(text), extra) for extra in ("", *requirement.extras)]
    return found


def _link(distribution: metadata.Distribution, site: Path) -> None:
    """A link per top-level name; where several distributions share a folder, a link per name inside."""
    for file in distribution.files or []:
        if file.parts[0] in ("..", "__pycache__"):
            continue
        shared = len(file.parts) > 2 and not Path(distribution.locate_file(file.parts[0]), "__init__.py").exists()
        shared = shared and not file.parts[0].endswith((".dist-info", ".libs"))
        path = Path(*file.parts[: 2 if shared else 1])
        place = site / path
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(Path(distribution.locate_file(path)))
