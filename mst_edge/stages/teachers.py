"""What teachers say of samples that they were trained on, and of samples that they never saw.

A student is distilled on the training samples, where a teacher that has memorised them answers as the labels do.
What it knows shows on samples that it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.lab import Lab

_MEMORISED = 0.2


def seen_and_unseen(lab: Lab, insights: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics on training and on validation samples of every teacher that students listened to.

    Args:
        insights: of the methods, by name; those with ``teachers`` of their own bring their metrics along.

    Returns:
        Rows of ``name``, ``origin`` (``alone``, or the method that trained it), ``train`` and ``val``.
    """
    rows = [
        {"name": name, "origin": "alone", "train": lab.evaluate(model, "train"), "val": lab.evaluate(model, "val")}
        for name, model in lab.lone_teachers().items()
    ]
    for method, insight in insights.items():
        rows += [
            {"name": row["name"], "origin": method, "train": row["train"], "val": row["val"]}
            for row in insight.get("teachers", [])
        ]
    return rows


def memorised(rows: Sequence[Mapping[str, Any]], certainty: tuple[str, str]) -> list[dict[str, str]]:
    """A note on each teacher that is far surer of training samples than of samples that it never saw.

    Args:
        rows: as ``seen_and_unseen`` gives them.
        certainty: the task's metric of how sure a network is of the truth, and the words for it.
    """
    metric, phrase = certainty
    return [
        {
            "level": "note",
            "text": f"the {row['name']} teacher{_trained_by(row)} {phrase.format(row['train'][metric])} on training "
            f"samples and {row['val'][metric]:.0%} on validation samples: it has memorised its training set, so its "
            "soft labels there say little more than the labels do. More dropout or weight decay, fewer epochs or a "
            "smaller network keep a teacher honest",
        }
        for row in rows
        if row["train"][metric] - row["val"][metric] >= _MEMORISED
    ]


def _trained_by(row: Mapping[str, Any]) -> str:
    return "" if row["origin"] == "alone" else f" of {row['origin']}"
