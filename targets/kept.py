"""Builds that were made on this machine before, from the same file by the same versions, and ran: kept in the cache."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from mst_edge.core.cache import cache_root, entry_folder, look_up, make_room, new_entry
from mst_edge.core.files import atomic_path
from quantize.variant import Variant
from targets.runtimes.base import Runtime
from targets.spec import Build, load_build

KIND = "builds"
REUSED = "reused"
_BUILD = "build"
_MOST_BYTES = 4 << 30


class Kept:
    """The cache's entry of one build."""

    def __init__(self, runtime: Runtime, variant: Variant, precision: str, threads: int) -> None:
        self._variant, self._id = variant, runtime.build_id(variant, precision)
        self._what = f"{self._id} for {runtime.target}"
        self._depends_on = runtime.depends_on(variant, precision, threads)
        self._folder = entry_folder(cache_root(), KIND, self._depends_on)

    def take(self, folder: Path) -> Build | None:
        """Copies the build to ``folder``; None where there is none.

        Raises:
            UserError: the disk is full.
        """
        if not look_up(self._folder, self._what, self._depends_on):
            return None
        with atomic_path(folder) as temporary:
            shutil.copytree(self._folder / _BUILD, temporary)
            kept = load_build(temporary)
            # Another run may call the same file by another name.
            replace(kept, id=self._id, variant=self._variant.name, facts={**kept.facts, REUSED: True}).save()
        return load_build(folder)

    def put(self, build: Build) -> None:
        """Keeps a build that ran. What is longest unused makes room; what is too large for that is not kept.

        Raises:
            UserError: the disk is full.
        """
        if make_room(cache_root(), KIND, build.size_bytes, _MOST_BYTES, ()):
            with new_entry(self._folder, self._what, self._depends_on) as folder:
                shutil.copytree(build.folder, folder / _BUILD)
