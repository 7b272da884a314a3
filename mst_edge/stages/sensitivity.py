"""Which layers int8 harms: found on validation samples, kept beside the variants as json, markdown and svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mst_edge.core.files import write_json, write_text
from mst_edge.report import svg
from mst_edge.report.layers import sensitivity_chart, sensitivity_markdown
from quantize.choice import calibrated
from quantize.schemes.base import Material
from quantize.sensitivity import ENOUGH_DB, find_sensitivity

NAME = "sensitivity"


def report_sensitivity(material: Material, samples: NDArray[Any], folder: Path) -> dict[str, Any] | None:
    """Writes ``sensitivity.{json,md,svg}`` into ``folder``; None, and no file, where the graph has no layers.

    Args:
        samples: ``(n, *shape)`` real ones that did not calibrate.
    """
    assignable = calibrated(material)
    if not assignable.layers:
        return None
    found = find_sensitivity(assignable, material.source.input.name, samples)
    record = {**found.to_dict(), "enough_db": ENOUGH_DB}
    write_json(folder / f"{NAME}.json", record)
    write_text(folder / f"{NAME}.md", sensitivity_markdown(record))
    write_text(folder / f"{NAME}.svg", svg.standalone(sensitivity_chart(record)))
    return record
