"""Finds apps: one module or package each in ``apps/``, or an entry point of an installed package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib import metadata

import apps
from mst_edge.core.errors import unknown_name

_ENTRY_POINTS = "mst_edge.apps"
_SHARED = ("runtime", "streaming", "frames")  # of apps, none themselves


def app_names() -> list[str]:
    """Names of all apps, sorted."""
    built_in = {
        module.name.replace("_", "-") for module in pkgutil.iter_modules(apps.__path__) if module.name not in _SHARED
    }
    return sorted(built_in | {point.name for point in metadata.entry_points(group=_ENTRY_POINTS)})


def run_app(name: str, arguments: list[str]) -> int:
    """Runs an app with its own arguments; returns the exit code.

    Raises:
        UserError: unknown name.
    """
    if name not in app_names():
        raise unknown_name("app", name, app_names())
    for point in metadata.entry_points(group=_ENTRY_POINTS):
        if point.name == name:
            return int(point.load()(arguments))
    run: Callable[[list[str]], int] = importlib.import_module(f"apps.{name.replace('-', '_')}").main
    return run(arguments)
