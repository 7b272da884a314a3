"""Bundles that tests of apps share."""

from __future__ import annotations

import pytest

from tests.apps.listener import Listener, make_listener


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Listener:
    """A bundle that listens, and its build."""
    return make_listener(tmp_path_factory.mktemp("listener"))
