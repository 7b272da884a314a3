"""One connection to a device: OpenSSH's client as a process, and the talk with ``apps.runtime.board.courier``."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mst_edge.core.errors import UserError
from targets.ssh.address import Address
from targets.ssh.refusals import refusal

# Whatever ssh_config says: host keys are known or there is no connection; nobody is there to answer questions; a
# device that says nothing for a quarter of a minute is gone; nothing is forwarded, no other connection is shared.
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "NoHostAuthenticationForLocalhost": "no",
    "ControlPath": "none",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "INFO",
}
_GREETING_S, _HEARTBEAT_S = 60.0, 5.0  # the device gives a silent host up after 30 s
_OLD = 9
_LONGEST_LINE, _MOST_NOISE, _BLOCK = 1 << 22, 1 << 16, 1 << 20


def ssh_command(address: Address, remote: str) -> list[str]:
    """What runs ``remote`` in the login shell of a device.

    Raises:
        UserError: there is no ssh here.
    """
    program = shutil.which("ssh")
    if program is None:
        raise UserError("is not installed", where="ssh", fix="sudo apt install openssh-client")
    options = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    return [program, *options, *address.arguments, remote]


def reach(address: Address) -> None:
    """Makes sure that the device can be reached, and has a Python that runs what is sent.

    Raises:
        UserError: it cannot be, or has not.
    """
    command = ssh_command(address, f"python3 -c 'import sys; sys.exit({_OLD} * (sys.version_info < (3, 10)))'")
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GREETING_S, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"did not answer in {_GREETING_S:.0f} s", where=address, fix="is it switched on?") from None
    if done.returncode == _OLD:
        raise UserError("its python3 is older than 3.10", where=address, fix="flash JetPack 6.1 or newer")
    if done.returncode:
        raise refusal(address, done.returncode, done.stderr, during="connecting", goes_on="")


class Link:
    """``with Link(address, program) as link:`` runs a Python program there and talks with it.

    Any call raises UserError when the device refuses, is lost, or says something else than was agreed.

    Args:
        goes_on: the command that goes on where this one stopped, for messages.
    """

    def __init__(self, address: Address, program: bytes, goes_on: str) -> None:
        self._address, self._goes_on = address, goes_on
        self.during = "connecting"
        self._program = program
        self._writing = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Link:
        # One byte at a time: what follows the program is for the program.
        take = f'import os; exec(b"".join(os.read(0, 1) for _ in range({len(self._program)})))'
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ssh_command(self._address, f"exec python3 -I -B -c '{take}'"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._ended.set()
        if failed is not None:
            self._process.terminate()
        self._close()
        self._errors.close()

    def greet(self, **first: Any) -> dict[str, Any]:
        """Sends the program and its first request; returns its greeting, whatever a login shell prints before it."""
        timer = threading.Timer(_GREETING_S, self._process.kill)
        timer.start()
        try:
            self._write(self._program)
            self.ask(**first)
            threading.Thread(target=self._beat, daemon=True).start()
            noise = 0
            while noise < _MOST_NOISE:
                line = self._line()
                if line.startswith(b'{"courier"'):
                    return self._parse(line)
                noise += len(line)
        finally:
            timer.cancel()
        raise self.nonsense("prints too much as one logs in")

    def ask(self, payload: Path | None = None, **request: Any) -> None:
        """Sends a request; of a file, its size and content too."""
        size = {} if payload is None else {"size": payload.stat().st_size}
        with self._writing:
            self._write(json.dumps({**request, **size}).encode() + b"\n")
            if payload is not None:
                with payload.open("rb") as file:
                    while block := file.read(_BLOCK):
                        self._write(block)

    def answers(self) -> Iterator[dict[str, Any]]:
        """What the device says, one after another; a problem that it names is raised."""
        while True:
            said = self._parse(self._line())
            if "problem" in said:
                fix = f"{said.get('fix', '')}" or "see the message"
                raise UserError(_one_line(said["problem"]), where=f"{self._address}, {self.during}", fix=_one_line(fix))
            yield said

    def payload(self, size: int) -> Iterator[bytes]:
        """The ``size`` bytes that follow an answer."""
        while size:
            block = self._from.read(min(size, _BLOCK))
            if not block:
                raise self._lost()
            size -= len(block)
            yield block

    def nonsense(self, what: str) -> UserError:
        """What to raise where the device says something that was not agreed."""
        return UserError(what, where=f"{self._address}, {self.during}", fix=f"try by hand: {self._address.by_hand}")

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise self.nonsense(
                f"says something else than was agreed: {_one_line(line[:80].decode(errors='replace'))!r}"
            )
        return said

    def _line(self) -> bytes:
        line = self._from.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self._lost() if len(line) < _LONGEST_LINE else self.nonsense("says a line without an end")
        return line

    def _write(self, content: bytes) -> None:
        try:
            self._to.write(content)
            self._to.flush()
        except OSError:
            raise self._refused() from None

    def _refused(self) -> UserError:
        """The device hung up while it was sent something: its last words say why."""
        try:
            for _ in self.answers():
                pass
        except UserError as error:
            return error
        return self._lost()

    def _lost(self) -> UserError:
        self._close()
        self._errors.seek(0)
        words = self._errors.read(_MOST_NOISE).decode(errors="replace")
        return refusal(self._address, self._process.returncode, words, during=self.during, goes_on=self._goes_on)

    def _close(self) -> None:
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:
                continue
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _beat(self) -> None:
        """Signs of life, so that the device knows a lost connection from a long step."""
        while not self._ended.wait(_HEARTBEAT_S):
            with self._writing:
                try:
                    self._to.write(b"\n")
                    self._to.flush()
                except (OSError, ValueError):
                    return


def _one_line(said: object) -> str:
    """Words from the device as one printable line."""
    return "".join(letter if letter.isprintable() else " " for letter in str(said))[:500].strip()
