"""Where a device is: ``user@host:port``, or a name from the user's ssh_config."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mst_edge.core.errors import UserError

# No part can begin with a dash, be an option, or mean something to a shell or to ssh_config's tokens.
_ADDRESS = re.compile(
    r"((?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f][0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?\]|\[::[0-9A-Fa-f:.]*\])"
    r"(:(?P<port>[0-9]{1,5}))?"
)
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A device. ``None``: as ssh_config says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "".join(
            (f"{self.user}@" if self.user else "", host, f":{self.port}" if self.port is not None else ""),
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the options of ``ssh``, up to the command."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port is not None else ()
        return (*user, *port, "--", self.host)

    @property
    def by_hand(self) -> str:
        """How a person connects."""
        port = f"-p {self.port} " if self.port is not None else ""
        return f"ssh {port}{self.user}@{self.host}" if self.user else f"ssh {port}{self.host}"


def parse_address(text: str) -> Address:
    """The device that ``text`` names.

    Raises:
        UserError: something else.
    """
    found = _ADDRESS.fullmatch(text)
    port = None if found is None or found["port"] is None else int(found["port"])
    if found is None or (port is not None and not 0 < port <= _HIGHEST_PORT):
        raise UserError(
            f"expected user@host or user@host:port, received {text!r}",
            where="--ssh",
            fix="what else it takes to reach the board belongs into ~/.ssh/config, under a name of its own",
        )
    return Address(found["host"].strip("[]"), found["user"], port)
