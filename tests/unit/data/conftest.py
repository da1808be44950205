"""What the tests of data share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(folder))
    return folder
