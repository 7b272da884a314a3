"""What ``network: auto`` stands for: a network by the shape of the features, a width by the size asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.tokens import TokenShape
from mst_edge.core.errors import UserError, unknown_name

AUTO, HF = "auto", "hf"
SIZES: Mapping[str, float] = {"tiny": 0.5, "small": 1.0, "base": 2.0}
_BY_RANK = {1: "mlp", 2: "tcn", 3: "small_cnn", 4: "clip_cnn"}


def resolve(
    network: str,
    options: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    where: str,
    dense: bool = False,
) -> tuple[str, dict[str, Any]]:
    """The network and options that are built: what was said, or what ``auto`` or ``hf:`` makes of it.

    Args:
        options: of the network; with ``auto`` also ``size``: one of ``SIZES``, which sets ``width``. Without either,
            the size is ``small``.
        dense: whether it answers with a map.

    Raises:
        UserError: an unknown size, ``size`` beside ``width``, or features of more than four axes.
    """
    said = dict(options)
    if network.startswith(f"{HF}:") and "config" not in said:
        return network, {"model": network.removeprefix(f"{HF}:"), **said}
    if network != AUTO:
        return network, said
    size = said.pop("size", None)
    if size is not None and size not in SIZES:
        raise unknown_name("size", size, SIZES, where=f"{where}.options.size")
    if size is not None and "width" in said:
        raise UserError("size and width say the same thing", where=f"{where}.options", fix="give one of them")
    said.setdefault("width", SIZES[size or "small"])
    return (auto_dense_network if dense else auto_network)(shapes, where=where), said


def auto_network(shapes: Mapping[str, tuple[int, ...]], *, where: str = "network") -> str:
    """A sensible network: fusion for several modalities, one for text, else by the number of the features' axes.

    Raises:
        UserError: no network here reads so many axes.
    """
    if len(shapes) > 1:
        return "fusion"
    ((name, shape),) = shapes.items()
    if isinstance(shape, TokenShape):
        return "text_bag"
    if len(shape) not in _BY_RANK:
        raise UserError(
            f"no network is known for features of shape {shape} ({name})",
            where=where,
            fix="name one: package.module:Class",
        )
    return _BY_RANK[len(shape)]


def auto_dense_network(shapes: Mapping[str, tuple[int, ...]], *, where: str = "network") -> str:
    """A network that answers with a map: for one modality, or the fusion of several.

    Raises:
        UserError: a modality's features are no map.
    """
    for name, shape in shapes.items():
        if len(shape) != 3:
            raise UserError(
                f"no network here makes a label map of {name}, whose features have shape {shape}",
                where=where,
                fix="name one as package.module:Class, or leave that modality out of dataset.yaml",
            )
    return "map_fusion" if len(shapes) > 1 else "small_unet"
