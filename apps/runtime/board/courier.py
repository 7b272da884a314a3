"""The board's end of ``mst-edge deploy --ssh``: takes a bundle in, runs its steps, hands out what they found.

The host sends this file's text to ``python3 -I`` over SSH, so it stands alone: standard library, Python 3.10. Both
ends talk in lines of JSON; a line with ``size`` is followed by that many bytes. The host is heard every few seconds, or
it is gone. Nothing here depends on the time of day.

A step runs in a session of its own and outlives a lost connection; whoever comes next waits for its end. Before a step
every file of the manifest is compared with its sha256, and nothing else that Python could import may be there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.machinery
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

VERSION = 1
PLACE = Path(".cache", "mst-edge")
MANIFEST, LOGS = "manifest.json", "logs"
_SILENCE_S, _LOOK_S = 30.0, 0.1
_BLOCK, _LONGEST_LINE, _LONGEST_LOG = 1 << 20, 1 << 22, 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CourierError(Exception):
    """Why this cannot go on, and what to do about it."""

    def __init__(self, text: str, fix: str = "") -> None:
        super().__init__(text)
        self.fix = fix


class Host:
    """The other end: standard input and output."""

    def __init__(self) -> None:
        self._buffer, self._heard = b"", time.monotonic()

    def say(self, **message: Any) -> None:
        self.give(json.dumps(message).encode() + b"\n")

    def give(self, payload: bytes) -> None:
        rest = memoryview(payload)
        while rest:
            rest = rest[os.write(1, rest[:_BLOCK]) :]

    def request(self) -> dict[str, Any]:
        """The next request; the host's signs of life between requests are empty lines."""
        while True:
            while b"\n" not in self._buffer:
                if len(self._buffer) > _LONGEST_LINE:
                    raise CourierError("received a line without an end")
                self._fill()
            line, _, self._buffer = self._buffer.partition(b"\n")
            if line:
                return dict(json.loads(line))

    def take(self, size: int, file: Any) -> str:
        """Writes the next ``size`` bytes to ``file``; returns their sha256."""
        digest = hashlib.sha256()
        while size:
            if not self._buffer:
                self._fill()
            block, self._buffer = self._buffer[:size], self._buffer[size:]
            digest.update(block)
            file.write(block)
            size -= len(block)
        return digest.hexdigest()

    def wait(self) -> None:
        """Waits a moment; ends this process where the host is gone."""
        if select.select([0], [], [], _LOOK_S)[0]:
            self._fill()
            self._buffer = self._buffer.lstrip(b"\n")
        elif time.monotonic() - self._heard > _SILENCE_S:
            sys.exit(3)

    def _fill(self) -> None:
        if not select.select([0], [], [], _SILENCE_S)[0]:
            sys.exit(3)
        block = os.read(0, _BLOCK)
        if not block:
            sys.exit(3)
        self._buffer += block
        self._heard = time.monotonic()


