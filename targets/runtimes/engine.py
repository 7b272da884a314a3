"""A runtime whose engine is the one that bundles run with: what is measured is what is deployed."""

from __future__ import annotations

from importlib import metadata
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from apps.runtime.engines import Engine
from targets.runtimes.base import Runtime
from targets.spec import Build


class EngineRuntime(Runtime):
    """Loads and runs through ``apps.runtime``; subclasses write ``_probe`` and ``_build``."""

    engine: ClassVar[type[Engine]]

    def _version(self) -> str:
        return metadata.version(self.engine.package)

    def device_ms(self, handle: Engine) -> float | None:
        return handle.device_ms

    def _code(self) -> set[str]:
        return super()._code() | {self.engine.__module__}

    def _load(self, build: Build) -> Engine:
        return self.engine(build.model_path, build.settings)

    def _run(self, handle: Engine, batch: NDArray[Any]) -> NDArray[np.float32]:
        return handle.run(batch)

    def _close(self, handle: Engine) -> None:
        handle.close()
