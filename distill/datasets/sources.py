"""Raw public files: where they live, how they are fetched, and how their content is proved."""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file

_BLOCK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
_ATTEMPTS = 4

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Home:
    """A public address, and the name that its file gets in the data folder."""

    url: str
    file: str


@dataclass(frozen=True)
class Source:
    """One raw file of a public dataset, or one folder of them.

    Attributes:
        name: what it is, for messages.
        files: names it may have in the data folder, of files or of unpacked folders; a mirror serves it
            under the first.
        homes: public addresses, tried in order; none for what people make themselves.
        check: proves the *decoded* content of a local file or folder; raises UserError naming what is wrong.
        sha256: of the file's bytes, for files that are published byte for byte.
    """

    name: str
    files: tuple[str, ...]
    homes: tuple[Home, ...]
    check: Callable[[Path], None]
    sha256: dict[str, str] = field(default_factory=dict)

    def locate(self, root: Path, fetch: str) -> Path:
        """The local file or folder under ``root``.

        Raises:
            UserError: none of the names exists; says the command that fetches it, where one can.
        """
        for file in self.files:
            if (root / file).exists():
                return root / file
        fix = f"run `{fetch}`" if self.homes else "put it there; docs/data.md says what it holds"
        raise UserError(f"{self.name} is missing", where=root / self.files[0], fix=fix)

    def verify(self, path: Path, file: str) -> None:
        """Checks bytes, then decoded content, of ``path`` as ``file``.

        Raises:
            UserError: says what differs.
        """
        expected = self.sha256.get(file)
        if expected and (actual := sha256_file(path)) != expected:
            raise UserError(
                f"sha256 is {actual[:16]}..., expected {expected[:16]}... ({path.stat().st_size} bytes)",
                where=path,
                fix="fetch it again",
            )
        self.check(path)


def fetch(source: Source, root: Path, *, mirror: str = "", progress: Progress | None = None) -> Path:
    """Brings one source into ``root``: resumes a partial download, verifies, then names it.

    Args:
        mirror: base address that serves ``source.files[0]``; empty for the public homes.

    Raises:
        UserError: no address delivered a file that verifies; names each address and its failure.
    """
    for file in source.files:
        path = root / file
        if path.exists():
            source.verify(path, file)
            return path
    if not source.homes and not mirror:
        raise UserError(
            f"{source.name} has no public address",
            where=root / source.files[0],
            fix="make it and put it there; docs/data.md says what it holds",
        )
    homes = (Home(f"{mirror.rstrip('/')}/{quote(source.files[0])}", source.files[0]),) if mirror else source.homes
    failures = []
    for home in homes:
        path = root / home.file
        part = path.with_name(path.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(home.url, part, progress)
            source.verify(part, home.file)
        except UserError as error:
            # What arrived whole but wrong is useless; what broke off is kept for the next try.
            if not isinstance(error, DownloadError):
                part.unlink(missing_ok=True)
            failures.append(f"{home.url}: {error.problem}")
            continue
        part.replace(path)
        return path
    raise UserError(
        f"{source.name} could not be fetched: {' | '.join(failures)}",
        fix="try again later (a partial download is resumed), or put the file there by hand",
    )


class DownloadError(UserError):
    """The transfer broke off; what arrived is kept and can be resumed."""


def _download(url: str, part: Path, progress: Progress | None) -> None:
    for attempt in range(_ATTEMPTS):
        had = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and had:  # we hold all of it, or more: start over to be sure
                part.unlink()
            elif error.code < 500:
                raise DownloadError(f"HTTP {error.code} {error.reason}") from None
            failure = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            failure = str(getattr(error, "reason", error)) or type(error).__name__
        progressed = part.exists() and part.stat().st_size > had
        if attempt + 1 < _ATTEMPTS:
            time.sleep(0.0 if progressed else 0.2 * 2**attempt)
    raise DownloadError(f"{failure} ({_ATTEMPTS} attempts)")


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """One request; appends to ``part`` where the server honours the range, else starts over."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.closing(urllib.request.urlopen(request, timeout=_TIMEOUT_S)) as response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        with part.open("ab" if resumed else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                if progress:
                    progress(url, file.tell(), total)
            received = file.tell()
    if total is not None and received < total:
        raise OSError(f"connection closed after {received} of {total} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read(_BLOCK_BYTES):
        yield block
