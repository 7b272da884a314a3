"""A real OpenSSH server for one test: throw-away keys, a free loopback port, a home folder of its own."""

from __future__ import annotations

import getpass
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
WHY_NOT = "" if SSHD and shutil.which("ssh-keygen") else "needs OpenSSH's server: apt-get install openssh-server"
if pwd.getpwuid(os.geteuid()).pw_shell.endswith(("nologin", "false")):
    WHY_NOT = "needs a login shell for the user that runs it"


@dataclass
class Server:
    """A board that is reached by SSH, on this machine.

    Attributes:
        home: its user's home folder.
        port: where it listens, behind ``wire``.
    """

    folder: Path
    home: Path
    inner_port: int
    wire: Wire
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.wire.port}"

    @property
    def cache(self) -> Path:
        """Where bundles lie there."""
        return self.home / ".cache" / "mst-edge"

    @property
    def bundle(self) -> Path:
        """The one bundle that is there."""
        (found,) = (path for path in self.cache.iterdir() if path.is_dir())
        return found

    def set(self, before: str = "", **environment: str) -> None:
        """What a connection's shell has set, and runs first."""
        self.environment |= environment
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items())
        enter = self.folder / "enter.tmp"
        enter.write_text(f'#!/bin/sh\n{exports}cd "$HOME"\n{before}\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
        enter.chmod(0o755)
        enter.replace(self.folder / "enter")

    def know(self, *names: str) -> None:
        """Writes the host keys ``names`` into the client's known hosts, as this server's."""
        lines = ((self.folder / f"{name}.pub").read_text() for name in names)
        text = "".join(f"[127.0.0.1]:{self.wire.port} {line}" for line in lines)
        (self.folder / "known_hosts").write_text(text)

    def ran(self) -> list[str]:
        """What a bundle's steps wrote down."""
        file = self.home / "ran"
        return file.read_text().splitlines() if file.is_file() else []


class Wire:
    """A TCP relay that can be cut, or go silent, between client and server."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.silent = threading.Event()
        self._begin(self._accept)

    def cut(self) -> None:
        """Ends every connection."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._ends.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._to))
                except OSError:  # it was stopped
                    client.close()
                    continue
                self._ends.append(server)
                self._begin(self._relay, client, server)
                self._begin(self._relay, server, client)

    def _begin(self, do: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=do, args=arguments, daemon=True))
        self._threads[-1].start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                if not self.silent.is_set():
                    sink.sendall(block)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Server]:
    """A server that is stopped at the end; ``folder/bin`` is to be first on the client's PATH: its ``ssh`` knows it."""
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    home.mkdir()
    for name in ("host", "other", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)  # where sshd as root locks itself in
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nForceCommand {folder / 'enter'}\n"
    )
    process = _start(folder, port)
    wire = Wire(port)
    server = Server(folder, home, port, wire, process)
    server.set(HOME=str(home), **environment)
    server.know("host")
    _client(folder, {"UserKnownHostsFile": folder / "known_hosts", "IdentityFile": folder / "user"})
    try:
        yield server
    finally:
        wire.close()
        server.process.terminate()
        server.process.wait()


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    assert SSHD is not None
    with (folder / "sshd.log").open("ab") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    for _ in range(500):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return process
        time.sleep(0.02)
    raise AssertionError((folder / "sshd.log").read_text())


def _client(folder: Path, options: Mapping[str, object]) -> None:
    """An ``ssh`` that reads no configuration of the user's, and finds silence suspicious after two seconds."""
    lines = {"GlobalKnownHostsFile": "/dev/null", "IdentitiesOnly": "yes", **options}
    (folder / "ssh_config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    (folder / "bin").mkdir()
    program = folder / "bin" / "ssh"
    quick = "-o ServerAliveInterval=1 -o ServerAliveCountMax=2"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} {quick} "$@"\n')
    program.chmod(0o755)
