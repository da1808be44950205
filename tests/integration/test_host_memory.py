"""A rollout's processes stay below what was computed, and do not grow (`scripts/bench_host_memory.py`)."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench_host_memory")


def test_every_process_stays_below_what_was_computed_and_is_flat(
    bench: ModuleType, ray_cluster: None, tmp_path: Path, soak: bool
) -> None:
    """Six turns with an image each, in room for a fraction of the images that are shown at once."""
    small = bench.Settings(3, 4, turns=6, pixels=512**2, images=24, places=8, steps=4, room=0.008)
    large = bench.Settings(64, 16, turns=6, pixels=2000**2, images=256, places=64, steps=30, room=0.5)
    settings = large if soak else small
    found, bounds = bench.measure(settings, tmp_path)
    assert found.keys() == bounds.keys()
    for name, sizes in found.items():
        assert len(sizes) == settings.steps
        assert max(sizes) > 0 or name == "object store"
        assert max(sizes) <= bounds[name], name
        assert sizes[-1] - sizes[2 if settings.steps > 3 else 0] <= bench.GROWTH * bounds[name], name
