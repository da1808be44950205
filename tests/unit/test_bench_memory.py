"""The estimate of memory is within 15 % of the peaks of real steps (`scripts/bench_memory.py`)."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench_memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("rank", [0, 8], ids=["full", "lora"])
@pytest.mark.parametrize("model", ["smollm2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_estimates_agree_with_measured_peaks(
    bench: ModuleType, folder: Path, model: str, rank: int, checkpointing: bool
) -> None:
    dtype, rows = ("float32", 1) if model == "qwen2_vl" else ("bfloat16", 2)
    case = bench.Case(model, 512, checkpointing, rank, dtype, rows)
    measured = bench.measure(case, folder, torch.device("cpu"))
    assert measured.ratio == pytest.approx(1, abs=bench.GOAL)


def test_checkpointing_and_adapters_lower_the_measured_peak(bench: ModuleType, folder: Path) -> None:
    """What is counted is what is saved, not only what is estimated."""
    peaks = [
        bench.measure(bench.Case("qwen3_vl", 512, checkpointing, rank), folder, torch.device("cpu")).peak
        for checkpointing, rank in ((False, 0), (True, 0), (True, 8))
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[2] < 0.7 * peaks[0]


def test_live_bytes_come_and_go(bench: ModuleType) -> None:
    given = torch.ones(1000)
    with bench.LiveBytes() as live:
        live.add(given)
        twice = given * 2
        view = twice[:10]
        assert live.now == live.peak == 8000
        del twice, view
        assert (live.now, live.peak) == (4000, 8000)
        grown = torch.empty(0)
        grown.untyped_storage().resize_(800)
        assert live.now == 4800
