"""What the processes of a rollout hold, step by step: below what was computed before, and no more and more.

Real workers, tools' images and pixels; in the engine's place is something that only looks at them (see
`scripts/bench_host_memory.py`), since no CPU samples from so many tokens in time. The script runs in a
process of its own: one of tests holds what all tests before have loaded.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_host_memory.py"
MIB = 2**20
#: Growth over three steps that is noise of the C library. Whoever keeps each turn's images grows by 90 MiB.
NOISE = 48 * MIB
#: An engine with room for the pixels of two sequences, of which it has eight.
SMALL = ["--groups=2", "--group-size=4", "--turns=6", "--pixels=500000", "--images=16", "--places=8"]
SMALL += ["--room=0.02"]
#: 64 × 16 episodes of six turns, with images of four megapixels.
LARGE = ["--groups=64", "--group-size=16", "--turns=6", "--pixels=4000000", "--places=64", "--room=1"]
TIMEOUT = 3 * 3600


def measure(*options: str, figures: Path) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Run the script; return the bytes of every process after each step, and what was computed beforehand."""
    command = [sys.executable, str(SCRIPT), *options, f"--json={figures}"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    print(finished.stdout)
    if "GiB are free" in finished.stderr:
        pytest.skip(finished.stderr)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = json.loads(figures.read_text())
    return told["found"], told["bounds"]


def test_processes_stay_below_what_was_computed(tmp_path: Path, soak: bool) -> None:
    steps = 30 if soak else 6
    found, bounds = measure(*SMALL, f"--steps={steps}", figures=tmp_path / "figures.json")
    assert found.keys() == {"the run itself", "engine", "learner", "object store"}
    for name, sizes in found.items():
        assert len(sizes) == steps
        # The store tells whole MiB, and a batch is less.
        told = max(bounds[name], 2 * MIB) if name == "object store" else bounds[name]
        assert max(sizes) < told, (name, [size // MIB for size in sizes])
        if name != "learner":  # it keeps the pixels used last, up to a room that these do not fill
            assert min(sizes[-3:]) - min(sizes[:3]) < NOISE, (name, [size // MIB for size in sizes])


def test_a_large_rollout_stays_below_what_was_computed(tmp_path: Path, soak: bool) -> None:
    if not soak:
        pytest.skip("it takes many minutes, and 20 GiB: --soak")
    measure(*LARGE, "--check", figures=tmp_path / "figures.json")
