"""Which GPUs a run may use, by a `nvidia-smi` that answers as on some machine."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.doctor import machine as doctor
from posttrain.gpus import visible_gpus


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, 3),
        ("", 0),
        ("-1", 0),
        ("2,0", 2),
        ("0,7,1", 1),  # CUDA stops at the first that is not there
        ("GPU-1", 1),
        ("MIG-3eb8,MIG-77aa", 2),
    ],
)
def test_hidden_gpus_are_not_there(
    gpu_machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: int
) -> None:
    gpu_machine(3)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(visible_gpus()) == seen


def test_name_and_memory_are_the_drivers(gpu_machine: Callable[[int], None]) -> None:
    gpu_machine(1)
    [gpu] = visible_gpus()
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.memory == 81559 * 2**20
    assert doctor.check_gpus().detail == "NVIDIA H100 80GB HBM3, 79.6 GiB"


def test_memory_that_the_driver_does_not_tell_is_unknown(tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'GPU-0, [N/A], NVIDIA GB10'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.memory for gpu in visible_gpus()] == [None]


def test_without_a_driver_there_are_none(gpu_machine: Callable[[int], None]) -> None:
    gpu_machine(0)
    assert visible_gpus() == []
    assert "models run on the CPU" in doctor.check_gpus().detail
