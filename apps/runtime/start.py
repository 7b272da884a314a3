"""What ``python app.py`` in a bundle does: proves that this device computes what it should, then runs the app."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .bundle import Bundle, warn
from .errors import BundleError

REFUSED = 78  # EX_CONFIG of sysexits.h: to start again does not help


def main(folder: Path, app: str, arguments: list[str] | None = None) -> int:
    """Runs ``app`` on the bundle in ``folder``, unless the bundle or what it computes here is wrong.

    Returns:
        The app's exit code; ``REFUSED`` where it was not started; 2 where it could not go on.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"} & set(given):
        try:
            with Bundle.open(folder) as bundle:
                difference, _ = bundle.prove()
                warn(bundle.notes)
                print(f"self-test passed: {bundle.build.id}, largest difference {difference:.3g}", file=sys.stderr)
        except BundleError as error:
            print(f"error: refused to start {app}: {error}", file=sys.stderr)
            return REFUSED
    try:
        return int(importlib.import_module(f"apps.{app}").main([str(folder), *given]))
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads our answers has seen enough
        sys.stderr.close()
        return 0
