"""A target of another distribution, installed as pip lays it out: its file, and a dist-info with an entry point."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NAME, RUNTIME = "acme-box", "acme"


def install(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Into ``folder``, which this process and those that it starts then import from."""
    shutil.copyfile(Path(__file__).parent / "acme_box.py", folder / "acme_box.py")
    info = folder / "acme_box-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-box\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mst_edge.targets]\n{NAME} = acme_box:AcmeBox\n")
    patch.syspath_prepend(str(folder))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
