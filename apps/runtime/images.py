"""Picture files to arrays that a student reads. Needs Pillow."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Pillow would also hand PostScript to Ghostscript, and open formats that hardly anybody reads, or guards.
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF", "TIFF")
MAX_PIXELS = 64_000_000
_MAX_FILE_BYTES = 1 << 28


def read_image(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A picture as ``(height, width)`` or ``(height, width, channels)`` uint8, resized to ``shape``.

    Raises:
        BundleError: not a picture, damaged, or so large that it looks like a decompression bomb.
    """
    return decode_image(picture_bytes(path), shape, path)


def picture_bytes(path: Path) -> bytes:
    """A picture file as it lies there.

    Raises:
        BundleError: no such file, or larger than 256 MB.
    """
    if not path.is_file():
        raise BundleError("no such file", where=path)
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise BundleError("is larger than 256 MB", where=path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(str(error), where=path) from None


def decode_image(data: bytes, shape: tuple[int, ...], where: object = "picture") -> NDArray[np.uint8]:
    """A picture file's bytes as ``read_image`` reads a file.

    Raises:
        BundleError: as there.
    """
    height, width, *rest = shape
    picture = open_picture(data, _MODES[rest[0] if rest else 1], where)
    resized: Any = picture.resize((width, height), _pillow().Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(shape)


def open_picture(data: bytes, mode: str, where: object = "picture", *, upright: bool = False) -> Any:
    """A picture file's first picture, decoded, as Pillow's image of ``mode`` (``L``, ``RGB``, ``RGBA``).

    Args:
        upright: turned as the camera says that it was held.

    Raises:
        BundleError: not a picture, damaged, or of more than 64 million pixels: told before any is decoded.
    """
    image_module = _pillow(where)
    from PIL import ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        try:
            with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise image_module.DecompressionBombError
                turned = ImageOps.exif_transpose(image) if upright else image
                return turned.convert(mode)
        except UnidentifiedImageError:
            raise BundleError("not a picture", where=where) from None
        except (image_module.DecompressionBombWarning, image_module.DecompressionBombError):
            raise BundleError("has more pixels than any camera: refused", where=where) from None
        except Exception as error:  # of damaged files Pillow's readers raise whatever they stumble over
            raise BundleError(f"damaged picture ({error})", where=where) from None


def _pillow(where: object = "") -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise BundleError("reading pictures needs Pillow", where=where, fix="pip install 'mst-edge[apps]'") from None
    return Image
