"""A zipped bundle, unpacked for as long as it is used."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from pathlib import Path

from .errors import BundleError
from .manifest import inside

_MAX_UNPACKED_BYTES = 4 << 30


def unpack(path: Path, stack: contextlib.ExitStack) -> Path:
    """Unpacks a zip into a temporary folder that lives as long as ``stack``; returns the folder.

    Raises:
        BundleError: not a whole archive, larger than 4 GB when unpacked, or a member would lie outside the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="mst-edge-bundle-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > _MAX_UNPACKED_BYTES:
                raise BundleError("unpacks to more than 4 GB", where=path)
            for member in members:
                out = inside(folder, member.filename)
                out.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, out.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"not a whole zip archive ({error})", where=path) from None
    return folder
