"""What the processes of a rollout hold, step by step: below what was computed before, and no more and more.

Real workers, tools' images and pixels; in the engine's place is something that only looks at them (see
`scripts/bench_host_memory.py`), since no CPU samples from so many tokens in time.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from ray import cloudpickle

SCRIPTS = Path(__file__).parents[2] / "scripts"
MIB = 2**20
#: Growth over three steps that is noise of the C library. Whoever keeps each turn's images grows by 90 MiB.
NOISE = 48 * MIB
#: 64 × 16 episodes of six turns, with images of four megapixels.
LARGE = {"groups": 64, "group_size": 16, "turns": 6, "pixels": 4_000_000, "images": 48}
LARGE |= {"places": 64, "steps": 5}
TIMEOUT = 3 * 3600


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, which Ray's workers get whole, since they do not find it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("bench_host_memory")
    monkeypatch.setattr(module, "LOADED", 2)  # what a learner makes of pixels takes most of the time
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.usefixtures("ray_cluster")
def test_processes_stay_below_what_was_computed(bench: ModuleType, tmp_path: Path) -> None:
    """An engine with room for the pixels of two sequences, of which it has eight."""
    settings = bench.Settings(
        groups=2, group_size=4, turns=6, pixels=500_000, images=16, places=8, steps=6, room=0.02
    )
    found, bounds = bench.measure(settings, tmp_path)
    assert found.keys() == set(bench.MEASURED)
    for name, sizes in found.items():
        assert len(sizes) == settings.steps
        # The session's cluster has others' objects as well, and tells whole MiB.
        others = 8 * MIB if name == bench.OBJECT_STORE else 0
        assert max(sizes) < bounds[name] + others, (name, [size // MIB for size in sizes])
        if name != "learner":  # it keeps the pixels used last, up to a room that these do not fill
            assert min(sizes[-2:]) - min(sizes[1:3]) < NOISE, (name, [size // MIB for size in sizes])


def test_a_large_rollout_stays_below_what_was_computed(bench: ModuleType, tmp_path: Path, soak: bool) -> None:
    if not soak:
        pytest.skip("it takes many minutes, and 20 GiB: --soak")
    config = bench.Settings(**LARGE, room=1.0).run_config(bench.make_model(tmp_path))
    needed, free = sum(bench.computed(config).values()), psutil.virtual_memory().available
    if needed > free:
        pytest.skip(f"it may take {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in LARGE.items()]
    command = [sys.executable, str(SCRIPTS / "bench_host_memory.py"), *options, "--room=1", "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    print(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
