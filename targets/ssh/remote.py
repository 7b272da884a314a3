"""A bundle on a device: sent, built, checked and measured there, and what was found brought home."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.runtime.board.check import FP32, OUTPUTS
from apps.runtime.board.results import RESULT
from apps.runtime.manifest import MANIFEST, Manifest, inside
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, sha256_file
from targets.ssh.address import Address
from targets.ssh.link import Link

COURIER = "apps/runtime/board/courier.py"
_LOGS = "logs"
_MOST_RESULT, _MOST_LOG = 4 << 20, 1 << 20
_NPY_HEADER = 256  # bytes that an outputs file may be longer than the reference's
_MODEL_FAILED = 1


@dataclass(frozen=True)
class Remote:
    """A verified bundle, and where it goes.

    Attributes:
        folder: of the bundle here.
        goes_on: the command that goes on where this one is cut off, for messages.
        say: is told what happens.
        busy: is told what is going on.
    """

    folder: Path
    manifest: Manifest
    address: Address
    goes_on: str
    say: Callable[[str], None]
    busy: Callable[[str], None]

    @property
    def name(self) -> str:
        """Name of the folder there, below ``~/.cache/mst-edge``: the same for the same bundle."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", self.manifest.name).strip("-.") or "bundle"
        return f"{plain[:60]}-{self.manifest.target}-{sha256_file(self.folder / MANIFEST)[:12]}"

    def deploy(self, steps: Mapping[str, tuple[str, ...]], finds: tuple[str, ...]) -> str:
        """Sends what is not there yet, runs ``steps``, and brings home what they found; all that is done stays done.

        Args:
            finds: paths with ``{build}`` of what steps leave for each build.

        Returns:
            The folder there.

        Raises:
            UserError: the device cannot be reached, refuses, is lost, or a step could not go on.
        """
        if COURIER not in self.manifest.files:
            raise UserError(f"has no {COURIER}: an older mst-edge packed it", where=self.folder, fix="pack it again")
        courier = inside(self.folder, COURIER).read_bytes()
        with Link(self.address, courier, self.goes_on) as link:
            link.greet(name=self.name, manifest_sha256=sha256_file(self.folder / MANIFEST))
            place = f"~/.cache/mst-edge/{self.name}"
            self.say(f"connected to {self.address}, bundle in {place}")
            self._push(link)
            failed = None
            for step, command in steps.items():
                failed = self._run(link, step, command)
                if failed is not None:
                    break
            self._pull(link, self._logs(list(steps)) if failed is not None else self._wanted(list(steps), finds))
        if failed is not None:
            raise failed
        return place

    def _push(self, link: Link) -> None:
        link.during = "push"
        link.ask(self.folder / MANIFEST, do="receive")
        answers = link.answers()
        said = next(answers)
        while "say" in said:  # a step of an earlier connection ends first
            self.say(f"  {_text(said['say'])}")
            said = next(answers)
        wanted, free = said.get("wanted"), said.get("free")
        if not isinstance(wanted, list) or type(free) is not int or any(n not in self.manifest.files for n in wanted):
            raise link.nonsense("asks for files that the bundle has not")
        files = [inside(self.folder, str(name)) for name in wanted]
        needed = sum(file.stat().st_size for file in files)
        if needed > free:
            raise UserError(
                f"the disk is full: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free",
                where=f"{self.address}, push",
                fix="free some space there, ~/.cache/mst-edge holds earlier bundles",
            )
        for count, (name, file) in enumerate(zip(wanted, files, strict=True), start=1):
            self.busy(f"push {count} of {len(wanted)}: {name}")
            link.ask(file, file=name)
            next(answers)
        next(answers)
        there = len(self.manifest.files) - len(wanted)
        self.say(f"sent {len(wanted)} files, {needed / 1e6:.1f} MB; {there} were there already")

    def _run(self, link: Link, step: str, command: tuple[str, ...]) -> UserError | None:
        """What kept a step from going on; None where it came to its end."""
        link.during = step
        self.busy(f"{step} on {self.address}")
        link.ask(do="run", step=step, command=list(command))
        for said in link.answers():
            if "say" in said:
                self.say(f"{step}: {_text(said['say'])}")
            elif "ended" in said:
                break
        if said["ended"] in (0, _MODEL_FAILED):
            return None
        last = _text(said.get("last")) or f"ended with exit code {said['ended']}"
        return UserError(
            last.removeprefix("error: "),
            where=f"{self.address}, {step}",
            fix=f"its log: {_text(said.get('log'))}, here {self.folder / _LOGS / step}.err; go on with: {self.goes_on}",
        )

    def _wanted(self, steps: list[str], finds: tuple[str, ...]) -> dict[str, int]:
        """Paths of what may come home, and how many bytes at most."""
        builds = [build.id for build in self.manifest.builds]
        outputs = inside(self.folder, FP32).stat().st_size + _NPY_HEADER if FP32 in self.manifest.files else 0
        return {
            RESULT: _MOST_RESULT,
            **{f"{OUTPUTS}/{build}.npy": outputs for build in builds},
            **{path.format(build=build): _MOST_LOG for build in builds for path in finds},
            **self._logs(steps),
        }

    def _logs(self, steps: list[str]) -> dict[str, int]:
        """All that comes home when a step could not go on: results of before stay as they are."""
        return {f"{_LOGS}/{step}.{kind}": _MOST_LOG for step in steps for kind in ("out", "err")}

    def _pull(self, link: Link, wanted: Mapping[str, int]) -> None:
        """Replaces what an earlier visit brought home."""
        link.during = "pull"
        self.busy(f"pull from {self.address}")
        paths = {name: inside(self.folder, name) for name in wanted}
        link.ask(do="send", files=list(wanted))
        came: set[str] = set()
        for said in link.answers():
            if said.get("sent"):
                break
            name, size = said.get("file"), said.get("size")
            if name not in paths or name in came or type(size) is not int or not 0 <= size <= wanted[str(name)]:
                raise link.nonsense(f"sends {_text(name)!r} of {_text(size)} bytes, which was not asked for")
            came.add(name)
            self._keep(link, paths[name], said, size)
        for name in set(paths) - came:
            paths[name].unlink(missing_ok=True)
        self.say(f"brought {len(came)} files home")

    def _keep(self, link: Link, path: Path, said: Mapping[str, Any], size: int) -> None:
        digest = hashlib.sha256()
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                for block in link.payload(size):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != said.get("sha256"):
                raise link.nonsense(f"{path.name} was changed on the way")


def _text(said: object) -> str:
    """Words from the device, printable and in one line."""
    return "".join(letter if letter.isprintable() else " " for letter in str(said or ""))[:2000].strip()
