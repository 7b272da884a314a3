"""Names that recipes may use, found one file each in a folder, imported only when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from mst_edge.core.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a class.

    Three ways in: a module of ``package`` that registers by decorator, an installed distribution that
    declares an entry point in ``entry_points``, or a ``pkg.mod:Class`` given in place of a name. Of ``families``, each
    a prefix to such a path, one class takes all names ``prefix:...``.
    """

    def __init__(
        self, kind: str, package: str, entry_points: str = "", families: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self._package = package
        self._entry_points = entry_points
        self._families = dict(families or {})
        self._known: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: makes the class available under ``name``."""

        def add(cls: type[T]) -> type[T]:
            present = self._known.get(name)
            if present is not None and present.__qualname__ != cls.__qualname__:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {present} and {cls}")
            self._known[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._load()
        return sorted(self._known)

    def get(self, name: str, *, where: object = "") -> type[T]:
        """The class called ``name``, or the class that ``pkg.mod:Class`` points to.

        Raises:
            UserError: nobody registered the name, or the path cannot be imported.
        """
        if ":" in name:
            return self._import_path(self._families.get(name.partition(":")[0], name), where)
        self._load()
        if name not in self._known:
            raise unknown_name(self.kind, name, self._known, where=where)
        return self._known[name]

    def _import_path(self, path: str, where: object) -> type[T]:
        module_name, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"cannot import {self.kind} {path!r} ({error})",
                where=where,
                fix="write it as package.module:Class, importable from the working folder",
            ) from error

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        if self._entry_points:
            for point in metadata.entry_points(group=self._entry_points):
                self._known.setdefault(point.name, point.load())
        self._loaded = True
