"""What the board says of itself: JetPack's own programs, asked and understood."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from .dialect import Version, parse_version

_TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")
_MODE = re.compile(r"^NV Power Mode:\s*(\S+)", re.MULTILINE)
_MODE_NUMBER = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)
_CLOCK = re.compile(r"^(?P<unit>cpu\d+|GPU|EMC)\b(?P<rest>.*)$", re.MULTILINE)
_FREQUENCY = re.compile(r"(Min|Max|Current)Freq=(\d+)")
_LAST_WORDS = 400


@dataclass(frozen=True)
class Said:
    """What a program answered."""

    code: int
    text: str

    @property
    def ended(self) -> str:
        """How it ended, for people. Linux kills with signal 9 what it has no memory for."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        return f"was killed by signal {-self.code}{', memory ran out' if self.code == -9 else ''}"

    @property
    def last_words(self) -> str:
        """The end of what it calls errors, or of all that it said, on one line."""
        lines = self.text.splitlines()
        errors = [line for line in lines if "[E]" in line] or lines
        return " ".join(" ".join(errors).split())[-_LAST_WORDS:]


def ask(command: Sequence[str], seconds: float | None = 30.0) -> Said:
    """Runs a program; one that is absent or never ends has the exit code 127 or 124."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=seconds, errors="replace"
        )
    except OSError as error:
        return Said(127, str(error))
    except subprocess.TimeoutExpired:
        return Said(124, f"{command[0]} did not end in {seconds:.0f} s")
    return Said(done.returncode, done.stdout)


def find_trtexec() -> str:
    """Path of ``trtexec``.

    Raises:
        BundleError: there is none.
    """
    found = shutil.which("trtexec") or (str(_TRTEXEC) if _TRTEXEC.is_file() else None)
    if found is None:
        raise BundleError("is not here", where="trtexec", fix="sudo apt install nvidia-jetpack")
    return found


def tensorrt_version(trtexec: str) -> Version:
    """The version of the TensorRT that ``trtexec`` belongs to.

    Raises:
        BundleError: it does not say.
    """
    return parse_version(ask([trtexec, "--help"]).text)


@dataclass(frozen=True)
class PowerMode:
    """``nvpmodel``'s mode. Names with watts are caps of clocks, not measured watts."""

    name: str
    number: int | None


def parse_power_mode(text: str) -> PowerMode | None:
    """What ``nvpmodel -q`` prints; None where it says no mode."""
    name, number = _MODE.search(text), _MODE_NUMBER.search(text)
    return None if name is None else PowerMode(name[1], None if number is None else int(number[1]))


@dataclass(frozen=True)
class Clocks:
    """``jetson_clocks --show``.

    Attributes:
        state: ``locked``: CPUs, GPU and memory run at their highest clocks and nowhere else; ``free``; or ``unknown``.
        lines: what it said of them, or why it said nothing.
    """

    state: str
    lines: tuple[str, ...]


def parse_clocks(text: str) -> Clocks:
    """What ``jetson_clocks --show`` prints.

    CPUs and GPU are locked by equal bounds. The memory's lower bound stays where it was: it is locked where it runs at
    its upper one by override.
    """
    found = list(_CLOCK.finditer(text))
    units = {match["unit"] for match in found}
    lines = tuple(match[0].strip() for match in found)
    if not {"GPU", "cpu0"} <= units:
        return Clocks("unknown", lines or (" ".join(text.split())[:200],))
    return Clocks("locked" if all(_locked(match["unit"], match["rest"]) for match in found) else "free", lines)


def _locked(unit: str, rest: str) -> bool:
    clock = {bound: int(hertz) for bound, hertz in _FREQUENCY.findall(rest)}
    if "Online=0" in rest:
        return True
    if unit == "EMC":
        return clock.get("Current") == clock.get("Max")
    return clock.get("Min") == clock.get("Max")


def read_board(root: Path = Path("/")) -> dict[str, Any]:
    """Model, JetPack's release, power mode and clocks, as JSON values; null where the board does not say."""
    mode = parse_power_mode(ask(["nvpmodel", "-q"]).text)
    return {
        "model": _text(root / "proc/device-tree/model"),
        "l4t": _text(root / "etc/nv_tegra_release"),
        "power_mode": None if mode is None else asdict(mode),
        "clocks": asdict(parse_clocks(ask(["jetson_clocks", "--show"]).text)),
    }


def _text(path: Path) -> str | None:
    """A file's first line; device tree strings end with a zero byte."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return (text.replace("\0", "").splitlines() or [""])[0].strip() or None
