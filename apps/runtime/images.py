"""Picture files to arrays that a student reads. Needs Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_image(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A picture as ``(height, width)`` or ``(height, width, channels)`` uint8, resized to ``shape``.

    Raises:
        BundleError: not a picture, damaged, or so large that it looks like a decompression bomb.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BundleError("reading pictures needs Pillow", where=path, fix="pip install 'mst-edge[apps]'") from None
    if not path.is_file():
        raise BundleError("no such file", where=path)
    height, width, *rest = shape
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                converted = image.convert(_MODES[rest[0] if rest else 1])
        except UnidentifiedImageError:
            raise BundleError("not a picture", where=path) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise BundleError("has more pixels than any camera: refused", where=path) from None
        except (OSError, ValueError, SyntaxError) as error:
            raise BundleError(f"damaged picture ({error})", where=path) from None
    resized: Any = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(shape)
