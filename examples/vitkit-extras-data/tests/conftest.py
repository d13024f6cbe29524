"""The patches, cut once for all tests."""

from pathlib import Path

import pytest

from vitkit_extras_data import prepare


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("patches"))