class Place:
    """A bundle's folder on this board, locked for one host at a time and for the step that runs."""

    def __init__(self, host: Host, name: str, manifest_sha256: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}", name):
            raise CourierError(f"{name!r} is no name of a folder")
        self.host = host
        self.folder = Path.home() / PLACE / name
        self.manifest_sha256 = manifest_sha256
        (self.folder / LOGS).mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder.with_name(f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        self._own()

    def _own(self) -> None:
        """Waits for a step that an earlier connection left at work, and passes on what it says."""
        log = None
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                step = os.pread(self._lock, 100, 0).decode(errors="replace").strip() or "another host"
                if log is None:
                    self.host.say(
                        say=f"{step} is still at work there, since an earlier connection: waiting for its end"
                    )
                    log = Log(self.host, self.folder / LOGS / f"{step}.out")
                log.follow()
                self.host.wait()
        os.ftruncate(self._lock, 0)

    def receive(self, size: int) -> None:
        """Takes in the manifest, then every file that is not here as the manifest has it."""
        self._take(MANIFEST, size, self.manifest_sha256)
        files = self._files()
        wanted = [name for name, digest in files.items() if not _is(self._path(name), digest)]
        self.host.say(wanted=wanted, free=shutil.disk_usage(self.folder).free)
        for _ in wanted:
            said = self.host.request()
            self._take(said["file"], int(said["size"]), files[said["file"]])
            self.host.say(kept=said["file"])
        self._verify()
        self.host.say(received=len(files))

    def run(self, step: str, command: list[str]) -> None:
        """Runs one script of the bundle to its end, and says what it said."""
        if command[0] not in self._files():
            raise CourierError(f"{command[0]} is not in the manifest: not executed")
        self._verify()
        out, err = (self.folder / LOGS / f"{step}.{kind}" for kind in ("out", "err"))
        os.pwrite(self._lock, step.encode(), 0)
        with out.open("wb") as said, err.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-u", "-B", *command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
                start_new_session=True,
                pass_fds=[self._lock],
            )
        logs = [Log(self.host, out), Log(self.host, err)]
        while process.poll() is None:
            for log in logs:
                log.follow()
            self.host.wait()
        for log in logs:
            log.follow()
        os.ftruncate(self._lock, 0)
        last = (err.read_text("utf-8", "replace").splitlines() or [""])[-1]
        self.host.say(ended=process.returncode, last=last, log=str(err))

    def send(self, names: list[str]) -> None:
        """Hands out files that are here; of logs their end."""
        for name in names:
            path = self._path(name)
            if not path.is_file():
                continue
            content = path.read_bytes()
            if name not in self._files() and path.suffix in (".log", ".out", ".err"):
                content = content[-_LONGEST_LOG:]
            self.host.say(file=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            self.host.give(content)
        self.host.say(sent=True)

    def _take(self, name: str, size: int, digest: str) -> None:
        path = self._path(name)
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                received = self.host.take(size, file)
            if received != digest:
                raise CourierError(f"{name} is not the file that the manifest names", "pack the bundle again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _files(self) -> dict[str, str]:
        """Names and sha256 from the manifest that the host named."""
        content = (self.folder / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest_sha256:
            raise CourierError(f"{self.folder / MANIFEST} was changed: nothing is executed", f"rm -r {self.folder}")
        return dict(json.loads(content)["files"])

    def _path(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise CourierError(f"{name!r} is a path outside the bundle")
        path = self.folder / pure
        if Path(os.path.realpath(path)) != Path(os.path.realpath(self.folder)) / pure:
            raise CourierError(f"{path} is reached by a link: nothing is executed", f"rm -r {self.folder}")
        return path

    def _verify(self) -> None:
        """Everything is as the manifest says, and nothing beside it that Python could import."""
        files = self._files()
        for name, digest in files.items():
            if not _is(self._path(name), digest):
                raise CourierError(
                    f"{self.folder / name} was changed: nothing is executed", "the same command mends it"
                )
        for compiled in list(self.folder.rglob("__pycache__")):  # Python would take it for what it was made of
            if not compiled.is_symlink():
                shutil.rmtree(compiled)
        endings = tuple(importlib.machinery.all_suffixes())
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if (path.name.endswith(endings) and name not in files) or path.is_symlink():
                raise CourierError(f"{path} is not in the manifest: nothing is executed", f"rm -r {self.folder}")


class Log:
    """A growing file, whose whole lines are passed on."""

    def __init__(self, host: Host, path: Path) -> None:
        self._host, self._path, self._read = host, path, 0

    def follow(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                whole, end, _ = file.read(_BLOCK).rpartition(b"\n")
        except FileNotFoundError:
            return
        self._read += len(whole) + len(end)
        for line in whole.decode(errors="replace").splitlines():
            self._host.say(say=line[:2000])


def _is(path: Path, digest: str) -> bool:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    except OSError:
        return False
    return found.hexdigest() == digest


def _serve(host: Host) -> NoReturn:
    said = host.request()
    host.say(courier=VERSION, folder=str(Path.home() / PLACE / str(said["name"])))
    place = Place(host, str(said["name"]), str(said["manifest_sha256"]))
    while True:
        said = host.request()
        if said["do"] == "receive":
            place.receive(int(said["size"]))
        elif said["do"] == "run":
            place.run(str(said["step"]), [str(part) for part in said["command"]])
        elif said["do"] == "send":
            place.send([str(name) for name in said["files"]])
        else:
            raise CourierError(f"knows nothing of {said['do']!r}")


def main() -> None:
    """Serves one host till it closes the connection."""
    host = Host()
    try:
        _serve(host)
    except CourierError as problem:
        host.say(problem=str(problem), fix=problem.fix)
    except BrokenPipeError:
        pass
    except OSError as error:
        what = "the disk is full" if error.errno in _FULL else str(error.strerror)
        fix = "free some space" if error.errno in _FULL else ""
        host.say(problem=f"{error.filename or Path.home() / PLACE}: {what}", fix=fix)
    sys.exit(2)


if __name__ == "__main__":
    main()
